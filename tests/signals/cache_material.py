"""Sequences, distributions and caches for the tests of the teacher's room."""

from __future__ import annotations

from pathlib import Path

import torch

from stillroom.corpus.sequences import Sequences
from stillroom.recipe.capture import Codec
from stillroom.signals.cache.identity import CacheIdentity
from stillroom.signals.cache.writer import CacheWriter


def sequences_of(count: int, length: int, vocabulary_size: int = 100, seed: int = 0) -> Sequences:
    """Random sequences of two documents each; the last one ends in padding."""
    generator = torch.Generator().manual_seed(seed)
    segments = torch.zeros(count, length, dtype=torch.int32)
    segments[:, length // 2 :] = 1
    segments[-1, -3:] = -1
    ids = torch.randint(vocabulary_size, (count, length), generator=generator)
    return Sequences(
        torch.where(segments >= 0, ids, 0),
        segments,
        segments >= 0,
        segments.clone(),
        torch.ones(count, length, dtype=torch.int32),
        torch.zeros(2, dtype=torch.int32),
    )


def identity(codec: Codec, vocabulary_size: int = 100, **fields: object) -> CacheIdentity:
    """The identity of a cache of a teacher that nobody knows."""
    values = {
        "teacher_digest": "0" * 64,
        "tokenizer_digest": "1" * 64,
        "vocabulary_size": vocabulary_size,
        "temperature": 1.0,
        "codec": codec,
        "seed": 0,
        "dtype": "float32",
        "sequence_length": 24,
    }
    return CacheIdentity.model_validate(values | fields)


def logprobs_of(positions: int, vocabulary_size: int, seed: int, spread: float = 2.0) -> torch.Tensor:
    """Random log-probabilities, peaked as a teacher's are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(spread * torch.randn(positions, vocabulary_size, generator=generator), dim=1)


def scores_of(text: Sequences, index: int, vocabulary_size: int) -> torch.Tensor:
    """The log-probabilities that :func:`write_cache` stores for a sequence."""
    return logprobs_of(int((text.targets[index] >= 0).sum()), vocabulary_size, index)


def write_cache(folder: Path, text: Sequences, who: CacheIdentity, per_shard: int = 2) -> None:
    """A cache of random signals, so many sequences a shard."""
    writer = CacheWriter.open(folder, who)
    for index, digest in enumerate(text.digests):
        if digest in writer.missing([digest]):
            assert writer.add(digest, scores_of(text, index, who.vocabulary_size))
        if (index + 1) % per_shard == 0:
            writer.flush()
    writer.flush()
