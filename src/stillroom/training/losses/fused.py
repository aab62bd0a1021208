"""The fused loss: from hidden states and the output matrix to losses and gradients, in chunks of positions.

[positions × vocabulary] never exists: a chunk's logits are made, turned into losses and gradients in the forward pass,
and dropped.

Legend: N positions, C positions of a chunk, H hidden width, V rows of the output matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from stillroom.core.errors import SignalError
from stillroom.models.forward import Head
from stillroom.signals.signal import Signal
from stillroom.training.losses.cross_entropy import cross_entropy_chunk
from stillroom.training.losses.objective import Objective, rows_of


@dataclass(frozen=True)
class FusedLoss:
    """What to compute from hidden states.

    Attributes:
        objective: Pulls the student to the teacher; None trains on the text alone.
        cross_entropy_weight: Share of cross-entropy on the text, 0 to 1; the objective has the rest.
        temperature: Bends both distributions of the objective; cross-entropy is always at 1.
        used: Rows of the output matrix that are real ids; the others have probability zero. None: all.
        chunk: Positions whose logits exist at the same time.
    """

    objective: Objective | None
    cross_entropy_weight: float = 0.0
    temperature: float = 1.0
    used: int | None = None
    chunk: int = 512

    def __call__(
        self,
        hidden: torch.Tensor,
        head: Head,
        targets: torch.Tensor | None = None,
        signal: Signal | None = None,
        denominator: float | None = None,
    ) -> Loss:
        """Loss of N positions.

        Args:
            hidden: Hidden states, [N, H], float32 or bfloat16 (products are made in this format, sums in float32).
            head: The output layer.
            targets: Ids of the text, [N]; needed for cross-entropy, and measured whenever given.
            signal: The teacher's signal of the N positions; needed with an objective.
            denominator: What the summed loss is divided by; N unless given.

        Raises:
            SignalError: Signal and objective, or lengths, do not fit together.
            VocabularyMismatch: Signal and output matrix speak of different vocabularies.
        """
        rows = self.used or head.matrix.shape[0]
        if self.objective is not None:
            if signal is None:
                raise SignalError(f"The objective `{self.objective.name}` needs a teacher's signal.", "Give one.")
            if len(signal) != hidden.shape[0]:
                raise SignalError(
                    f"The signal has {len(signal)} positions and the hidden states have {hidden.shape[0]}.",
                    "Capture the same sequences again.",
                )
            self.objective.check(signal, rows)
        if targets is None and (self.objective is None or self.cross_entropy_weight > 0):
            raise SignalError("Cross-entropy needs the text's ids.", "Give `targets`.")
        value, distance, entropy = _FusedLoss.apply(  # type: ignore[no-untyped-call]
            hidden, head.matrix, head.bias, self, head, targets, signal, denominator or float(max(1, hidden.shape[0]))
        )
        return Loss(value, distance, entropy)


@dataclass(frozen=True)
class Loss:
    """A loss and what it is made of.

    Attributes:
        value: The scalar to differentiate: the weighted sum over positions, divided by the denominator.
        distances: The objective's loss a position, [N], nats (empty without an objective).
        cross_entropies: Cross-entropy a position, [N], nats (empty where it was not asked for).
    """

    value: torch.Tensor
    distances: torch.Tensor
    cross_entropies: torch.Tensor


class _FusedLoss(torch.autograd.Function):
    """Computes the gradient in the forward pass; the backward pass only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        matrix: torch.Tensor,
        bias: torch.Tensor | None,
        plan: FusedLoss,
        head: Head,
        targets: torch.Tensor | None,
        signal: Signal | None,
        denominator: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        needs = [bool(needed) for needed in ctx.needs_input_grad[:3]]
        count = hidden.shape[0]
        weights = matrix.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if needs[0] else None
        grad_matrix = torch.zeros_like(matrix, dtype=torch.float32) if needs[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs[2] else None
        distances: list[torch.Tensor] = []
        entropies: list[torch.Tensor] = []
        for start in range(0, count, plan.chunk):
            stop = min(start + plan.chunk, count)
            part = hidden[start:stop]
            gradient = _chunk(
                plan,
                head,
                functional.linear(part, weights).float(),
                None if targets is None else targets[start:stop],
                None if signal is None else rows_of(signal, start, stop),
                distances,
                entropies,
                any(needs),
            )
            if gradient is None:
                continue
            gradient.mul_(1.0 / denominator)
            if grad_bias is not None:
                grad_bias += gradient.sum(0)
            narrow = gradient.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(narrow, weights, out=grad_hidden[start:stop])
            if grad_matrix is not None:
                if narrow.dtype == torch.float32:
                    grad_matrix.addmm_(narrow.T, part)
                else:
                    grad_matrix += narrow.T @ part
        empty = hidden.new_zeros(0, dtype=torch.float32)
        distance = torch.cat(distances) if distances else empty
        entropy = torch.cat(entropies) if entropies else empty
        share = plan.cross_entropy_weight if plan.objective is not None else 1.0
        total = empty.sum()
        if plan.objective is not None and share < 1:
            total = total + (1.0 - share) * distance.sum()
        if share > 0:
            total = total + share * entropy.sum()
        ctx.grads = (
            grad_hidden,
            None if grad_matrix is None else grad_matrix.to(matrix.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        ctx.mark_non_differentiable(distance, entropy)
        return total / denominator, distance, entropy

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        scaled = [None if value is None else value.mul_(grad.to(value.dtype)) for value in ctx.grads]
        ctx.grads = (None, None, None)
        return (*scaled, None, None, None, None, None)


def _chunk(
    plan: FusedLoss,
    head: Head,
    logits: torch.Tensor,
    targets: torch.Tensor | None,
    signal: Signal | None,
    distances: list[torch.Tensor],
    entropies: list[torch.Tensor],
    need_gradient: bool,
) -> torch.Tensor | None:
    """Losses of a chunk are appended; returns the gradient with respect to ``hidden @ matrix.T``, [C, V]."""
    if head.bias is not None:
        logits += head.bias.float()
    if head.scale != 1.0:
        logits *= head.scale
    slope = None
    if head.softcap is not None:
        bent = torch.tanh_(logits.div_(head.softcap))
        slope = 1.0 - bent.square() if need_gradient else None
        logits = bent.mul_(head.softcap)
    used = plan.used or logits.shape[1]
    real = logits[:, :used]
    share = plan.cross_entropy_weight if plan.objective is not None else 1.0
    gradient: torch.Tensor | None = None
    if targets is not None:
        if share > 0 and need_gradient:
            losses, gradient = cross_entropy_chunk(torch.log_softmax(real, dim=1), targets)
            gradient = gradient if share == 1.0 else gradient.mul_(share)
        else:
            losses = torch.logsumexp(real, dim=1) - real.gather(1, targets[:, None]).squeeze(1)
        entropies.append(losses)
    if plan.objective is not None and signal is not None:
        bent_logits = real if plan.temperature == 1.0 else real / plan.temperature
        losses, pull = plan.objective.chunk(torch.log_softmax(bent_logits, dim=1), signal)
        distances.append(losses)
        factor = (1.0 - share) / plan.temperature
        if need_gradient:
            if factor != 1.0:
                pull.mul_(factor)
            gradient = pull if gradient is None else gradient.add_(pull)
    if not need_gradient or gradient is None:
        return None
    if used < logits.shape[1]:
        gradient = functional.pad(gradient, (0, logits.shape[1] - used))
    if slope is not None:
        gradient.mul_(slope)
    if head.scale != 1.0:
        gradient.mul_(head.scale)
    return gradient
