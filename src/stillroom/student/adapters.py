"""What differs between model families: where layers, heads, widths and embeddings are. Knows no importance.

One adapter a family; an unknown family is refused by name. Along which axes a matrix can be cut is a table: for each
parameter of a layer, what its rows and columns count.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from stillroom.core.errors import UnsupportedModel

LAYER_LISTS = ("layer_types", "no_rope_layers")
"""Keys of a config that hold one entry a layer."""

Axes = dict[str, tuple[str, str | None]]

_ATTENTION: Axes = {
    "self_attn.q_proj": ("queries", "hidden"),
    "self_attn.k_proj": ("keys", "hidden"),
    "self_attn.v_proj": ("keys", "hidden"),
    "self_attn.o_proj": ("hidden", "queries"),
}
_FEED_FORWARD: Axes = {
    "mlp.gate_proj": ("channels", "hidden"),
    "mlp.up_proj": ("channels", "hidden"),
    "mlp.down_proj": ("hidden", "channels"),
}
_HEAD_NORMS: Axes = {"self_attn.q_norm": ("head", None), "self_attn.k_norm": ("head", None)}


def _norms(*names: str) -> Axes:
    return dict.fromkeys(names, ("norm", None))


_BEFORE = _norms("input_layernorm", "post_attention_layernorm")
_AROUND = _BEFORE | _norms("pre_feedforward_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True)
class Adapter:
    """One family.

    Attributes:
        family: The Hugging Face ``model_type``.
        axes: What rows and columns of each of a layer's modules count: ``hidden``, ``norm`` (hidden, under a root
        mean
            square), ``queries`` (heads times their width), ``keys`` (key/value heads times theirs), ``fused``
            (queries, keys, values one after the other), ``channels``, ``gated`` (channels twice: gate and up),
            ``head`` (one head's width; never cut), ``query_norm`` and ``key_norm`` (all heads under one root mean
            square).
        attention_output: Path of the matrix through which attention reaches the residual stream.
        feed_forward_output: The same of the feed-forward part.
        norm_after: Whether a norm stands between those matrices and the stream: then nothing that is not the
            matrix's own output can be folded into them.
        norm_offset: What is added to a norm's stored weight (Gemma stores the weight minus one).
        scaled_embedding: Whether embeddings are multiplied by the root of the hidden width.
    """

    family: str
    axes: Axes = field(default_factory=lambda: _ATTENTION | _FEED_FORWARD | _BEFORE)
    attention_output: str = "self_attn.o_proj"
    feed_forward_output: str = "mlp.down_proj"
    norm_after: bool = False
    norm_offset: float = 0.0
    scaled_embedding: bool = False

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
                    module.layer_idx = number  # type: ignore[assignment]
        model.base_model.layers = remaining
        cut_config(model.config, kept)


def fit_layer_lists(config: Any, layers: int, given: Collection[str]) -> None:
    """Repeat or cut the lists of a config that hold one entry a layer, but for those that were given."""
    for key in LAYER_LISTS:
        value = getattr(config, key, None)
        if isinstance(value, list) and key not in given:
            repeated = value * (1 + layers // max(1, len(value)))
            setattr(config, key, repeated[:layers])


def cut_config(config: Any, kept: list[int]) -> None:
    """Leave only these layers in a config."""
    for key in LAYER_LISTS:
        value = getattr(config, key, None)
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            setattr(config, key, [value[index] for index in kept])
    config.num_hidden_layers = len(kept)


def head_width(config: Any) -> int:
    """Width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


ADAPTERS = {
    adapter.family: adapter
    for adapter in (
        Adapter("llama"),
        Adapter("mistral"),
        Adapter("qwen2"),
        Adapter("qwen3", _ATTENTION | _FEED_FORWARD | _BEFORE | _HEAD_NORMS),
        Adapter(
            "gemma2", _ATTENTION | _FEED_FORWARD | _AROUND, norm_after=True, norm_offset=1.0, scaled_embedding=True
        ),
        Adapter(
            "gemma3_text",
            _ATTENTION | _FEED_FORWARD | _AROUND | _HEAD_NORMS,
            norm_after=True,
            norm_offset=1.0,
            scaled_embedding=True,
        ),
        Adapter(
            "phi3",
            {
                "self_attn.qkv_proj": ("fused", "hidden"),
                "self_attn.o_proj": ("hidden", "queries"),
                "mlp.gate_up_proj": ("gated", "hidden"),
                "mlp.down_proj": ("hidden", "channels"),
            }
            | _BEFORE,
        ),
        Adapter(
            "olmo2",
            _ATTENTION
            | _FEED_FORWARD
            | _norms("post_attention_layernorm", "post_feedforward_layernorm")
            | {"self_attn.q_norm": ("query_norm", None), "self_attn.k_norm": ("key_norm", None)},
            norm_after=True,
        ),
        Adapter("smollm3"),
        Adapter("granite"),
    )
}


def adapter_of(model: Any) -> Adapter:
    """The adapter of a model.

    Raises:
        UnsupportedModel: Its family has none.
    """
    return adapter_for(model.config)


def adapter_for(config: Any) -> Adapter:
    """The adapter of a model's config. Errors as in :func:`adapter_of`."""
    family = config.model_type
    adapter = ADAPTERS.get(family)
    if adapter is None:
        keys = ("num_experts", "num_local_experts", "n_routed_experts")
        experts = (
            " It is a mixture of experts, which cannot be cut yet." if any(hasattr(config, key) for key in keys) else ""
        )
        raise UnsupportedModel(
            f"The family `{family}` cannot be shrunk.{experts}",
            f"Families that can: {', '.join(sorted(ADAPTERS))}. "
            "Or give an existing smaller model: `student: {kind: existing}`.",
        )
    return adapter


def copy_model(model: Any) -> Any:
    """A model of its own with the same weights."""
    copied = copy.deepcopy(model)
    copied.requires_grad_(requires_grad=True)
    return copied
