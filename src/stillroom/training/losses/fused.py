"""The fused loss: from hidden states and the output matrix to losses and gradients, in chunks of positions.

[positions × vocabulary] never exists: a chunk's logits are made, turned into losses and gradients in the forward pass,
and dropped.

Legend: N positions, C positions of a chunk, H hidden size, V rows of the output matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from stillroom.core.errors import SignalError
from stillroom.models.forward import Head
from stillroom.signals.signal import Chunks, DenseSignal, Signal
from stillroom.training.losses.chunks import chunk_losses
from stillroom.training.losses.cross_entropy import cross_entropy_chunk
from stillroom.training.losses.objective import Objective, rows_of


@dataclass(frozen=True)
class FusedLoss:
    """What to compute from hidden states.

    Attributes:
        objective: Compares the student with the teacher; None trains on the text alone.
        cross_entropy_weight: Weight of cross-entropy on the text, 0 to 1; the objective has the rest.
        temperature: Divides the logits of both distributions of the objective, T; cross-entropy is always at 1. The
            objective's loss counts T² times (Hinton, Vinyals & Dean 2015, arXiv 1503.02531, section 2): its gradient falls
            with 1/T², and so both keep their weights at any T.
        used: Rows of the output matrix that are real ids; the others have probability zero. None: all.
        chunk: Positions whose logits exist at the same time.
        biased: Whether a biased signal is wanted; otherwise it is refused.
        chunk_weight: Weight of the loss on chunks, beside the objective's.
        chunk_temperature: τ of that loss (:mod:`stillroom.training.losses.chunks`).

    Where the signal marks a position as certain, the objective's loss is the cross-entropy on the text, at temperature 1:
    there the text teaches, not the teacher, and a divergence such as reverse KL from certainty would be infinite. Where a
    dense signal rules out every id, it says nothing, and the objective's loss is 0, whatever the objective.
    """

    objective: Objective | None
    cross_entropy_weight: float = 0.0
    temperature: float = 1.0
    used: int | None = None
    chunk: int = 512
    biased: bool = False
    chunk_weight: float = 1.0
    chunk_temperature: float = 100.0

    def __call__(
        self,
        hidden: torch.Tensor,
        head: Head,
        targets: torch.Tensor | None = None,
        signal: Signal | None = None,
        denominator: float | None = None,
        chunks: Chunks | None = None,
    ) -> Loss:
        """Loss of N positions.

        Args:
            hidden: Hidden states, [N, H], float32 or bfloat16 (products are made in this dtype, sums in float32).
            head: The output layer.
            targets: Ids of the text, [N]; needed for cross-entropy, and measured whenever given.
            signal: The teacher's signal of the N positions; needed with an objective.
            denominator: What the summed loss is divided by; N unless given.
            chunks: What is compared as wholes; it belongs to the objective, and needs the text's ids.

        Raises:
            SignalError: Signal and objective, or lengths, do not fit together.
            VocabularyMismatch: Signal and output matrix have different vocabularies.
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
            self.objective.check(signal, rows, biased=self.biased)
        certain = signal is not None and signal.certain is not None
        if targets is None and (certain or self.objective is None or self.cross_entropy_weight > 0):
            raise SignalError("Cross-entropy needs the text's ids.", "Give `targets`.")
        if targets is None and chunks is not None:
            raise SignalError("Chunks are stretches of text, whose ids are needed.", "Give `targets`.")
        wholes = chunks if self.objective is not None and self.chunk_weight > 0 else None
        divisor = denominator or float(max(1, hidden.shape[0]))
        total, distances, cross_entropies = _FusedLoss.apply(  # type: ignore[no-untyped-call]
            hidden, head.matrix, head.bias, self, head, targets, signal, divisor, wholes
        )
        return Loss(total, distances, cross_entropies)


