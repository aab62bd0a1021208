"""What a family is: where its layers, heads, widths and embeddings are, and how llama.cpp lays them out.

Along which axes a matrix can be pruned is a table: for each parameter of a layer, what its rows and columns count. A new
family is one file beside this one that says ``FAMILIES = (Family(...),)``; a package of one's own names such a value under
the entry point ``stillroom.families``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from torch import nn

if TYPE_CHECKING:
    import torch
    from gguf import MODEL_ARCH, GGUFWriter

    from stillroom.models.types import CausalModel, ModelConfig

LAYER_LISTS = ("layer_types", "no_rope_layers", "mlp_layer_types", "layers_block_type")
"""Keys of a config that hold one entry per layer."""
DENSE_LAYERS = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
"""Keys of a config that say how many of the first layers have no experts."""
LAYER_NUMBERS = ("moe_layers",)
"""Keys of a config that list numbers of layers."""

AXES = ("layers", "channels", "groups", "hidden", "experts")
"""Along what a model can be pruned: layers, feed-forward channels, key/value heads, hidden size, experts."""
WIDE = frozenset(("layers", "channels", "groups", "hidden"))
"""The axes of a family whose every matrix is in its table."""
NARROW = frozenset(("layers", "channels"))
"""Those of a family of which only the feed-forward part can be pruned besides layers."""
MIXTURE = frozenset(("layers", "experts"))
"""Those of a mixture of experts."""
DEEP = frozenset(("layers",))
NOTHING: frozenset[str] = frozenset()

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
class Rule:
    """What becomes of some of a model's tensors in a GGUF file.

    Attributes:
        pattern: A regular expression that is found in the tensor's name in transformers.
        names: The new names, one for each tensor that ``change`` returns; none leaves the tensor out. A name that begins with
            ``=`` is a name in GGUF, in which ``{n}`` is the layer's number; others go through the ``gguf`` package's table.
            ``{name}`` is the old name.
        change: From the tensor, the config and a reader of other tensors of the same layer (by their names after the
            layer's number) to the new tensors. It computes on shapes alone (meta tensors) too.
    """

    pattern: str
    names: tuple[str, ...] = ("{name}",)
    change: Callable[[torch.Tensor, Any, Callable[[str], torch.Tensor]], tuple[torch.Tensor, ...]] | None = None


@dataclass(frozen=True)
class GgufLayout:
    """How llama.cpp stores a family.

    Attributes:
        arch: Name of llama.cpp's architecture, such as ``llama``.
        permuted: Whether rows of the query and key products are reordered for llama.cpp's rotary layout.
        norm_offset: What llama.cpp expects added to the norms' weights.
        windows: Whether llama.cpp has this family's attention windows.
        extra: Writes the family's own keys and checks what llama.cpp takes for granted.
        rules: What becomes of tensors that llama.cpp stores otherwise; the first whose pattern is found applies. With rules
            a file is written from the loaded model's tensors, not from those on disk.
        square: Whether llama.cpp takes the hidden size to be the query heads times their width.
        layer_norm: Whether the norms are layer norms with ``layer_norm_eps``, not root mean squares.
        rotary: Whether the family has rotary positions.
        rotated: Elements of a head that are rotated, where that is not a head's width times ``partial_rotary_factor``.
        feed_forward: The feed-forward size, or that of each layer, where that is not ``intermediate_size``.
        kv_heads: Key/value heads, or those of each layer, where that is not ``num_key_value_heads``.
        experts: Whether it is a mixture of experts.
        learned: Writes keys whose values are weights, which are read by their names.
        read: Keys of ``granted.EVERYWHERE`` that the family's file says all the same.
    """

    arch: str
    permuted: bool = False
    norm_offset: float = 0.0
    windows: bool = False
    extra: Callable[[GGUFWriter, Any], None] | None = None
    rules: tuple[Rule, ...] = ()
    square: bool = False
    layer_norm: bool = False
    rotary: bool = True
    rotated: Callable[[Any], int] | None = None
    feed_forward: Callable[[Any], int | list[int]] | None = None
    kv_heads: Callable[[Any], int | list[int]] | None = None
    experts: bool = False
    learned: Callable[[GGUFWriter, Any, Mapping[str, torch.Tensor]], None] | None = None
    read: tuple[str, ...] = ()

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
        norm_after: Whether a norm is between those matrices and the stream: then nothing that is not the matrix's
            own output can be folded into them.
        norm_offset: What is added to a norm's stored weight (Gemma stores the weight minus one).
        scaled_embedding: Whether embeddings are multiplied by the square root of the hidden size.
        gguf: How llama.cpp stores it; None for a family that cannot be exported to GGUF.
        cuts: Along which of :data:`AXES` it can be pruned; nothing for a family that is only exported.
        stack: Path of the list of layers under the body.
        final_norm: Path of the last norm under the body.
        channels_key: The config's key of the feed-forward size.
        experts_key: The config's key of the number of experts.
        chosen_key: The config's key of how many of them a token goes through.
    """

    name: str
    axes: Axes = field(default_factory=lambda: ATTENTION | FEED_FORWARD | NORMS_BEFORE)
    attention_output: str = "self_attn.o_proj"
    feed_forward_output: str = "mlp.down_proj"
    norm_after: bool = False
    norm_offset: float = 0.0
    scaled_embedding: bool = False
    gguf: GgufLayout | None = None
    cuts: frozenset[str] = WIDE
    stack: str = "layers"
    final_norm: str = "norm"
    channels_key: str = "intermediate_size"
    experts_key: str = "num_experts"
    chosen_key: str = "num_experts_per_tok"

    @property
    def uniform(self) -> bool:
        """Whether every parameter of a layer is in the table, so that any shape can be counted from one layer."""
        return self.cuts >= WIDE

    @property
    def repairable(self) -> bool:
        """Whether each layer has the two matrices that the least-squares repair fits."""
        return "channels" in self.cuts

    def layers(self, model: CausalModel) -> nn.ModuleList:
        """The stack of layers."""
        return cast("nn.ModuleList", self.body(model).get_submodule(self.stack))

    def body(self, model: CausalModel) -> nn.Module:
        """The network under the output layer."""
        base: nn.Module = model.base_model
        # A text model taken out of a larger one is its own base.
        return cast("nn.Module", base.model) if base is model else base

    def last_norm(self, model: CausalModel) -> nn.Module:
        """The norm before the output layer."""
        return self.body(model).get_submodule(self.final_norm)

    def channels(self, config: ModelConfig) -> int:
        """Feed-forward channels of a layer; 0 where the family's layers have none of one size."""
        if "channels" not in self.cuts:
            return 0
        return int(getattr(config, self.channels_key, None) or 4 * config.hidden_size)

    def experts(self, config: ModelConfig) -> int:
        """Experts of a layer; 0 for a dense model."""
        count = getattr(config, self.experts_key, None) if "experts" in self.cuts else 0
        return count if isinstance(count, int) else 0

    def groups(self, config: ModelConfig) -> int:
        """Key/value heads of a layer; 0 without attention."""
        return int(getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", None) or 0)

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
        parent, _, name = self.stack.rpartition(".")
        setattr(self.body(model).get_submodule(parent), name, remaining)
        cut_config(model.config, kept)


def fit_layer_lists(config: ModelConfig, layers: int, given: Collection[str]) -> None:
    """Repeat or cut the lists of a config that hold one entry per layer, but for those that were given."""
    for key in LAYER_LISTS:
        value = getattr(config, key, None)
        if isinstance(value, list) and key not in given and not _derived(config, key):
            repeated = value * (1 + layers // max(1, len(value)))
            setattr(config, key, repeated[:layers])


def _derived(config: ModelConfig, key: str) -> bool:
    """Whether a config works a key out of others, so that it cannot be set."""
    found = getattr(type(config), config.attribute_map.get(key, key), None)
    return isinstance(found, property) and found.fset is None


def cut_config(config: ModelConfig, kept: list[int]) -> None:
    """Leave only these layers in a config."""
    # All are read before any is set: some keys are other names of others.
    lists = {key: value for key in LAYER_LISTS if isinstance(value := getattr(config, key, None), list)}
    for key, value in lists.items():
        if len(value) == config.num_hidden_layers and not _derived(config, key):
            setattr(config, key, [value[index] for index in kept])
    for key in DENSE_LAYERS:
        value = getattr(config, key, None)
        if isinstance(value, int):
            setattr(config, key, sum(index < value for index in kept))
    for key in LAYER_NUMBERS:
        value = getattr(config, key, None)
        if isinstance(value, list):
            setattr(config, key, [number for number, index in enumerate(kept) if index in value])
    last = getattr(config, "moe_layer_end_index", None)
    if isinstance(last, int) and last >= 0:
        config.moe_layer_end_index = sum(index <= last for index in kept) - 1
    config.num_hidden_layers = len(kept)


def head_width(config: ModelConfig) -> int:
    """Width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def matrix_of(module: nn.Module) -> torch.Tensor:
    """The matrix of a linear layer, [outputs, inputs]: a view, also where the layer keeps it transposed (GPT-2)."""
    from transformers.pytorch_utils import Conv1D

    weight = cast("torch.Tensor", module.weight)
    return weight.T if isinstance(module, Conv1D) else weight
