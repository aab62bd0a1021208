"""Forward KL, KL(teacher ‖ student)."""

from __future__ import annotations

import torch

from stillroom.signals.signal import Signal, SparseSignal
from stillroom.training.losses.objective import Objective


class ForwardKL(Objective):
    """``Σ p (log p − log q)`` in nats a token (Hinton, Vinyals & Dean 2015, arXiv 1503.02531, without the factor T²).

    With a dense signal the loss is the divergence itself. With a sparse one it is the cross-entropy ``−Σ w log q`` to the
    estimate w: the teacher's entropy, which no parameter of the student changes, is left out. Both have the gradient
    ``(Σ w) q − w``.
    """

    name = "forward_kl"
    linear = True

    def chunk(self, logprobs: torch.Tensor, signal: Signal) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Objective.chunk`."""
        if isinstance(signal, SparseSignal):
            losses = -(signal.weights * logprobs.gather(1, signal.ids)).sum(1)
            gradient = logprobs.exp_().mul_(signal.weights.sum(1, keepdim=True))
            gradient.scatter_add_(1, signal.ids, -signal.weights)
            return losses, gradient
        teacher = signal.logprobs.exp()
        # 0 · log 0 counts as 0: an id that the teacher rules out asks nothing of the student.
        losses = torch.where(teacher > 0, teacher * (signal.logprobs - logprobs), 0.0).sum(1)
        return losses, logprobs.exp_().mul_(teacher.sum(1, keepdim=True)).sub_(teacher)
