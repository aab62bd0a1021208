"""Minus the logarithm of the share of a drafter's tokens that its target accepts."""

from __future__ import annotations

import torch

from stillroom.signals.signal import CoarseSignal, Signal
from stillroom.training.losses.coarse import coarse_chunk
from stillroom.training.losses.objective import Objective, dense

LEAST = 1e-6
"""An acceptance is at least this, so that loss and gradient are finite."""


class LogAcceptance(Objective):
    """``−log Σ min(p, q)``, the acceptance of speculative decoding (Leviathan, Kalman & Matias 2023, arXiv 2211.17192) as a
    loss (LK losses, arXiv 2602.23881).

    The acceptance A is one minus the total variation distance; the gradient is that objective's divided by A, so that positions
    with little acceptance count more: ``q (g − Σ q g)`` with ``g = −1[q < p] / A``.
    """

    name = "log_acceptance"
    linear = False
    coarse = True

    def chunk(self, logprobs: torch.Tensor, signal: Signal) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Objective.chunk`."""
        if isinstance(signal, CoarseSignal):
            return coarse_chunk(logprobs, signal, log_acceptance_of_events)
        student, teacher = logprobs.exp(), dense(signal, self.name).exp()
        accepted = torch.minimum(student, teacher).sum(1).clamp_min(LEAST)
        pull = (student < teacher).to(student.dtype).div_(-accepted[:, None])
        return -accepted.log(), student.mul_(pull - (student * pull).sum(1, keepdim=True))


def log_acceptance_of_events(
    teacher: torch.Tensor,
    teacher_log: torch.Tensor,  # noqa: ARG001
    student: torch.Tensor,
    student_log: torch.Tensor,  # noqa: ARG001
) -> tuple[torch.Tensor, torch.Tensor]:
    """``−log Σ min(P, Q)``: see :data:`stillroom.training.losses.coarse.Divergence`."""
    accepted = torch.minimum(student, teacher).sum(1).clamp_min(LEAST)
    return -accepted.log(), -student * (student < teacher).to(student.dtype) / accepted[:, None]
