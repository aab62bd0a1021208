"""The student and its loss as one module, so that one call runs a step on any device."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from stillroom.core.errors import UnsupportedModel
from stillroom.models.forward import hidden_states, output_head
from stillroom.signals.batches import Batch
from stillroom.training.losses.fused import FusedLoss, Loss

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel


class LossNetwork(nn.Module):
    """A causal language model followed by the fused loss.

    In bfloat16 a working copy of the weights computes (Micikevicius et al. 2018, arXiv 1710.03740, section 3.1): it is
    rounded once a step, where autocast rounds weights and activations in every layer. The model's own weights, their
    gradients and the optimizer's state stay float32.

    Args:
        model: A Hugging Face causal language model, float32; what the optimizer changes.
        dtype: Format that forward and backward pass compute in.
    """

    def __init__(self, model: CausalModel, dtype: torch.dtype) -> None:
        super().__init__()
        dropped = [name for name, module in model.named_modules() if isinstance(module, nn.Dropout) and module.p > 0]
        if dropped:
            raise UnsupportedModel(
                f"The student has dropout ({dropped[0]}), with which a resumed run would differ from an uninterrupted one.",
                "Set the dropout keys of its config to 0.",
            )
        self.dtype = dtype
        own = list(model.parameters())
        worker = model
        if any(parameter.dtype != dtype for parameter in own):
            worker = copy.deepcopy(model)
            # Buffers, such as the frequencies of rotary embeddings, keep their format.
            for parameter in worker.parameters():
                parameter.data = parameter.data.to(dtype)
        self.worker = worker
        working = list(worker.parameters())
        self._pairs = [(a, b) for a, b in zip(own, working, strict=True) if a is not b]

    def forward(self, batch: Batch, loss: FusedLoss, denominator: float) -> Loss:
        """Loss of a batch; see :class:`FusedLoss`."""
        flat = hidden_states(self.worker, batch.ids, batch.positions).flatten(0, 1)
        if batch.rows.shape[0] != flat.shape[0]:
            flat = flat.index_select(0, batch.rows)
        return loss(flat, output_head(self.worker), batch.targets, batch.signal, denominator)

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the model's weights into the working copy; needed whenever they have changed."""
        if self._pairs:
            torch._foreach_copy_([worker for _, worker in self._pairs], [own for own, _ in self._pairs])

    @torch.no_grad()
    def collect(self) -> None:
        """Add the working copy's gradients to those of the model's weights, in float32, and forget them."""
        grads = [(own.grad, worker.grad) for own, worker in self._pairs]
        added = [(grad, new) for grad, new in grads if grad is not None and new is not None]
        if added:
            torch._foreach_add_([grad for grad, _ in added], [new.float() for _, new in added])
        del grads, added  # what the working copy's take is free as soon as they are forgotten
        for own, worker in self._pairs:
            if own.grad is None and worker.grad is not None:
                own.grad = worker.grad.to(own.dtype)
            worker.grad = None
