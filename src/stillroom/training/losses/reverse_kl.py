"""Reverse KL, KL(student ‖ teacher)."""

from __future__ import annotations

import math

import torch

from stillroom.signals.signal import CoarseSignal, Signal
from stillroom.training.losses.coarse import coarse_chunk
from stillroom.training.losses.objective import Objective, dense

LOG_FLOOR = math.log(1e-38)
"""Stands for the log-probability of an id that the teacher rules out, by which the divergence would be infinite: the least
that a float32 holds, and that a dense cache stores (87.5 nats)."""


class ReverseKL(Objective):
    """``Σ q (log q − log p)`` in nats per token (MiniLLM, Gu et al. 2024, arXiv 2306.08543, at every token).

    With ``d = log q − log p`` the gradient is ``q (d − Σ q d)``. A log p below ``LOG_FLOOR`` counts as that.
    """

    name = "reverse_kl"
    linear = False
    coarse = True

    def chunk(self, logprobs: torch.Tensor, signal: Signal) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Objective.chunk`."""
        if isinstance(signal, CoarseSignal):
            return coarse_chunk(logprobs, signal, reverse_kl_of_events)
        student = logprobs.exp()
        difference = torch.where(student > 0, logprobs - dense(signal, self.name).clamp_min(LOG_FLOOR), 0.0)
        losses = (student * difference).sum(1)
        return losses, student.mul_(difference.sub_(losses[:, None]))


def reverse_kl_of_events(
    teacher: torch.Tensor,  # noqa: ARG001
    teacher_log: torch.Tensor,
    student: torch.Tensor,
    student_log: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``Σ Q (log Q − log P)``: see :data:`stillroom.training.losses.coarse.Divergence`."""
    pull = torch.where(student > 0, student * (student_log - teacher_log.clamp_min(LOG_FLOOR)), 0.0)
    return pull.sum(1), pull
