"""How a config becomes GGUF's keys, and how tensors are laid out there.

The keys and layouts are those that llama.cpp reads; a student whose layers llama.cpp would lay out otherwise is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from gguf import GGUFWriter

from stillroom.core.errors import UnsupportedModel
from stillroom.models.families.family import GgufLayout
from stillroom.models.families.registry import gguf_layout_of
from stillroom.models.families.rope import add_rope

if TYPE_CHECKING:
    from stillroom.models.types import ModelConfig

Array = np.ndarray


LEAST_CONTEXT = 256
"""Tokens of context below which a file is not worth having."""


def add_hyperparameters(writer: GGUFWriter, layout: GgufLayout, config: ModelConfig) -> dict[str, Array]:
    """Write the keys that all families share, then the family's own; returns tensors that belong to the keys."""
    heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(faithful_context(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_width)
    writer.add_value_length(head_width)
    writer.add_vocab_size(config.vocab_size)
    tensors = add_rope(writer, layout.model_arch, config)
    if layout.extra is not None:
        layout.extra(writer, config)  # noqa: S610 - no database here
    return tensors


def faithful_context(config: ModelConfig) -> int:
    """Tokens up to which llama.cpp attends as the student does: what the file says its context is.

    llama.cpp has windows in Gemma's layers only. In the other families every layer attends to everything, which is the
    same as long as the text is no longer than the window; its server takes no longer text than the file says.

    Raises:
        UnsupportedModel: The window is too small to be the whole context.
    """
    length = int(config.max_position_embeddings)
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


def _rotary_pairs(tensor: Array, heads: int) -> Array:
    """Put the two halves of each head's rows in turn: llama.cpp rotates neighbours, transformers rotates halves."""
    shape = tensor.shape
    halves = tensor.reshape(heads, 2, shape[0] // heads // 2, *shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(shape)
