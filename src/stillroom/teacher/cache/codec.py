"""The contract of every codec, and the codecs by their recipe's words. Knows nothing of files.

Legend: N positions of one sequence, V ids of the vocabulary.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod

import numpy as np
import torch

from stillroom.teacher.config import Codec as CodecConfig
from stillroom.teacher.config import DenseCodec, TopKCodec
from stillroom.teacher.signal import Signal


class SignalCodec(ABC):
    """Turns the distributions of one sequence into bytes and back."""

    @abstractmethod
    def encode(self, logprobs: torch.Tensor, random: np.random.Generator) -> bytes:
        """Bytes of N distributions.

        Args:
            logprobs: [N, V] float32, nats.
            random: Source of all randomness; the same one gives the same bytes.
        """

    @abstractmethod
    def decode(self, data: bytes, count: int) -> Signal:
        """The signal of ``count`` positions.

        Raises:
            CacheDamaged: The bytes are not an encoding of that many positions.
        """


def make_codec(config: CodecConfig, vocabulary_size: int) -> SignalCodec:
    """The codec that a recipe or a manifest describes."""
    if isinstance(config, DenseCodec):
        from stillroom.teacher.cache.dense import Dense

        return Dense(vocabulary_size)
    if isinstance(config, TopKCodec):
        from stillroom.teacher.cache.top_k import TopK

        return TopK(config.k, vocabulary_size)
    from stillroom.teacher.cache.threshold import Threshold

    return Threshold(config.tau, vocabulary_size, config.draws)


def sampling_generator(seed: int, digest: str) -> np.random.Generator:
    """The random numbers of one sequence: Philox, keyed by SHA-256 of ``seed:digest``."""
    key = hashlib.sha256(f"{seed}:{digest}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key[:16], dtype="<u8")))
