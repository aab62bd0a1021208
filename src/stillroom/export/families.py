"""How each family's config becomes GGUF's keys, and how its tensors are laid out there. Knows nothing of tokenizers.

The keys and layouts are those that llama.cpp reads; a student whose layers llama.cpp would lay out otherwise is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, GGUFWriter

from stillroom.core.errors import UnsupportedModel
from stillroom.export.rope import add_rope, rope_parameters

Array = np.ndarray


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        arch: llama.cpp's architecture.
        permuted: Whether rows of the query and key products are reordered for llama.cpp's rotary layout.
        norm_offset: What llama.cpp expects added to the norms' weights.
        extra: Writes the family's own keys and checks what llama.cpp takes for granted.
    """

    arch: MODEL_ARCH
    permuted: bool = False
    norm_offset: float = 0.0
    extra: Callable[[GGUFWriter, Any], None] | None = None


LEAST_CONTEXT = 256
"""Tokens of context below which a file is not worth having."""


def _sliding(period: int) -> Callable[[GGUFWriter, Any], None]:
    """Every ``period``-th layer attends to everything, the others to a window: llama.cpp takes it for granted."""

    def write(writer: GGUFWriter, config: Any) -> None:
        types = getattr(config, "layer_types", None) or []
        wanted = ["full_attention" if (index + 1) % period == 0 else "sliding_attention" for index in range(len(types))]
        if types != wanted:
            raise UnsupportedModel(
                f"llama.cpp expects every {period}. layer of the family `{config.model_type}` to attend to everything, "
                "and the student's layers are in another order.",
                "Keep whole groups of layers, or export nothing: `export: {gguf: []}`.",
            )
        writer.add_sliding_window(config.sliding_window)

    return write


def _gemma2(writer: GGUFWriter, config: Any) -> None:
    _sliding(2)(writer, config)
    _plain_scores(config)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _gemma3(writer: GGUFWriter, config: Any) -> None:
    _sliding(6)(writer, config)
    _plain_scores(config)
    local = rope_parameters(config, "sliding_attention")
    if local["rope_type"] != "default":
        raise UnsupportedModel(
            f"llama.cpp does not stretch the rotary positions of windowed layers in the family `{config.model_type}`, and "
            f"the student's are of the type `{local['rope_type']}`.",
            "Use a teacher without stretched context, or export nothing: `export: {gguf: []}`.",
        )
    writer.add_rope_freq_base_swa(float(local["rope_theta"]))


def _plain_scores(config: Any) -> None:
    """llama.cpp divides Gemma's attention scores by the root of a head's width, whatever the config says."""
    if config.query_pre_attn_scalar != config.head_dim:
        raise UnsupportedModel(
            f"llama.cpp divides attention scores of the family `{config.model_type}` by the root of a head's width "
            f"({config.head_dim}), and the student by that of `query_pre_attn_scalar` ({config.query_pre_attn_scalar}).",
            "Export nothing: `export: {gguf: []}`.",
        )


def _phi3(writer: GGUFWriter, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window or 0)


def _smollm3(_writer: GGUFWriter, config: Any) -> None:
    wanted = [int((index + 1) % 4 != 0) for index in range(config.num_hidden_layers)]
    if list(config.no_rope_layers) != wanted:
        raise UnsupportedModel(
            "llama.cpp expects every 4. layer of the family `smollm3` to have no rotary positions, and the student's layers "
            "are in another order.",
            "Keep whole groups of four layers, or export nothing: `export: {gguf: []}`.",
        )


def _granite(writer: GGUFWriter, config: Any) -> None:
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


FAMILIES = {
    "llama": Family(MODEL_ARCH.LLAMA, permuted=True),
    "mistral": Family(MODEL_ARCH.LLAMA, permuted=True),
    "qwen2": Family(MODEL_ARCH.QWEN2),
    "qwen3": Family(MODEL_ARCH.QWEN3),
    "gemma2": Family(MODEL_ARCH.GEMMA2, norm_offset=1.0, extra=_gemma2),
    "gemma3_text": Family(MODEL_ARCH.GEMMA3, norm_offset=1.0, extra=_gemma3),
    "phi3": Family(MODEL_ARCH.PHI3, extra=_phi3),
    "olmo2": Family(MODEL_ARCH.OLMO2),
    "smollm3": Family(MODEL_ARCH.SMOLLM3, permuted=True, extra=_smollm3),
    "granite": Family(MODEL_ARCH.GRANITE, permuted=True, extra=_granite),
}

WINDOWED = ("gemma2", "gemma3_text")
"""Families whose windows llama.cpp knows."""


def family_of(config: Any) -> Family:
    """The family of a config.

    Raises:
        UnsupportedModel: GGUF export does not know it.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UnsupportedModel(
            f"The family `{config.model_type}` cannot be exported to GGUF.",
            f"Families that can: {', '.join(sorted(FAMILIES))}. Or export nothing: `export: {{gguf: []}}`.",
        )
    return family


def add_hyperparameters(writer: GGUFWriter, family: Family, config: Any) -> dict[str, Array]:
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
    tensors = add_rope(writer, family.arch, config)
    if family.extra is not None:
        family.extra(writer, config)  # noqa: S610 - no database here
    return tensors


def faithful_context(config: Any) -> int:
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
    if window == 0 or not windowed or config.model_type in WINDOWED:
        return length
    if window < LEAST_CONTEXT:
        raise UnsupportedModel(
            f"llama.cpp has no window of attention in the family `{config.model_type}`, so that the file's context would end "
            f"with the student's window, after {window} tokens.",
            f"Use a model whose `sliding_window` is at least {LEAST_CONTEXT}, or export nothing: `export: {{gguf: []}}`.",
        )
    return min(length, window)


def lay_out(family: Family, config: Any, name: str, tensor: Array) -> Array:
    """A tensor as llama.cpp wants it."""
    if family.permuted and name.endswith(("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        return _rotary_pairs(tensor, heads)
    if family.norm_offset and name.endswith("norm.weight"):
        return tensor + np.float32(family.norm_offset)
    return tensor


def _rotary_pairs(tensor: Array, heads: int) -> Array:
    """Put the two halves of each head's rows in turn: llama.cpp rotates neighbours, transformers rotates halves."""
    shape = tensor.shape
    halves = tensor.reshape(heads, 2, shape[0] // heads // 2, *shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(shape)
