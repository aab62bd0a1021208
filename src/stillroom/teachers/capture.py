"""The teacher's one pass over the sequences, into the cache."""

from __future__ import annotations

from stillroom.core.errors import OutOfMemory, TeacherError, translate
from stillroom.core.progress import Task
from stillroom.corpus.sequences import Sequences
from stillroom.recipe.capture import Codec
from stillroom.signals.cache.identity import CacheIdentity
from stillroom.signals.cache.writer import CacheWriter
from stillroom.teachers.teacher import Teacher, require


def cache_identity(teacher: Teacher, codec: Codec, temperature: float, seed: int, length: int) -> CacheIdentity:
    """What a teacher's cache is made of and how.

    Args:
        teacher: The teacher.
        codec: What is stored of each distribution.
        temperature: Divides the teacher's logits.
        seed: Of the codec's sampling.
        length: Tokens per sequence.
    """
    return CacheIdentity(
        teacher_digest=teacher.identity["teacher"],
        tokenizer_digest=teacher.identity["tokenizer"],
        vocabulary_size=teacher.vocabulary.size,
        temperature=temperature,
        codec=codec,
        seed=seed,
        dtype=teacher.dtype,
        sequence_length=length,
    )


def capture(
    teacher: Teacher,
    sequences: Sequences,
    writer: CacheWriter,
    temperature: float,
    asked_batch_tokens: int | None,
    shard_tokens: int,
    task: Task,
) -> None:
    """Run the teacher over every sequence that the cache lacks.

    Args:
        teacher: The teacher.
        sequences: A split.
        writer: The cache.
        temperature: Divides the teacher's logits; that of the cache's identity.
        asked_batch_tokens: Tokens per forward pass; None leaves it to the teacher. Fewer are taken where they do not fit.
        shard_tokens: Tokens after which what was captured is written.
        task: Shows progress, in tokens.

    Raises:
        TeacherError: The teacher's output is not finite, or it does not give whole distributions.
        OutOfMemory: A single sequence does not fit.
    """
    require(teacher, "dense", "The stage `capture`")
    digests = sequences.digests
    missing = set(writer.missing(digests))
    todo = [index for index, digest in enumerate(digests) if digest in missing]
    # The same sequence may stand in a split twice; the cache holds it once.
    first = {digests[index]: index for index in reversed(todo)}
    todo = sorted(first.values())
    task.skip((len(sequences) - len(todo)) * sequences.length)
    batch = max(1, (asked_batch_tokens or teacher.batch_tokens(sequences.length)) // sequences.length)
    unsaved = 0
    at = 0
    while at < len(todo):
        indices = todo[at : at + batch]
        try:
            for index, scores in teacher.score(sequences, indices, temperature):
                if not writer.add(digests[index], scores):
                    raise TeacherError(
                        f"The teacher's output on training sequence {index} is not finite.",
                        "Load it with `dtype: float32`, or check that its files are whole.",
                    )
        except (RuntimeError, MemoryError) as error:
            if not isinstance(translate(error), OutOfMemory):
                raise
            if batch == 1:
                raise OutOfMemory(
                    f"The teacher does not fit into memory with one sequence of {sequences.length} tokens.",
                    "Shorten `corpus.sequence_length`, or free memory.",
                ) from None
            batch = max(1, batch // 2)
            continue
        at += len(indices)
        unsaved += len(indices) * sequences.length
        task.advance(len(indices) * sequences.length)
        if unsaved >= shard_tokens:
            writer.flush()
            unsaved = 0
    writer.flush()
