"""Reverse KL, KL(student ‖ teacher)."""

from __future__ import annotations

import torch

from stillroom.signals.signal import Signal
from stillroom.training.losses.objective import Objective, dense

LOG_FLOOR = -1e4
"""Stands for log 0 of a teacher that rules an id out: large, and its product with a vanishing q stays finite."""


class ReverseKL(Objective):
    """``Σ q (log q − log p)`` in nats a token (MiniLLM, Gu et al. 2024, arXiv 2306.08543, at every token).

    With ``d = log q − log p`` the gradient is ``q (d − Σ q d)``.
    """

    name = "reverse_kl"
    linear = False

    def chunk(self, logprobs: torch.Tensor, signal: Signal) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Objective.chunk`."""
        student = logprobs.exp()
        difference = torch.where(student > 0, logprobs - dense(signal, self.name).clamp_min(LOG_FLOOR), 0.0)
        losses = (student * difference).sum(1)
        return losses, student.mul_(difference.sub_(losses[:, None]))
