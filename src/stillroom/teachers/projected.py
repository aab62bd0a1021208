"""The teacher's entropy over its student's ids: measured on the pieces that validate, where the cache holds a sample alone.

Legend: N positions of a piece that have a target, V ids of the teacher's vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from stillroom.core.errors import OutOfMemory, TeacherError, translate
from stillroom.core.memory import release_memory
from stillroom.core.progress import Progress
from stillroom.corpus.mapped import MappedSequences
from stillroom.corpus.sequences import Sequences
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.routes import OWN
from stillroom.signals.alignment import Alignment
from stillroom.signals.cache.identity import CacheIdentity
from stillroom.signals.projected import ProjectedEntropy, identity_of
from stillroom.signals.routed import Signals
from stillroom.signals.signal import SparseSignal
from stillroom.signals.vocabulary_map import NEVER, VocabularyMap
from stillroom.teachers.capture import Parts, cache_identity
from stillroom.teachers.local import LocalTeacher
from stillroom.teachers.registry import open_teacher
from stillroom.teachers.teacher import Teacher

NEGLIGIBLE = 1e-5
"""Mean mass on ids that never occur, below which what it changes of a KL, about 20 nats times that, is not looked for."""
FILE = "projected_entropy.json"
"""In a run's folder: of the last student's vocabulary."""


def projected_entropy(
    recipe: Recipe,
    split: Sequences | MappedSequences,
    vocabulary: VocabularyMap | Alignment,
    cache: Signals,
    device: torch.device,
    file: Path,
    progress: Progress,
) -> ProjectedEntropy | None:
    """The teacher's entropy over the student's ids on a split; None where it is not needed or not known.

    Args:
        recipe: The run's.
        split: The validation split.
        vocabulary: From the teacher's ids to the student's.
        cache: The teacher's signals on the split.
        device: Where the teacher computes.
        file: Where it is kept.
        progress: Says what is done.
    """
    if not isinstance(vocabulary, VocabularyMap) or not needed(split, vocabulary, cache):
        return None
    if set(recipe.learned_from) != {OWN}:
        progress.say("  the validation KL is a lower bound: the entropy of several teachers is not measured again")
        return None
    addresses = split.digests
    identity = identity_of(cache.identity, vocabulary, addresses)
    found = ProjectedEntropy.load(file, identity)
    if found is None:
        progress.say("  measuring the teacher's entropy over the student's ids")
        teacher = open_teacher(recipe.teacher, device, getattr(torch, cache.identity.dtype))
        if not _same(cache.identity, teacher):
            progress.say("  the validation KL is a lower bound: the teacher here is not the one of the cache")
            return None
        found = measure(teacher, split, vocabulary, cache, recipe.capture.batch_tokens, progress)
        found.save(file, identity)
        del teacher
        release_memory()
    return found


def needed(split: Sequences | MappedSequences, vocabulary: VocabularyMap, cache: Signals) -> bool:
    """Whether signals are samples and the student's ids have another entropy than the teacher's."""
    if vocabulary.is_identity or not len(split):
        return False
    gone = positions = 0.0
    for index in range(len(split)):
        signal, counts = cache.read(split.addresses_of(index))
        if not isinstance(signal, SparseSignal) or not signal.unbiased:
            return False
        if vocabulary.merges:
            return True
        gone += float(signal.weights[vocabulary.first[signal.ids] == NEVER].sum())
        positions += sum(counts)
    return gone > NEGLIGIBLE * positions


def measure(
    teacher: Teacher,
    split: Sequences | MappedSequences,
    vocabulary: VocabularyMap,
    cache: Signals,
    batch_tokens: int | None,
    progress: Progress,
) -> ProjectedEntropy:
    """One pass of the teacher over a split.

    Args:
        teacher: It gives whole distributions.
        split: Of the corpus; every piece once.
        vocabulary: From the teacher's ids to the student's.
        cache: Its signals, which have the entropy over its own ids.
        batch_tokens: Tokens per forward pass; None leaves it to the teacher. Fewer are taken where they do not fit.
        progress: Shows progress.

    Raises:
        OutOfMemory: A single sequence does not fit.
        TeacherError: Its output is not finite.
    """
    rows = split.only(set(split.digests))
    batch = max(1, (batch_tokens or teacher.batch_tokens(split.length)) // split.length)
    pieces: dict[str, float] = {}
    lost, positions, at = 0.0, 0, 0
    with progress.task("entropy", total=len(rows) * rows.length) as task:
        while at < len(rows):
            block = rows.part(list(range(at, min(at + batch, len(rows)))))
            try:
                found = list(_entropies(teacher, block, vocabulary, cache.identity.temperature))
            except (RuntimeError, MemoryError) as error:
                if batch == 1 or not isinstance(translate(error), OutOfMemory):
                    raise
                batch = max(1, batch // 2)
                error.__traceback__ = None  # it holds what did not fit
                release_memory()
                continue
            for address, entropy, count in found:
                if not math.isfinite(entropy):
                    raise TeacherError("The teacher's output on validation text is not finite.", "Capture again.")
                pieces[address] = entropy
                lost += cache.entropy(address) - entropy
                positions += count
            at += len(block)
            task.advance(len(block) * rows.length)
    return ProjectedEntropy(pieces, lost / max(1, positions))


def _entropies(
    teacher: Teacher, block: Sequences, vocabulary: VocabularyMap, temperature: float
) -> Iterator[tuple[str, float, int]]:
    """Address, summed entropy and positions of each piece of some rows."""
    for index, parts in _by_piece(teacher, block, temperature):
        for address, count, scores in zip(block.addresses[index], block.counts[index], parts, strict=True):
            yield address, sum(float(vocabulary.entropy(part).cpu().double().sum()) for part in scores), count


def _by_piece(
    teacher: Teacher, block: Sequences, temperature: float
) -> Iterator[tuple[int, Iterable[Iterator[torch.Tensor]]]]:
    """A row's number, and the scores of each of its pieces, [n, V] at a time; on a GPU they stay there."""
    rows = range(len(block))
    if isinstance(teacher, LocalTeacher) and teacher.device.type != "cpu":
        yield from teacher.score_there(block, rows, block.counts, temperature)
        return
    for index, scores in teacher.score(block, rows, temperature):
        parts = Parts(scores, teacher.vocabulary.size)
        yield index, map(parts.take, block.counts[index])


def _same(cache: CacheIdentity, teacher: Teacher) -> bool:
    """Whether a teacher is the one that a cache was captured from."""
    here = cache_identity(teacher, cache.codec, cache.temperature, cache.seed)
    return all(
        getattr(here, key) == getattr(cache, key)
        for key in ("teacher_digest", "tokenizer_digest", "vocabulary_size", "dtype")
    )
