"""Jensen-Shannon divergence."""

from __future__ import annotations

import math

import torch

from stillroom.signals.signal import CoarseSignal, Signal
from stillroom.training.losses.coarse import coarse_chunk
from stillroom.training.losses.objective import Objective, dense


class JensenShannon(Objective):
    """``½ KL(p ‖ m) + ½ KL(q ‖ m)`` with ``m = ½ (p + q)``, in nats per token (Agarwal et al. 2024, arXiv 2306.13649, β = ½).

    With ``d = log q − log m`` the gradient is ``½ q (d − Σ q d)``.
    """

    name = "jensen_shannon"
    linear = False
    coarse = True

    def chunk(self, logprobs: torch.Tensor, signal: Signal) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Objective.chunk`."""
        if isinstance(signal, CoarseSignal):
            return coarse_chunk(logprobs, signal, jensen_shannon_of_events)
        teacher_logprobs = dense(signal, self.name)
        middle = torch.logaddexp(logprobs, teacher_logprobs).sub_(math.log(2))
        teacher, student = teacher_logprobs.exp(), logprobs.exp()
        pulled = torch.where(student > 0, logprobs - middle, 0.0)
        student_part = (student * pulled).sum(1)
        teacher_part = torch.where(teacher > 0, teacher * (teacher_logprobs - middle), 0.0).sum(1)
        return 0.5 * (teacher_part + student_part), student.mul_(pulled.sub_(student_part[:, None])).mul_(0.5)


def jensen_shannon_of_events(
    teacher: torch.Tensor, teacher_log: torch.Tensor, student: torch.Tensor, student_log: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``½ Σ P log(P / M) + ½ Σ Q log(Q / M)``: see :data:`stillroom.training.losses.coarse.Divergence`."""
    middle = torch.logaddexp(teacher_log, student_log) - math.log(2)
    pull = torch.where(student > 0, 0.5 * student * (student_log - middle), 0.0)
    return pull.sum(1) + torch.where(teacher > 0, 0.5 * teacher * (teacher_log - middle), 0.0).sum(1), pull
