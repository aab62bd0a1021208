"""How a config becomes GGUF's keys, and how tensors are laid out there.

The keys and layouts are those that llama.cpp reads; a student whose layers llama.cpp would lay out otherwise is refused.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGUFWriter

from stillroom.core.errors import UnsupportedModel
from stillroom.models.families.family import GgufLayout
from stillroom.models.families.granted import ALIKE, EVERYWHERE, GRANTED
from stillroom.models.families.registry import gguf_layout_of
from stillroom.models.families.rope import add_rope, rope_parameters

if TYPE_CHECKING:
    import torch

    from stillroom.models.types import ModelConfig

Array = np.ndarray


LEAST_CONTEXT = 256
"""Tokens of context below which a file is not worth having."""
UNBOUNDED_CONTEXT = 1 << 20
"""Tokens that a file says for a state-space model, whose config has no limit: what llama.cpp's own conversion writes."""


def add_hyperparameters(writer: GGUFWriter, layout: GgufLayout, config: ModelConfig) -> dict[str, Array]:
    """Write the keys that all families share, then the family's own; returns tensors that belong to the keys."""
    heads = int(getattr(config, "num_attention_heads", None) or 0)
    require_shapes(layout, config)
    require_granted(layout, config)
    writer.add_context_length(faithful_context(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    if layout.feed_forward is not None:
        writer.add_feed_forward_length(layout.feed_forward(config))
    else:
        writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    if layout.kv_heads is not None:
        writer.add_head_count_kv(layout.kv_heads(config))
    else:
        writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    if layout.layer_norm:
        writer.add_layer_norm_eps(norm_epsilon(config))
    else:
        writer.add_layer_norm_rms_eps(norm_epsilon(config))
    if heads:
        head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
        writer.add_key_length(head_width)
        writer.add_value_length(head_width)
    writer.add_vocab_size(config.vocab_size)
    if layout.experts:
        add_experts(writer, config)
    if layout.permuted and float(rope_parameters(config).get("partial_rotary_factor") or 1.0) != 1.0:
        raise UnsupportedModel(
            f"llama.cpp rotates whole heads in the family `{config.model_type}`, and the student's config has a "
            "`partial_rotary_factor`.",
            "Export nothing: `export: {gguf: []}`.",
        )
    if not layout.rotary:
        tensors = {}
    else:
        tensors = add_rope(writer, layout.model_arch, config, layout.rotated(config) if layout.rotated else None)
    if layout.extra is not None:
        layout.extra(writer, config)  # noqa: S610 - no database here
    return tensors


EPSILONS = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "layer_norm_epsilon", "norm_epsilon")
"""Keys under which configs keep what a norm adds to the mean square or the variance."""
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Keys under which configs keep the number of experts."""
CHOSEN = ("num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token")
"""Keys under which configs keep how many experts a token goes through."""


def norm_epsilon(config: ModelConfig) -> float:
    """What a norm adds to the mean square or the variance; transformers' own default where a config does not say."""
    return next((float(value) for key in EPSILONS if (value := getattr(config, key, None)) is not None), 1e-5)


def add_experts(writer: GGUFWriter, config: ModelConfig) -> None:
    """Write how many experts there are, and how many a token goes through."""
    count = next((value for key in EXPERTS if (value := getattr(config, key, None))), 0)
    chosen = next((value for key in CHOSEN if (value := getattr(config, key, None))), 0)
    writer.add_expert_count(int(count))
    writer.add_expert_used_count(int(chosen))
    width = getattr(config, "moe_intermediate_size", None)
    if width:
        writer.add_expert_feed_forward_length(int(width if isinstance(width, int) else width[0]))


def require_shapes(layout: GgufLayout, config: ModelConfig) -> None:
    """Refuse a shape that llama.cpp does not load.

    Raises:
        UnsupportedModel: llama.cpp takes the hidden size of this family to be the query heads times their width.
    """
    if not layout.square:
        return
    heads = config.num_attention_heads
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    if heads * width != config.hidden_size:
        raise UnsupportedModel(
            f"llama.cpp takes the hidden size of the family `{config.model_type}` to be its query heads times their width, "
            f"and the student's is {config.hidden_size} with {heads} heads of {width}.",
            f"Keep both (`hidden_size: {heads * width}` goes with {heads} query heads), or export nothing: "
            "`export: {gguf: []}`.",
        )


def require_granted(layout: GgufLayout, config: ModelConfig) -> None:
    """Refuse a setting that llama.cpp takes for granted and the config says otherwise: the file would compute something else.

    Raises:
        UnsupportedModel: Names the key.
    """
    kind: Any = type(config)
    usual = _usual(kind)
    for key in (*EVERYWHERE, *GRANTED.get(config.model_type, ())):
        if key in layout.read or not hasattr(usual, key):
            continue
        said, expected = getattr(config, key, None), getattr(usual, key)
        same = said == expected or (not said and not expected)
        if same or any(said in names and expected in names for names in ALIKE if isinstance(said, str)):
            continue
        raise UnsupportedModel(
            f"llama.cpp takes `{key}: {_yaml(expected)}` for granted in the family `{config.model_type}`, and the student's "
            f"config says `{_yaml(said)}`.",
            "Export nothing: `export: {gguf: []}`.",
        )


@functools.cache
def _usual(kind: Callable[[], object]) -> object:
    """The config of a family when nothing is said."""
    return kind()


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def faithful_context(config: ModelConfig) -> int:
    """Tokens up to which llama.cpp attends as the student does: what the file says its context is.

    llama.cpp has windows in Gemma's layers only. In the other families every layer attends to everything, which is the
    same as long as the text is no longer than the window; its server takes no longer text than the file says.

    Raises:
        UnsupportedModel: The window is too small to be the whole context.
    """
    length = int(getattr(config, "max_position_embeddings", None) or UNBOUNDED_CONTEXT)
    window = int(getattr(config, "sliding_window", None) or 0)
    kinds = getattr(config, "layer_types", None)
    windowed = kinds is None or "sliding_attention" in kinds
    if window == 0 or not windowed or gguf_layout_of(config).windows:
        return length
    if window < LEAST_CONTEXT:
        raise UnsupportedModel(
            f"llama.cpp has no window of attention in the family `{config.model_type}`, so that the file's context would end "
            f"with the student's window, after {window} tokens.",
            f"Use a model whose `sliding_window` is at least {LEAST_CONTEXT}, or export nothing: `export: {{gguf: []}}`.",
        )
    return min(length, window)


def lay_out(layout: GgufLayout, config: ModelConfig, name: str, tensor: Array) -> Array:
    """A tensor as llama.cpp wants it."""
    if layout.permuted and name.endswith(("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        return _rotary_pairs(tensor, heads)
    if layout.norm_offset and name.endswith("norm.weight"):
        return tensor + np.float32(layout.norm_offset)
    return tensor


def applied(
    layout: GgufLayout, config: ModelConfig, tensors: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Every tensor of a model as it is stored by the layout's rules: its source's key, its new key, and the tensor.

    Args:
        layout: The family's.
        config: The model's config.
        tensors: The model's tensors by key; on the meta device only shapes are computed.
    """
    rules = [(re.compile(rule.pattern), rule) for rule in layout.rules]
    for key in sorted(tensors):
        tensor = tensors[key]
        if not tensor.is_floating_point():
            continue
        rule = next((rule for pattern, rule in rules if pattern.search(key)), None)
        if rule is None:
            yield key, key, tensor
            continue
        layer = re.search(r"\.(?:layers|h)\.(\d+)\.", key)
        number = layer.group(1) if layer else ""
        before = key[: layer.end()] if layer else ""
        read = functools.partial(_read, tensors, before)
        found = (tensor,) if rule.change is None else rule.change(tensor.float(), config, read)
        if rule.names:
            for name, part in zip(rule.names, found, strict=True):
                for mark, said in (
                    ("{n}", number),
                    ("{name}", key),
                    ("{rest}", key.partition(".")[2]),
                    ("{shexp}", "_shexp" if getattr(config, "num_local_experts", None) else ""),
                ):
                    name = name.replace(mark, said)
                yield key, name, part


def _read(tensors: Mapping[str, torch.Tensor], before: str, name: str) -> torch.Tensor:
    return tensors[before + name].float()


def _rotary_pairs(tensor: Array, heads: int) -> Array:
    """Put the two halves of each head's rows in turn: llama.cpp rotates neighbours, transformers rotates halves."""
    shape = tensor.shape
    halves = tensor.reshape(heads, 2, shape[0] // heads // 2, *shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(shape)
