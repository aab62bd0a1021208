"""What a teacher predicts about the next token.

Legend: N positions, V ids of the vocabulary, K entries per position.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

import torch

LEAST = 1e-38
"""A probability below this, which a float32 cannot tell from zero, is stored as it."""


class SignalKind(StrEnum):
    """What a signal says of the teacher's distribution, and so which objectives can take it."""

    DENSE = "dense"
    """Every probability."""
    SAMPLED = "sampled"
    """A sparse estimate whose expectation is the distribution."""
    PARTIAL = "partial"
    """The probabilities of some ids, and the mass of all others together. Biased: how that mass is spread is lost."""
    COARSE = "coarse"
    """What an endpoint lists: the same events, exact. A divergence of them is at most that of the whole distributions."""


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

    @property
    def silent(self) -> torch.Tensor:
        """Where every id is ruled out, so that nothing is said of what comes next, [N] bool."""
        found = self.logprobs[:, 0].isneginf() if self.logprobs.shape[1] else torch.ones(len(self), dtype=torch.bool)
        if found.device.type != "cpu":
            # To ask which positions these are would wait for the device.
            return self.logprobs.amax(1).isneginf()
        found[found.clone()] = self.logprobs[found].amax(1).isneginf()
        return found

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
    occur more than once in a position, and its weights add up; in a biased one every id with a weight occurs once.

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

        Probabilities are stored with three digits, and so is the mass that is left: each keeps its own where their sum is made
        one. A position that lists nothing has the event "any id" alone.
        """
        listed = self.weights.sum(1)
        rest = (1.0 - listed).clamp_min(0.0) if self.rest is None else self.rest.to(listed.dtype)
        rest = torch.where(listed > 0, rest, 1.0)
        total = listed + rest
        return self.weights / total[:, None], rest / total

    def coarse(self) -> CoarseSignal:
        """What a biased signal says, as the exact statement about its ids and all others together."""
        listed, rest = self.shares()
        return CoarseSignal(self.ids, listed.log(), rest, self.certain)

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


@dataclass(frozen=True)
class CoarseSignal:
    """An exact statement about K + 1 events: each of K ids, and all other ids together.

    This is what an endpoint's list of most probable tokens says. Every divergence between two distributions is at least that
    of such events (the data-processing inequality), so that a loss on it is a lower bound of the one on a dense signal.

    Attributes:
        ids: Vocabulary ids, [N, K]; those with a log-probability are distinct within a position.
        logprobs: Their log-probabilities, [N, K] float32, nats; -inf marks an entry that fills a shorter list, its id means
            nothing.
        rest: The probability of all other ids together, [N] float32.
        certain: As in :class:`DenseSignal`.
    """

    ids: torch.Tensor
    logprobs: torch.Tensor
    rest: torch.Tensor
    certain: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def kind(self) -> SignalKind:
        """What it says of the distribution."""
        return SignalKind.COARSE

    @property
    def listed(self) -> torch.Tensor:
        """Which entries are not fillers, [N, K] bool."""
        return self.logprobs > float("-inf")

    @property
    def silent(self) -> torch.Tensor:
        """Where there is the event "any id" alone, so that nothing is said of what comes next, [N] bool."""
        return (self.rest >= 1.0) & ~self.listed.any(1)

    def listed_of(self, logprobs: torch.Tensor) -> torch.Tensor:
        """Of a student's log-probabilities [N, V] those of the entries, [N, K]; -inf at fillers."""
        return torch.where(self.listed, logprobs.gather(1, self.ids), float("-inf"))

    def others_of(self, logprobs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a student's log-probabilities those of the ids that are not listed.

        Args:
            logprobs: [N, V]; they are overwritten.

        Returns:
            Of each id, [N, V], -inf at listed ones; and of all others together, [N, 1], a float's least where there are none.
        """
        # Of the others themselves: one minus the listed would lose a small mass to rounding.
        gone = torch.where(self.listed, float("-inf"), 0.0).to(logprobs.dtype)
        others = logprobs.scatter_add_(1, self.ids, gone)
        together = others.logsumexp(1, keepdim=True)
        least = math.log(torch.finfo(logprobs.dtype).tiny)
        return others, torch.where(together > float("-inf"), together, least)

    def divergence_from(self, logprobs: torch.Tensor) -> torch.Tensor:
        """KL of the events from a student's log-probabilities [N, V], [N] nats: at most that of the whole distributions."""
        own, (_, others) = self.listed_of(logprobs), self.others_of(logprobs.clone())
        found = torch.where(self.listed, self.logprobs.exp() * (self.logprobs - own), 0.0).sum(1)
        return found + torch.where(self.rest > 0, self.rest * (self.rest.log() - others.squeeze(1)), 0.0)

    def rows_at(self, where: torch.Tensor) -> CoarseSignal:
        """The positions of these indices; ids that all positions share stay one row in memory."""
        certain = None if self.certain is None else self.certain[where]
        shared = self.ids.stride(0) == 0 and len(self.ids) > 0
        ids = self.ids[:1].expand(len(where), self.ids.shape[1]) if shared else self.ids[where]
        return CoarseSignal(ids, self.logprobs[where], self.rest[where], certain)

    def fault(self, size: int) -> str | None:
        """What is wrong with it as a statement about a vocabulary of ``size`` ids, in words; None where nothing is."""
        listed = self.listed
        if not bool(torch.isfinite(self.rest).all()) or bool(torch.isnan(self.logprobs).any()):
            return "a probability is not a number"
        if bool(((self.ids < 0) | (self.ids >= size))[listed].any()):
            return f"an id is not one of the {size} of the vocabulary"
        if bool((self.logprobs > 1e-3).any()):
            return "a probability is above 1"
        mass = self.logprobs.double().exp().sum(1) + self.rest.double()
        if bool((self.rest < 0).any()) or bool(((mass - 1.0).abs() > 2e-3).any()):
            return "the probabilities do not sum to 1"
        # Fillers get ids of their own, so that only listed ids can be equal.
        own = torch.where(listed, self.ids, size + torch.arange(self.ids.shape[1])).sort(dim=1).values
        if bool((own[:, 1:] == own[:, :-1]).any()):
            return "an id is listed twice at one position"
        return None

    def rows(self, start: int, stop: int) -> CoarseSignal:
        """Positions ``start`` to ``stop``."""
        certain = None if self.certain is None else self.certain[start:stop]
        return CoarseSignal(self.ids[start:stop], self.logprobs[start:stop], self.rest[start:stop], certain)

    def to(self, device: torch.device) -> CoarseSignal:
        """The same signal on a device."""
        return self.each(lambda tensor: tensor.to(device))

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> CoarseSignal:
        """The same signal with every tensor changed, such as carried elsewhere."""
        certain = None if self.certain is None else change(self.certain)
        return CoarseSignal(change(self.ids), change(self.logprobs), change(self.rest), certain)


Signal = DenseSignal | SparseSignal | CoarseSignal


@dataclass(frozen=True)
class Chunks:
    """Stretches of text that a student with another tokenizer splits otherwise than its teacher, and compares as wholes.

    Attributes:
        number: The chunk that each position's target belongs to, [N] int64; -1: none.
        logprobs: The teacher's log-probability of each chunk's text, [C] float32, nats.
    """

    number: torch.Tensor
    logprobs: torch.Tensor

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Chunks:
        """The same chunks with every tensor changed."""
        return Chunks(change(self.number), change(self.logprobs))
