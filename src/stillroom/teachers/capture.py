"""The teacher's one pass over the pieces of a corpus, into the cache."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from stillroom.core import files
from stillroom.core.errors import CacheDamaged, OutOfMemory, SignalError, TeacherError, translate
from stillroom.core.memory import release_memory
from stillroom.core.progress import Progress, Task
from stillroom.corpus.mapped import MappedSequences
from stillroom.corpus.sequences import Sequences
from stillroom.recipe.capture import Codec, HiddenCodec
from stillroom.signals.cache.hidden import OutputLayer
from stillroom.signals.cache.identity import CacheIdentity
from stillroom.signals.cache.manifest import VERSION
from stillroom.signals.cache.registry import VERSIONS
from stillroom.signals.cache.threshold import Threshold
from stillroom.signals.cache.writer import CHUNK, CacheWriter
from stillroom.signals.device_draw import draw, draws_on
from stillroom.teachers.aside import make_way, settle
from stillroom.teachers.local import LocalTeacher
from stillroom.teachers.teacher import Teacher, require

BEGUN = "capture.json"
"""In the stage's scratch folder: how far the cache was when the stage was begun."""


def cache_identity(teacher: Teacher, codec: Codec, temperature: float, seed: int) -> CacheIdentity:
    """What a teacher's cache is made of and how.

    Args:
        teacher: The teacher.
        codec: What is stored of each distribution.
        temperature: Divides the teacher's logits.
        seed: Of the codec's sampling.
    """
    return CacheIdentity(
        teacher_digest=teacher.identity["teacher"],
        config_digest=teacher.identity.get("config"),
        tokenizer_digest=teacher.identity["tokenizer"],
        quantization=teacher.identity.get("quantization"),
        vocabulary_size=teacher.vocabulary.size,
        temperature=temperature,
        codec=codec,
        codec_version=VERSIONS[codec.kind],
        seed=seed,
        dtype=teacher.dtype,
    )


def open_writer(
    folder: Path, identity: CacheIdentity, wanted: list[str], *, own: bool, progress: Progress
) -> CacheWriter:
    """The cache, to be gone on with. One in the run's folder that does not fit is begun anew; a shared one is refused."""
    writer: CacheWriter | None = None
    if own:
        settle(folder)
    try:
        writer = CacheWriter.open(folder, identity)
    except (SignalError, CacheDamaged):
        if not own:
            raise
    if writer is not None:
        missing = len(set(writer.missing(wanted))) if writer.version != VERSION else 0
        if not missing:
            return writer
        if not own:
            raise SignalError(
                f"{folder} holds a cache of format {writer.version}, which is read and not written any more; it lacks "
                f"{missing:,} of {len(set(wanted)):,} sequences of this corpus.",
                "Name another folder as `capture.path`; a cache of format 2 serves runs whose corpus was made by the "
                "release that wrote it.",
            )
    progress.say(make_way(folder))
    return CacheWriter.open(folder, identity)


def held_before(writer: CacheWriter, kept: Path) -> set[str]:
    """What the cache held when the stage was begun, also where it was interrupted since."""
    if kept.is_file():
        return writer.before(int(files.read_json(kept)["next_shard"]))
    files.write_json(kept, {"next_shard": writer.next_shard})
    return writer.before(writer.next_shard)


