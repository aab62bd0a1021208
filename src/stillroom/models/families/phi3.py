"""Phi-3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.models.families.family import NORMS_BEFORE, Family, GgufLayout

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import Phi3Config


def _phi3(writer: GGUFWriter, config: Phi3Config) -> None:
    writer.add_sliding_window(config.sliding_window or 0)


FAMILIES = (
    Family(
        "phi3",
        {
            "self_attn.qkv_proj": ("fused", "hidden"),
            "self_attn.o_proj": ("hidden", "queries"),
            "mlp.gate_up_proj": ("gated", "hidden"),
            "mlp.down_proj": ("hidden", "channels"),
        }
        | NORMS_BEFORE,
        gguf=GgufLayout("phi3", square=True, extra=_phi3),
    ),
)
