"""Total variation distance."""

from __future__ import annotations

import torch

from stillroom.signals.signal import CoarseSignal, Signal
from stillroom.training.losses.coarse import coarse_chunk
from stillroom.training.losses.objective import Objective, dense


class TotalVariation(Objective):
    """``½ Σ |p − q|``, between 0 and 1 a token (Wen et al. 2023, arXiv 2307.15190).

    With ``s = sign(q − p)`` the gradient is ``½ q (s − Σ q s)``.
    """

    name = "total_variation"
    linear = False
    coarse = True

    def chunk(self, logprobs: torch.Tensor, signal: Signal) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Objective.chunk`."""
        if isinstance(signal, CoarseSignal):
            return coarse_chunk(logprobs, signal, total_variation_of_events)
        student = logprobs.exp()
        difference = student - dense(signal, self.name).exp()
        losses = 0.5 * difference.abs().sum(1)
        sign = difference.sign_()
        return losses, student.mul_(sign - (student * sign).sum(1, keepdim=True)).mul_(0.5)


def total_variation_of_events(
    teacher: torch.Tensor,
    teacher_log: torch.Tensor,  # noqa: ARG001
    student: torch.Tensor,
    student_log: torch.Tensor,  # noqa: ARG001
) -> tuple[torch.Tensor, torch.Tensor]:
    """``½ Σ |P − Q|``: see :data:`stillroom.training.losses.coarse.Divergence`."""
    difference = student - teacher
    return 0.5 * difference.abs().sum(1), 0.5 * student * difference.sign()