def capture(
    teacher: Teacher,
    sequences: Sequences | MappedSequences,
    writer: CacheWriter,
    temperature: float,
    asked_batch_tokens: int | None,
    shard_tokens: int,
    task: Task,
    before: set[str] | None = None,
) -> None:
    """Run the teacher over every piece that the cache lacks; what is missing is packed into rows of its own.

    Args:
        teacher: The teacher.
        sequences: A split.
        writer: The cache.
        temperature: Divides the teacher's logits; that of the cache's identity.
        asked_batch_tokens: Tokens per forward pass; None leaves it to the teacher. Fewer are taken where they do not fit.
        shard_tokens: Tokens after which what was captured is written.
        task: Shows progress, in tokens.
        before: What the cache held when this work was begun. A capture that was interrupted packs the same rows again if it is
            told the same, so that it ends with the same signals, to the bit. None is what the cache holds now.

    Raises:
        TeacherError: The teacher's output is not finite, or it does not give whole distributions.
        OutOfMemory: A single sequence does not fit.
        SignalError: Something is missing in a cache of format 2.
    """
    require(teacher, "dense", "The stage `capture`")
    hidden = isinstance(writer.identity.codec, HiddenCodec)
    if hidden:
        writer.take_output_layer(OutputLayer(_local(teacher).output_layer, temperature))
    addresses = sequences.digests
    wanted = set(addresses)
    new = wanted - before if before is not None else set(writer.missing(addresses))
    # The same piece may be in a split twice; the cache holds it once.
    rows = sequences if len(new) == len(addresses) else sequences.only(new)
    todo = [index for index, row in enumerate(rows.addresses) if any(address not in writer for address in row)]
    task.skip((len(sequences) - len(todo)) * sequences.length)
    batch = max(1, (asked_batch_tokens or teacher.batch_tokens(sequences.length)) // sequences.length)
    unsaved = 0
    at = 0
    there = isinstance(teacher, LocalTeacher) and draws_on(writer.codec, teacher.device)
    # While a GPU computes, what it drew before is packed and written.
    packing = ThreadPoolExecutor(1) if there else None
    packed: Future[None] | None = None
    while at < len(todo):
        indices = todo[at : at + batch]
        # Of a split on disk no more than these rows is in memory.
        block = rows.part(indices)
        try:
            if there:
                _draw_there(_local(teacher), block, indices, writer, temperature)
            elif hidden:
                _add_hidden(_local(teacher), block, indices, writer)
            else:
                _add_scores(teacher, block, indices, temperature, writer)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(translate(error), OutOfMemory):
                raise
            if batch == 1:
                raise OutOfMemory(
                    f"The teacher does not fit into memory with one sequence of {sequences.length} tokens.",
                    "Shorten `corpus.sequence_length`, or free memory.",
                ) from None
            batch = max(1, batch // 2)
            error.__traceback__ = None  # it holds what did not fit
            release_memory()
            continue
        at += len(indices)
        unsaved += len(indices) * sequences.length
        task.advance(len(indices) * sequences.length)
        if unsaved >= shard_tokens:
            if packing is None:
                writer.flush()
            else:
                if packed is not None:
                    packed.result()
                packed = packing.submit(writer.flush)
            unsaved = 0
    if packing is not None:
        if packed is not None:
            packed.result()
        packing.shutdown()
    writer.flush()


def _draw_there(
    teacher: LocalTeacher, rows: Sequences, indices: list[int], writer: CacheWriter, temperature: float
) -> None:
    """Draw some rows, of these numbers, on the teacher's device; what the cache has by now is left out."""
    codec = writer.codec
    assert isinstance(codec, Threshold)
    for index, pieces in teacher.score_there(rows, range(len(rows)), rows.counts, temperature):
        for address, scores in zip(rows.addresses[index], pieces, strict=True):
            if address in writer:
                continue
            sample, entropy, positions = draw(codec, scores, writer.random_of(address))
            if not writer.add_sample(address, positions, entropy, sample):
                raise _not_finite(indices[index])


def _add_scores(teacher: Teacher, rows: Sequences, indices: list[int], temperature: float, writer: CacheWriter) -> None:
    """Sample the teacher's distributions on some rows, of these numbers."""
    for index, scores in teacher.score(rows, range(len(rows)), temperature):
        parts = Parts(scores, teacher.vocabulary.size)
        for address, count in zip(rows.addresses[index], rows.counts[index], strict=True):
            part = parts.take(count)
            if address in writer:
                for _ in part:
                    pass
            elif not writer.add(address, part):
                raise _not_finite(indices[index])


def _add_hidden(teacher: LocalTeacher, rows: Sequences, indices: list[int], writer: CacheWriter) -> None:
    """Keep the teacher's hidden states on some rows, of these numbers."""
    for index, hidden in teacher.hidden(rows, range(len(rows))):
        parts = torch.split(hidden, list(rows.counts[index]))
        for address, part in zip(rows.addresses[index], parts, strict=True):
            if address not in writer and not writer.add_hidden(address, part):
                raise _not_finite(indices[index])


def _not_finite(index: int) -> TeacherError:
    return TeacherError(
        f"The teacher's output on training sequence {index} is not finite.",
        "Load it with `dtype: float32`, or check that its files are whole.",
    )


def _local(teacher: Teacher) -> LocalTeacher:
    require(teacher, "weights", "The codec `hidden`")
    if not isinstance(teacher, LocalTeacher):
        raise TeacherError("The codec `hidden` needs a teacher that is a model on this machine.", "Use another codec.")
    return teacher


class Parts:
    """A row's scores, piece by piece, always in the same steps: where a piece is in its row changes nothing.

    Args:
        scores: Of all positions of the row that have a target, some at a time, [n, V] each.
        size: Ids of the vocabulary, V.
    """

    def __init__(self, scores: Iterator[torch.Tensor], size: int) -> None:
        self._scores = scores
        self._rest = torch.zeros(0, size)

    def take(self, count: int) -> Iterator[torch.Tensor]:
        """The next ``count`` positions; what was taken before has to be used up."""
        if not count:
            yield self._rest[:0]
        while count:
            wanted = min(count, CHUNK)
            held = [self._rest]
            while sum(map(len, held)) < wanted:
                more = next(self._scores, None)
                if more is None:
                    raise TeacherError(
                        "The teacher gives scores of fewer positions than have a target.",
                        "The package that brings this teacher has a mistake: tell its authors.",
                    )
                held.append(more)
            held = [part for part in held if len(part)]
            whole = held[0] if len(held) == 1 else torch.cat(held)
            part, self._rest = whole[:wanted], whole[wanted:]
            count -= wanted
            yield part