@dataclass(frozen=True)
class Loss:
    """A loss and what it is made of.

    Attributes:
        value: The scalar to differentiate: the weighted sum over positions, divided by the denominator.
        distances: The objective's loss per position, without the factor T², [N], nats (empty without an objective).
        cross_entropies: Cross-entropy per position, [N], nats (empty where it was not asked for).
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
        chunks: Chunks | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        needs = [bool(needed) for needed in ctx.needs_input_grad[:3]]
        count = hidden.shape[0]
        weights = matrix.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if needs[0] else None
        grad_matrix = torch.zeros_like(matrix, dtype=torch.float32) if needs[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs[2] else None
        distance_chunks: list[torch.Tensor] = []
        cross_entropy_chunks: list[torch.Tensor] = []
        # 0. What is compared as wholes needs the student's log-probabilities of all of a chunk before any gradient.
        of_chunks = pull = None
        if chunks is not None and targets is not None:
            of_chunks, pull = _wholes(plan, head, hidden, weights, targets, chunks)
        for start in range(0, count, plan.chunk):
            # 1. Losses of a chunk, and the gradient of their weighted sum with respect to its logits [C, V].
            stop = min(start + plan.chunk, count)
            hidden_chunk = hidden[start:stop]
            grad_logits = _chunk(
                plan,
                head,
                functional.linear(hidden_chunk, weights).float(),
                None if targets is None else targets[start:stop],
                None if signal is None else rows_of(signal, start, stop),
                distance_chunks,
                cross_entropy_chunks,
                any(needs),
                None if pull is None else pull[start:stop],
            )
            if grad_logits is None:
                continue
            grad_logits.mul_(1.0 / denominator)
            # 2. From the logits back to what made them: hidden @ matrix.T + bias.
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            grad_logits = grad_logits.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad_logits, weights, out=grad_hidden[start:stop])
            if grad_matrix is not None:
                if grad_logits.dtype == torch.float32:
                    grad_matrix.addmm_(grad_logits.T, hidden_chunk)
                else:
                    grad_matrix += grad_logits.T @ hidden_chunk
        # 3. The weighted sum over all positions.
        empty = hidden.new_zeros(0, dtype=torch.float32)
        distances = torch.cat(distance_chunks) if distance_chunks else empty
        if of_chunks is not None:
            distances = distances + of_chunks
        cross_entropies = torch.cat(cross_entropy_chunks) if cross_entropy_chunks else empty
        ce_weight = plan.cross_entropy_weight if plan.objective is not None else 1.0
        total = empty.sum()
        if plan.objective is not None and ce_weight < 1:
            total = total + (1.0 - ce_weight) * _weighted(distances, plan.temperature, signal)
        if ce_weight > 0:
            total = total + ce_weight * cross_entropies.sum()
        ctx.grads = (
            grad_hidden,
            None if grad_matrix is None else grad_matrix.to(matrix.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        ctx.mark_non_differentiable(distances, cross_entropies)
        return total / denominator, distances, cross_entropies

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        scaled = [None if stored is None else stored.mul_(grad.to(stored.dtype)) for stored in ctx.grads]
        ctx.grads = (None, None, None)
        return (*scaled, None, None, None, None, None, None)


def _weighted(distances: torch.Tensor, temperature: float, signal: Signal | None) -> torch.Tensor:
    """The sum of the objective's losses [N], each T² times; those that are the text's own at temperature 1, once."""
    if signal is None or signal.certain is None or temperature == 1.0:
        return temperature**2 * distances.sum()
    return torch.where(signal.certain, distances, temperature**2 * distances).sum()


def _wholes(
    plan: FusedLoss,
    head: Head,
    hidden: torch.Tensor,
    weights: torch.Tensor,
    targets: torch.Tensor,
    chunks: Chunks,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of whole chunks, each at its last position, [N]; and for each position the weight of its text's cross-entropy
    in the gradient, [N] (0 where no chunk is).
    """
    inside = (chunks.number >= 0).nonzero().squeeze(1)
    number = chunks.number[inside]
    text = torch.empty(len(inside), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(inside), plan.chunk):
        rows = inside[start : start + plan.chunk]
        logits, _ = _finished(head, functional.linear(hidden[rows], weights).float(), False)
        logits = logits[:, : plan.used or logits.shape[1]]
        chosen = logits.gather(1, targets[rows][:, None]).squeeze(1)
        text[start : start + plan.chunk] = chosen - torch.logsumexp(logits, dim=1)
    count = len(chunks.logprobs)
    student = text.new_zeros(count).index_add_(0, number, text)
    losses, derivative = chunk_losses(chunks.logprobs.to(text.dtype), student, plan.chunk_temperature)
    last = torch.full((count,), -1, device=hidden.device).scatter_reduce_(0, number, inside, "amax")
    at_last = text.new_zeros(len(targets))
    there = last >= 0
    at_last[last[there]] = plan.chunk_weight * losses[there]
    pull = text.new_zeros(len(targets))
    pull[inside] = -plan.chunk_weight * derivative[number]
    return at_last, pull


