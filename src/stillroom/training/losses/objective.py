"""The contract that every objective keeps.

Legend: C positions of a chunk, V ids of the student's vocabulary, K entries per position.

An objective sees the student's log-probabilities of a chunk and the teacher's signal for the same positions. It returns
the loss of each position in nats and the gradient of their sum with respect to the student's (temperature-scaled)
logits, by least squares, so that nothing is computed twice.

An objective has a file of its own beside this one, named as the recipe names it, and a row in
``stillroom.recipe.training.OBJECTIVES``; a package of one's own names its class under the entry point
``stillroom.objectives``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from stillroom.core.errors import SignalError, VocabularyMismatch
from stillroom.signals.signal import CoarseSignal, DenseSignal, Signal, SignalKind, SparseSignal


class Objective(ABC):
    """What pulls a student to its teacher: one formula, its gradient, and the signals it can take without bias."""

    name: ClassVar[str]
    linear: ClassVar[bool]
    """Whether the loss is linear in the teacher's probabilities, so that an unbiased estimate of them will do."""
    partial: ClassVar[bool] = False
    """Whether ``chunk`` computes a divergence of a partial signal (:meth:`SparseSignal.shares`): 0 for the teacher itself."""
    coarse: ClassVar[bool] = False
    """Whether ``chunk`` computes the divergence of a :class:`stillroom.signals.signal.CoarseSignal`'s events."""

    @classmethod
    def require(cls, kind: SignalKind, *, biased: bool = False) -> None:
        """Refuse a kind of signal that would make the objective wrong without anybody noticing.

        Args:
            kind: What the signal says of the teacher's distribution.
            biased: Whether a biased signal is wanted all the same.

        Raises:
            SignalError: The objective cannot take it; or it is biased and no one said so.
        """
        if kind is SignalKind.SAMPLED and not cls.linear:
            raise SignalError(
                f"The objective `{cls.name}` cannot take a sparse signal: it is not linear in the teacher's "
                "probabilities, so that even an unbiased estimate of them gives a biased loss.",
                "Capture with `codec: {kind: dense}`, or use the objective `forward_kl`.",
            )
        if kind is SignalKind.PARTIAL and not cls.partial:
            raise SignalError(
                f"The objective `{cls.name}` cannot take a signal of the most probable ids alone: it needs the "
                f"{'whole distribution or an unbiased estimate of it' if cls.linear else 'whole distribution'}.",
                f"Capture with `codec: {{kind: {'threshold' if cls.linear else 'dense'}}}`, or use the objective `forward_kl`.",
            )
        if kind is SignalKind.COARSE and not cls.coarse:
            raise SignalError(
                f"The objective `{cls.name}` cannot take the list of most probable tokens that an endpoint gives.",
                "Use one of the built-in objectives, or declare `coarse = True` in the objective's class and compute it "
                "(stillroom.training.losses.coarse helps).",
            )
        if kind is SignalKind.PARTIAL and not biased:
            raise SignalError(
                "A signal of the most probable ids alone is biased: the student never learns how the teacher spreads the "
                "mass of all others.",
                "Capture with `codec: {kind: threshold}`, which is unbiased; or, if this is what you want, say "
                "`biased: true` in the recipe's section `distill`.",
            )

    def check(self, signal: Signal, rows: int, *, biased: bool = False) -> None:
        """Refuse a signal that would make the objective wrong without anybody noticing.

        Args:
            signal: The teacher's signal.
            rows: Ids of the student's vocabulary.
            biased: Whether a biased signal is wanted all the same.

        Raises:
            SignalError: As in :meth:`require`.
            VocabularyMismatch: The signal speaks of another number of ids than the student has. Listed ids are looked at on
                the CPU only.
        """
        self.require(signal.kind, biased=biased)
        if isinstance(signal, (SparseSignal, CoarseSignal)):
            # On a GPU this would wait for all that is under way: there the training loop asks before it carries a batch over.
            if signal.ids.device.type == "cpu" and signal.ids.numel() and int(signal.ids.max()) >= rows:
                raise VocabularyMismatch(
                    f"The teacher's signal names id {int(signal.ids.max())}, and the student has {rows} ids.",
                    "Project the signal through the student's vocabulary map, or use a student with the same tokenizer.",
                )
        elif signal.logprobs.shape[1] != rows:
            raise VocabularyMismatch(
                f"The teacher's signal has {signal.logprobs.shape[1]} ids, and the student has {rows}.",
                "Project the signal through the student's vocabulary map, or use a student with the same tokenizer.",
            )

    @abstractmethod
    def chunk(self, logprobs: torch.Tensor, signal: Signal) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses and gradient of a chunk.

        Args:
            logprobs: The student's log-probabilities at the objective's temperature, [C, V] float32. The objective may
                overwrite them.
            signal: The teacher's signal of the same C positions. At those that it marks as certain the caller puts
                cross-entropy in place of what is returned.

        Returns:
            The losses [C] in nats, and the gradient [C, V] of their sum with respect to logits / temperature.
        """


def dense(signal: Signal, name: str) -> torch.Tensor:
    """The log-probabilities of a dense signal, [C, V]; ``name`` is the objective that asks.

    Raises:
        SignalError: The signal is sparse.
    """
    if not isinstance(signal, DenseSignal):
        raise SignalError(f"The objective `{name}` needs a dense signal.", "Capture with `codec: {kind: dense}`.")
    return signal.logprobs


def rows_of(signal: Signal, start: int, stop: int) -> Signal:
    """Positions ``start`` to ``stop`` of a signal."""
    return signal.rows(start, stop)
