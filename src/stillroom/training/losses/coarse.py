"""Divergences of a coarse signal: K ids each by itself, and all others as one event.

Legend: C positions of a chunk, V ids of the student's vocabulary, K entries per position, E = K + 1 events.

Let P be the teacher's probabilities of the events and Q the student's. For any loss L(Q), the gradient with respect to the
student's logits z is, with h = Q ∂L/∂Q of the event that an id belongs to: ``h − q Σh`` at a listed id, and
``(q / Q) (h − Q Σh)`` at an id among all others. A constant added to ∂L/∂Q changes nothing.

The others' mass Q and their shares q / Q of it are taken from logarithms: a student that is sure of the listed ids gives all
others a mass that a float32 does not hold, and must still learn which of them to raise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from stillroom.signals.signal import CoarseSignal

Divergence = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From P, log P, Q and log Q of the events, [C, E] each, to the losses [C] and h = Q ∂L/∂Q [C, E]. Where P is 0, log P is
-inf; at an entry that fills a list P and Q are 0, log P and log Q are -inf, and both results have to be finite."""


def coarse_chunk(
    logprobs: torch.Tensor, signal: CoarseSignal, divergence: Divergence
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [C] and gradient [C, V] of a chunk: :meth:`stillroom.training.losses.objective.Objective.chunk`.

    Args:
        logprobs: The student's log-probabilities, [C, V]; they are overwritten.
        signal: The teacher's signal.
        divergence: Compares the events.
    """
    # 1. Events.
    own = signal.listed_of(logprobs)
    others, others_log = signal.others_of(logprobs)
    teacher_log = torch.cat([signal.logprobs.to(own.dtype), signal.rest.to(own.dtype).log()[:, None]], dim=1)
    student_log = torch.cat([own, others_log], dim=1)
    # 2. The divergence, and its derivative by the student's events.
    student_mass = student_log.exp()
    losses, pull = divergence(teacher_log.exp(), teacher_log, student_mass, student_log)
    # 3. Back to the logits.
    pull = pull - student_mass * pull.sum(1, keepdim=True)
    gradient = others.sub_(others_log).exp_().mul_(pull[:, -1:])
    return losses, gradient.scatter_add_(1, signal.ids, pull[:, :-1])
