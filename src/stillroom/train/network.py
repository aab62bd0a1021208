"""The student and its loss as one module, so that one call runs a step on any device. Knows nothing of files."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from stillroom.errors import UnsupportedModel
from stillroom.teacher.forward import hidden_states, output_head
from stillroom.train.batches import Batch
from stillroom.train.losses.fused import FusedLoss, Loss


class LossNetwork(nn.Module):
    """A causal language model followed by the fused loss.

    Args:
        model: A Hugging Face causal language model.
        dtype: Format of the matrix products; float32 weights stay float32.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        dropped = [name for name, module in model.named_modules() if isinstance(module, nn.Dropout) and module.p > 0]
        if dropped:
            raise UnsupportedModel(
                f"The student has dropout ({dropped[0]}), with which a resumed run would differ from an uninterrupted one.",
                "Set the dropout keys of its config to 0.",
            )

    def forward(self, batch: Batch, loss: FusedLoss, denominator: float) -> Loss:
        """Loss of a batch; see :class:`FusedLoss`."""
        device = batch.ids.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            hidden = hidden_states(self.model, batch.ids, batch.positions)
        flat = hidden.flatten(0, 1)
        if batch.rows.shape[0] != flat.shape[0]:
            flat = flat.index_select(0, batch.rows)
        return loss(flat.to(self.dtype), output_head(self.model), batch.targets, batch.signal, denominator)
