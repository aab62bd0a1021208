"""What a teacher says about the next token.

Legend: N positions, V ids of the vocabulary, K entries a position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

import torch


class SignalKind(StrEnum):
    """What a signal says of the teacher's distribution, and so which objectives can take it."""

    DENSE = "dense"
    """Every probability."""
    SAMPLED = "sampled"
    """A sparse estimate whose expectation is the distribution."""
    PARTIAL = "partial"
    """The probabilities of some ids, and the mass of all others together. Biased: how that mass is spread is lost."""


@dataclass(frozen=True)
class DenseSignal:
    """Every log-probability.

    Attributes:
        logprobs: [N, V], float32, nats.
        certain: Positions at which the text alone says what comes next, and the teacher was not asked, [N] bool; None: none.
    """

    logprobs: torch.Tensor
    certain: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.logprobs.shape[0]

    @property
    def kind(self) -> SignalKind:
        """What it says of the distribution."""
        return SignalKind.DENSE

    def rows(self, start: int, stop: int) -> DenseSignal:
        """Positions ``start`` to ``stop``."""
        return DenseSignal(self.logprobs[start:stop], None if self.certain is None else self.certain[start:stop])

    def to(self, device: torch.device) -> DenseSignal:
        """The same signal on a device."""
        return self.each(lambda tensor: tensor.to(device))

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> DenseSignal:
        """The same signal with every tensor changed, such as carried elsewhere."""
        return DenseSignal(change(self.logprobs), None if self.certain is None else change(self.certain))


@dataclass(frozen=True)
class SparseSignal:
    """Some ids of the distribution: an unbiased estimate of all of it, or the probabilities of these ids alone.

    A position with fewer than K entries is filled with weight 0 (and any valid id). In an unbiased signal the same id may
    stand more than once in a position, and its weights add up; in a biased one every id with a weight stands once.

    Attributes:
        ids: Vocabulary ids, [N, K].
        weights: Estimated probabilities, or the probabilities themselves, [N, K] float32.
        unbiased: Whether the expectation of the weights is the teacher's distribution.
        rest: The mass of all ids that are not listed, [N] float32, in a biased signal; None: what the weights leave of one.
        certain: As in :class:`DenseSignal`.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    unbiased: bool = True
    rest: torch.Tensor | None = None
    certain: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def kind(self) -> SignalKind:
        """What it says of the distribution."""
        return SignalKind.SAMPLED if self.unbiased else SignalKind.PARTIAL

    def shares(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a biased signal: the probabilities of the listed ids, [N, K], and of all others together, [N]; they sum to one.

        Probabilities are stored with three digits; the mass that is left, which is stored too, is often known better than
        one minus their sum.
        """
        listed = self.weights.sum(1)
        rest = (1.0 - listed) if self.rest is None else self.rest.to(listed.dtype)
        rest = torch.where(listed > 0, rest.clamp(0.0, 1.0), 1.0)
        scale = torch.where(listed > 0, (1.0 - rest) / listed, 0.0)
        return self.weights * scale[:, None], rest

    def rows(self, start: int, stop: int) -> SparseSignal:
        """Positions ``start`` to ``stop``."""
        return replace(
            self,
            ids=self.ids[start:stop],
            weights=self.weights[start:stop],
            rest=None if self.rest is None else self.rest[start:stop],
            certain=None if self.certain is None else self.certain[start:stop],
        )

    def to(self, device: torch.device) -> SparseSignal:
        """The same signal on a device."""
        return self.each(lambda tensor: tensor.to(device))

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> SparseSignal:
        """The same signal with every tensor changed, such as carried elsewhere."""
        return replace(
            self,
            ids=change(self.ids),
            weights=change(self.weights),
            rest=None if self.rest is None else change(self.rest),
            certain=None if self.certain is None else change(self.certain),
        )


Signal = DenseSignal | SparseSignal
