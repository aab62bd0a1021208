"""Granite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.models.families.family import Family, GgufLayout

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import GraniteConfig


def scales(writer: GGUFWriter, config: GraniteConfig) -> None:
    """The four numbers that Granite multiplies by."""
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


FAMILIES = (Family("granite", gguf=GgufLayout("granite", permuted=True, extra=scales)),)
