"""What a family is: where its layers, heads, widths and embeddings are, and how llama.cpp lays them out.

Along which axes a matrix can be pruned is a table: for each parameter of a layer, what its rows and columns count. A new
family is one file beside this one that says ``FAMILIES = (Family(...),)``; a package of one's own names such a value under
the entry point ``stillroom.families``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from torch import nn

if TYPE_CHECKING:
    from gguf import MODEL_ARCH, GGUFWriter

    from stillroom.models.types import CausalModel, ModelConfig

LAYER_LISTS = ("layer_types", "no_rope_layers")
"""Keys of a config that hold one entry per layer."""

Axes = dict[str, tuple[str, str | None]]

ATTENTION: Axes = {
    "self_attn.q_proj": ("queries", "hidden"),
    "self_attn.k_proj": ("keys", "hidden"),
    "self_attn.v_proj": ("keys", "hidden"),
    "self_attn.o_proj": ("hidden", "queries"),
}
FEED_FORWARD: Axes = {
    "mlp.gate_proj": ("channels", "hidden"),
    "mlp.up_proj": ("channels", "hidden"),
    "mlp.down_proj": ("hidden", "channels"),
}
HEAD_NORMS: Axes = {"self_attn.q_norm": ("head", None), "self_attn.k_norm": ("head", None)}


def norms(*names: str) -> Axes:
    """Axes of norms over the hidden size."""
    return dict.fromkeys(names, ("norm", None))


NORMS_BEFORE = norms("input_layernorm", "post_attention_layernorm")
NORMS_AROUND = NORMS_BEFORE | norms("pre_feedforward_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True)
class GgufLayout:
    """How llama.cpp stores a family.

    Attributes:
        arch: Name of llama.cpp's architecture, such as ``llama``.
        permuted: Whether rows of the query and key products are reordered for llama.cpp's rotary layout.
        norm_offset: What llama.cpp expects added to the norms' weights.
        windows: Whether llama.cpp has this family's attention windows.
        extra: Writes the family's own keys and checks what llama.cpp takes for granted.
    """

    arch: str
    permuted: bool = False
    norm_offset: float = 0.0
    windows: bool = False
    extra: Callable[[GGUFWriter, Any], None] | None = None

    @property
    def model_arch(self) -> MODEL_ARCH:
        """The architecture as the `gguf` package numbers it."""
        from gguf import MODEL_ARCH_NAMES

        return next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == self.arch)


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        name: The Hugging Face ``model_type``.
        axes: What rows and columns of each of a layer's modules count: ``hidden``, ``norm`` (hidden, under a root mean
            square), ``queries`` (heads times their width), ``keys`` (key/value heads times theirs), ``fused`` (queries,
            keys, values one after the other), ``channels`` (the intermediate size), ``gated`` (channels twice: gate and
            up), ``head`` (one head's width; never pruned), ``query_norm`` and ``key_norm`` (all heads under one root
            mean square).
        attention_output: Path of the matrix through which attention reaches the residual stream.
        feed_forward_output: The same of the feed-forward part.
        norm_after: Whether a norm stands between those matrices and the stream: then nothing that is not the matrix's
            own output can be folded into them.
        norm_offset: What is added to a norm's stored weight (Gemma stores the weight minus one).
        scaled_embedding: Whether embeddings are multiplied by the square root of the hidden size.
        gguf: How llama.cpp stores it; None for a family that cannot be exported to GGUF.
    """

    name: str
    axes: Axes = field(default_factory=lambda: ATTENTION | FEED_FORWARD | NORMS_BEFORE)
    attention_output: str = "self_attn.o_proj"
    feed_forward_output: str = "mlp.down_proj"
    norm_after: bool = False
    norm_offset: float = 0.0
    scaled_embedding: bool = False
    gguf: GgufLayout | None = None

    def layers(self, model: CausalModel) -> nn.ModuleList:
        """The stack of layers."""
        found: nn.ModuleList = model.base_model.layers
        return found

    def attention_matrix(self, layer: nn.Module) -> nn.Linear:
        """The matrix of a layer through which attention reaches the residual stream."""
        return cast("nn.Linear", layer.get_submodule(self.attention_output))

    def feed_forward_matrix(self, layer: nn.Module) -> nn.Linear:
        """The same of the layer's feed-forward part."""
        return cast("nn.Linear", layer.get_submodule(self.feed_forward_output))

    def keep_layers(self, model: CausalModel, kept: list[int]) -> None:
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


def fit_layer_lists(config: ModelConfig, layers: int, given: Collection[str]) -> None:
    """Repeat or cut the lists of a config that hold one entry per layer, but for those that were given."""
    for key in LAYER_LISTS:
        value = getattr(config, key, None)
        if isinstance(value, list) and key not in given:
            repeated = value * (1 + layers // max(1, len(value)))
            setattr(config, key, repeated[:layers])


def cut_config(config: ModelConfig, kept: list[int]) -> None:
    """Leave only these layers in a config."""
    for key in LAYER_LISTS:
        value = getattr(config, key, None)
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            setattr(config, key, [value[index] for index in kept])
    config.num_hidden_layers = len(kept)


def head_width(config: ModelConfig) -> int:
    """Width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
