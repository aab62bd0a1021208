"""The dense codec: every log-probability in float32. Exact and large. Knows nothing of files."""

from __future__ import annotations

import numpy as np
import torch

from stillroom.errors import CacheDamaged
from stillroom.teacher.cache.codec import SignalCodec
from stillroom.teacher.signal import DenseSignal


class Dense(SignalCodec):
    """[N, V] float32, little-endian, row by row."""

    def __init__(self, vocabulary_size: int) -> None:
        self.vocabulary_size = vocabulary_size

    def encode(self, logprobs: torch.Tensor, random: np.random.Generator) -> bytes:  # noqa: ARG002
        """See :meth:`SignalCodec.encode`."""
        return logprobs.to(torch.float32).contiguous().numpy().astype("<f4", copy=False).tobytes()

    def decode(self, data: bytes, count: int) -> DenseSignal:
        """See :meth:`SignalCodec.decode`."""
        if len(data) != 4 * count * self.vocabulary_size:
            raise CacheDamaged(
                "A dense signal of the cache has the wrong length.", "Run `stillroom cache verify` on its folder."
            )
        values = np.frombuffer(data, dtype="<f4").reshape(count, self.vocabulary_size)
        return DenseSignal(torch.from_numpy(values.copy()))
