"""Minus the logarithm of the share of a drafter's tokens that its target accepts."""

from __future__ import annotations

import math

import torch

from stillroom.signals.signal import CoarseSignal, Signal
from stillroom.training.losses.coarse import coarse_chunk
from stillroom.training.losses.objective import Objective, dense

LOG_LEAST = math.log(1e-38)
"""Stands for the logarithm of an acceptance of 0, where teacher and student have no id in common: so the loss is finite."""


class LogAcceptance(Objective):
    """``−log Σ min(p, q)``, the acceptance of speculative decoding (Leviathan, Kalman & Matias 2023, arXiv 2211.17192) as a
    loss (LK losses, arXiv 2602.23881).

    The acceptance A is one minus the total variation distance; the gradient is that objective's divided by A, so that positions
    with little acceptance count more: ``h − q Σ h`` with ``h = −1[q < p] q / A``. Both are taken from logarithms, so that an
    acceptance too small for a float32 teaches as much as any other.
    """

    name = "log_acceptance"
    linear = False
    coarse = True

    def chunk(self, logprobs: torch.Tensor, signal: Signal) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Objective.chunk`."""
        if isinstance(signal, CoarseSignal):
            return coarse_chunk(logprobs, signal, log_acceptance_of_events)
        losses, pull = _losses_and_pull(dense(signal, self.name), logprobs)
        return losses, pull.sub_(logprobs.exp_().mul_(pull.sum(1, keepdim=True)))


def log_acceptance_of_events(
    teacher: torch.Tensor,  # noqa: ARG001
    teacher_log: torch.Tensor,
    student: torch.Tensor,  # noqa: ARG001
    student_log: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``−log Σ min(P, Q)``: see :data:`stillroom.training.losses.coarse.Divergence`."""
    return _losses_and_pull(teacher_log, student_log)


def _losses_and_pull(teacher_log: torch.Tensor, student_log: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [C] and h [C, V], from log-probabilities."""
    accepted = torch.minimum(teacher_log, student_log)
    total = accepted.logsumexp(1, keepdim=True)
    total.masked_fill_(total == float("-inf"), LOG_LEAST)
    pull = accepted.sub_(total).exp_().neg_().masked_fill_(student_log >= teacher_log, 0.0)
    return -total.squeeze(1), pull
