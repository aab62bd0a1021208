"""The dense codec: every log-probability in float32. Exact and large."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from stillroom.core.errors import CacheDamaged
from stillroom.signals.cache.codec import SignalCodec
from stillroom.signals.signal import LEAST, DenseSignal, SignalKind


class Dense(SignalCodec[bytes]):
    """[N, V] float32, little-endian, row by row."""

    kind = SignalKind.DENSE

    def __init__(self, vocabulary_size: int) -> None:
        self.vocabulary_size = vocabulary_size

    def sample(self, probabilities: Iterable[torch.Tensor], random: np.random.Generator) -> bytes:  # noqa: ARG002
        """See :meth:`SignalCodec.sample`."""
        logprobs = (chunk.clamp_min_(LEAST).log_().contiguous().numpy() for chunk in probabilities)
        return b"".join(chunk.astype("<f4", copy=False).tobytes() for chunk in logprobs)

    def pack(self, sample: bytes) -> bytes:
        """See :meth:`SignalCodec.pack`."""
        return sample

    def decode(self, records: list[bytes], counts: list[int]) -> DenseSignal:
        """See :meth:`SignalCodec.decode`."""
        parts = []
        for data, count in zip(records, counts, strict=True):
            if len(data) != 4 * count * self.vocabulary_size:
                raise CacheDamaged(
                    "A dense signal of the cache has the wrong length.", "Run `stillroom cache verify` on its folder."
                )
            parts.append(np.frombuffer(data, dtype="<f4").reshape(count, self.vocabulary_size))
        return DenseSignal(torch.from_numpy(np.concatenate(parts)))
