"""What differs between model families: where layers are and what of the config belongs to a layer. Knows no importance.

One adapter a family; an unknown family is refused by name.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from stillroom.errors import UnsupportedModel

LAYER_LISTS = ("layer_types", "no_rope_layers")
"""Keys of a config that hold one entry a layer."""


@dataclass(frozen=True)
class Adapter:
    """One family.

    Attributes:
        family: The Hugging Face ``model_type``.
        last_product: Path, inside a layer, of the matrix whose output is added to the residual stream last; None where a
            norm follows it, so that nothing can be folded into it.
    """

    family: str
    last_product: str | None = "mlp.down_proj"

    def layers(self, model: Any) -> nn.ModuleList:
        """The stack of layers."""
        found: nn.ModuleList = model.base_model.layers
        return found

    def keep_layers(self, model: Any, kept: list[int]) -> None:
        """Leave only these layers in a model, in order, and tell its config.

        Args:
            model: A causal language model; changed in place.
            kept: Indices of layers, ascending.
        """
        layers = self.layers(model)
        remaining = nn.ModuleList([layers[index] for index in kept])
        for number, layer in enumerate(remaining):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = number
        model.base_model.layers = remaining
        cut_config(model.config, kept)


def cut_config(config: Any, kept: list[int]) -> None:
    """Leave only these layers in a config."""
    for key in LAYER_LISTS:
        value = getattr(config, key, None)
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            setattr(config, key, [value[index] for index in kept])
    config.num_hidden_layers = len(kept)


ADAPTERS = {
    adapter.family: adapter
    for adapter in (
        Adapter("llama"),
        Adapter("mistral"),
        Adapter("qwen2"),
        Adapter("qwen3"),
        Adapter("gemma2", last_product=None),
        Adapter("gemma3_text", last_product=None),
        Adapter("phi3"),
        Adapter("olmo2", last_product=None),
        Adapter("smollm3"),
        Adapter("granite"),
    )
}


def adapter_of(model: Any) -> Adapter:
    """The adapter of a model.

    Raises:
        UnsupportedModel: Its family has none.
    """
    family = model.config.model_type
    adapter = ADAPTERS.get(family)
    if adapter is None:
        experts = (
            " It is a mixture of experts, which cannot be cut yet." if hasattr(model.config, "num_experts") else ""
        )
        raise UnsupportedModel(
            f"The family `{family}` cannot be shrunk.{experts}",
            f"Families that can: {', '.join(sorted(ADAPTERS))}. Or give an existing smaller model: `student: {{kind: existing}}`.",
        )
    return adapter


def copy_model(model: Any) -> Any:
    """A model of its own with the same weights."""
    copied = copy.deepcopy(model)
    copied.config = copy.deepcopy(model.config)
    copied.requires_grad_(requires_grad=True)
    return copied
