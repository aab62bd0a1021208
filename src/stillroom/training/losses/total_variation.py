"""Total variation distance."""

from __future__ import annotations

import torch

from stillroom.signals.signal import Signal
from stillroom.training.losses.objective import Objective, dense


class TotalVariation(Objective):
    """``½ Σ |p − q|``, between 0 and 1 a token (Wen et al. 2023, arXiv 2307.15190).

    With ``s = sign(q − p)`` the gradient is ``½ q (s − Σ q s)``.
    """

    name = "total_variation"
    linear = False

    def chunk(self, logprobs: torch.Tensor, signal: Signal) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Objective.chunk`."""
        student = logprobs.exp()
        difference = student - dense(signal, self.name).exp()
        losses = 0.5 * difference.abs().sum(1)
        sign = difference.sign_()
        return losses, student.mul_(sign - (student * sign).sum(1, keepdim=True)).mul_(0.5)
