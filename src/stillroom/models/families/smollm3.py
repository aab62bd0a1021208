"""SmolLM3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.core.errors import UnsupportedModel
from stillroom.models.families.family import Family, GgufLayout

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import SmolLM3Config


def _smollm3(_writer: GGUFWriter, config: SmolLM3Config) -> None:
    wanted = [int((index + 1) % 4 != 0) for index in range(config.num_hidden_layers)]
    if list(config.no_rope_layers or ()) != wanted:
        raise UnsupportedModel(
            "llama.cpp expects every 4. layer of the family `smollm3` to have no rotary positions, and the student's layers "
            "are in another order.",
            "Keep whole groups of four layers, or export nothing: `export: {gguf: []}`.",
        )


FAMILIES = (Family("smollm3", gguf=GgufLayout("smollm3", permuted=True, extra=_smollm3)),)
