"""The contract of every codec, and the codecs by their recipe's words.

A codec works in two steps. It *samples* what is to be kept of each distribution, while they exist; and it *packs* samples
into bytes, when a shard is written. Between the two it may learn from the first shard's samples how to pack well; what it
learned is stored once a cache, and the signal that is read back does not depend on it.

Legend: N positions of one sequence, V ids of the vocabulary.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Generic, TypeVar

import numpy as np
import torch

from stillroom.signals.signal import Signal, SignalKind

Sample = TypeVar("Sample")


class SignalCodec(ABC, Generic[Sample]):
    """Turns the distributions of sequences into bytes and back."""

    kind: ClassVar[SignalKind]
    """What its signals say of the distribution; the objective has to take it."""

    @abstractmethod
    def sample(self, probabilities: Iterable[torch.Tensor], random: np.random.Generator) -> Sample:
        """What is kept of N distributions.

        Args:
            probabilities: [N, V] float32 on the CPU, a few positions at a time; they may be overwritten.
            random: Source of all randomness; the same one gives the same sample.
        """

    def learn(self, samples: list[Sample]) -> bytes:  # noqa: ARG002
        """Learn from samples how to pack; returns what :meth:`recall` needs, empty where there is nothing to learn."""
        return b""

    def recall(self, data: bytes) -> None:
        """Take over what :meth:`learn` returned.

        Raises:
            CacheDamaged: It is something else.
        """

    @abstractmethod
    def pack(self, sample: Sample) -> bytes:
        """Bytes of a sample."""

    @abstractmethod
    def decode(self, records: list[bytes], counts: list[int]) -> Signal:
        """The signals of packed sequences, one after the other.

        Args:
            records: The bytes of each sequence.
            counts: Its positions.

        Raises:
            CacheDamaged: The bytes are not an encoding of that many positions.
        """


def sampling_generator(seed: int, digest: str) -> np.random.Generator:
    """The random numbers of one sequence: Philox, keyed by SHA-256 of ``seed:digest``."""
    key = hashlib.sha256(f"{seed}:{digest}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key[:16], dtype="<u8")))