def _finished(head: Head, logits: torch.Tensor, needs_grad: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``hidden @ matrix.T`` with bias, scale and soft cap (z → cap · tanh(z / cap)), and the soft cap's derivative where it
    is asked for; the logits are overwritten.
    """
    if head.bias is not None:
        logits += head.bias.float()
    if head.scale != 1.0:
        logits *= head.scale
    if head.softcap is None:
        return logits, None
    softcapped = torch.tanh_(logits.div_(head.softcap))
    derivative = 1.0 - softcapped.square() if needs_grad else None
    return softcapped.mul_(head.softcap), derivative


def _chunk(
    plan: FusedLoss,
    head: Head,
    logits: torch.Tensor,
    targets: torch.Tensor | None,
    signal: Signal | None,
    distances: list[torch.Tensor],
    cross_entropies: list[torch.Tensor],
    needs_grad: bool,
    pull: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Losses of a chunk are appended; returns the gradient with respect to ``hidden @ matrix.T``, [C, V].

    Args:
        plan: What to compute.
        head: The output layer, for its bias, scale and soft cap.
        logits: ``hidden @ matrix.T``, [C, V] float32; overwritten.
        targets: Ids of the text, [C].
        signal: The teacher's signal of the C positions.
        distances: Takes the objective's losses, [C].
        cross_entropies: Takes the cross-entropies, [C].
        needs_grad: Whether a gradient is wanted; without it the result is None.
        pull: The weight of each position's cross-entropy in the gradient of what is compared as wholes, [C].
    """
    # 1. The model's logits; the rows behind `used` are padding.
    logits, dsoftcap = _finished(head, logits, needs_grad)
    used = plan.used or logits.shape[1]
    valid_logits = logits[:, :used]
    ce_weight = plan.cross_entropy_weight if plan.objective is not None else 1.0
    grad: torch.Tensor | None = None
    logprobs: torch.Tensor | None = None
    # 2. Cross-entropy on the text, at temperature 1; where it has no weight it is only measured.
    if targets is not None:
        if ce_weight > 0 and needs_grad:
            losses, grad = cross_entropy_chunk(torch.log_softmax(valid_logits, dim=1), targets)
            grad = grad if ce_weight == 1.0 else grad.mul_(ce_weight)
        elif plan.objective is None or plan.temperature != 1.0:
            losses = torch.logsumexp(valid_logits, dim=1) - valid_logits.gather(1, targets[:, None]).squeeze(1)
        else:
            # The objective needs the same log-probabilities.
            logprobs = torch.log_softmax(valid_logits, dim=1)
            losses = -logprobs.gather(1, targets[:, None]).squeeze(1)
        cross_entropies.append(losses)
    # 3. The objective, on logits divided by the temperature T: its gradient with respect to the logits is as much smaller,
    #    and it counts T² times.
    if plan.objective is not None and signal is not None:
        if logprobs is None:
            scaled_logits = valid_logits if plan.temperature == 1.0 else valid_logits / plan.temperature
            logprobs = torch.log_softmax(scaled_logits, dim=1)
        losses, objective_grad = plan.objective.chunk(logprobs, signal)
        if isinstance(signal, DenseSignal):
            silent = signal.silent
            losses = losses.masked_fill(silent, 0.0)
            if needs_grad:
                objective_grad.masked_fill_(silent[:, None], 0.0)
        factor = (1.0 - ce_weight) * plan.temperature
        if needs_grad and factor != 1.0:
            objective_grad.mul_(factor)
        # Where the signal is certainty, the text teaches.
        if signal.certain is not None and targets is not None:
            if logits.device.type == "cpu":
                certain = signal.certain.nonzero().squeeze(1)
                text_losses, text_grad = cross_entropy_chunk(
                    torch.log_softmax(valid_logits[certain], dim=1), targets[certain]
                )
                losses = losses.index_copy(0, certain, text_losses)
                if needs_grad:
                    objective_grad.index_copy_(0, certain, text_grad.mul_(1.0 - ce_weight))
            else:
                # To count them would wait for the device: another softmax of the chunk is cheaper.
                text_losses, text_grad = cross_entropy_chunk(torch.log_softmax(valid_logits, dim=1), targets)
                losses = torch.where(signal.certain, text_losses, losses)
                if needs_grad:
                    text_grad.mul_(1.0 - ce_weight)
                    objective_grad = torch.where(signal.certain[:, None], text_grad, objective_grad)
        distances.append(losses)
        if needs_grad:
            grad = objective_grad if grad is None else grad.add_(objective_grad)
            if pull is not None and targets is not None:
                rows = pull.nonzero().squeeze(1)
                _, text_grad = cross_entropy_chunk(torch.log_softmax(valid_logits[rows], dim=1), targets[rows])
                grad.index_add_(0, rows, text_grad.mul_(((1.0 - ce_weight) * pull[rows])[:, None]))
    if not needs_grad or grad is None:
        return None
    # 4. Back through padding, soft cap and scale.
    if used < logits.shape[1]:
        grad = functional.pad(grad, (0, logits.shape[1] - used))
    if dsoftcap is not None:
        grad.mul_(dsoftcap)
    if head.scale != 1.0:
        grad.mul_(head.scale)
    return grad
