"""Forward KL, KL(teacher ‖ student)."""

from __future__ import annotations

import torch

from stillroom.signals.signal import CoarseSignal, Signal, SparseSignal
from stillroom.training.losses.coarse import coarse_chunk
from stillroom.training.losses.objective import Objective


class ForwardKL(Objective):
    """``Σ p (log p − log q)`` in nats per token (Hinton, Vinyals & Dean 2015, arXiv 1503.02531).

    With a dense signal the loss is the divergence itself. With a sample it is the cross-entropy ``−Σ w log q`` to the
    estimate w: the teacher's entropy, which no parameter of the student changes, is left out. Both have the gradient
    ``(Σ w) q − w``.

    With a partial signal, the probabilities w of some ids and r of all others together, the loss is the divergence of these
    events, ``Σ w (log w − log q) + r (log r − log Q)``, where the student gives the others Q. Its gradient is ``q − w`` at
    the listed ids and ``q (1 − r / Q)`` at the others.
    """

    name = "forward_kl"
    linear = True
    partial = True
    coarse = True

    def chunk(self, logprobs: torch.Tensor, signal: Signal) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Objective.chunk`."""
        if isinstance(signal, SparseSignal) and not signal.unbiased:
            return coarse_chunk(logprobs, signal.coarse(), forward_kl_of_events)
        if isinstance(signal, CoarseSignal):
            return coarse_chunk(logprobs, signal, forward_kl_of_events)
        if isinstance(signal, SparseSignal):
            # What fills a list has weight 0, and may name an id that the student rules out.
            losses = -torch.where(signal.weights > 0, signal.weights * logprobs.gather(1, signal.ids), 0.0).sum(1)
            gradient = logprobs.exp_().mul_(signal.weights.sum(1, keepdim=True))
            gradient.scatter_add_(1, signal.ids, -signal.weights)
            return losses, gradient
        teacher = signal.logprobs.exp()
        # 0 · log 0 counts as 0: an id that the teacher rules out asks nothing of the student.
        losses = torch.where(teacher > 0, teacher * (signal.logprobs - logprobs), 0.0).sum(1)
        return losses, logprobs.exp_().mul_(teacher.sum(1, keepdim=True)).sub_(teacher)


def forward_kl_of_events(
    teacher: torch.Tensor,
    teacher_log: torch.Tensor,
    student: torch.Tensor,  # noqa: ARG001
    student_log: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``Σ P (log P − log Q)``: see :data:`stillroom.training.losses.coarse.Divergence`."""
    return torch.where(teacher > 0, teacher * (teacher_log - student_log), 0.0).sum(1), -teacher
