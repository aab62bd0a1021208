"""Gemma 2 and Gemma 3 (text)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from stillroom.core.errors import UnsupportedModel
from stillroom.models.families.family import ATTENTION, FEED_FORWARD, HEAD_NORMS, NORMS_AROUND, Family, GgufLayout
from stillroom.models.families.rope import rope_parameters

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import Gemma2Config, Gemma3TextConfig

Number = TypeVar("Number", int, float)
LARGEST = {"gemma2": 46, "gemma3_text": 62}
"""Layers of the largest model of each family, by which llama.cpp knows it."""


def _sliding(period: int) -> Callable[[GGUFWriter, Gemma2Config | Gemma3TextConfig], None]:
    """Every ``period``-th layer attends to everything, the others to a window: llama.cpp takes it for granted, and reads other
    orders from the file.
    """

    def write(writer: GGUFWriter, config: Gemma2Config | Gemma3TextConfig) -> None:
        types = getattr(config, "layer_types", None) or []
        wanted = ["full_attention" if (index + 1) % period == 0 else "sliding_attention" for index in range(len(types))]
        writer.add_sliding_window(_needed(config, "sliding_window", config.sliding_window))
        if types != wanted:
            writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in types])

    return write


def _gemma2(writer: GGUFWriter, config: Gemma2Config) -> None:
    _sliding(2)(writer, config)
    _plain_scores(config)
    writer.add_attn_logit_softcapping(_needed(config, "attn_logit_softcapping", config.attn_logit_softcapping))
    writer.add_final_logit_softcapping(_needed(config, "final_logit_softcapping", config.final_logit_softcapping))


def _gemma3(writer: GGUFWriter, config: Gemma3TextConfig) -> None:
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


def _needed(config: Gemma2Config | Gemma3TextConfig, name: str, value: Number | None) -> Number:
    """A key that llama.cpp takes for granted; without it, it would compute with a value of its own."""
    if value is None:
        raise UnsupportedModel(
            f"llama.cpp needs `{name}` in the family `{config.model_type}`, and the student's config has none.",
            "Export nothing: `export: {gguf: []}`.",
        )
    return value


def _plain_scores(config: Gemma2Config | Gemma3TextConfig) -> None:
    """llama.cpp divides Gemma's attention scores by the root of a head's width, whatever the config says; at the number of
    layers of the largest Gemma 2 and 3, by that of the hidden size over the heads.
    """
    divisor, name = float(config.head_dim), "a head's width"
    if config.num_hidden_layers == LARGEST[config.model_type]:
        divisor, name = config.hidden_size / config.num_attention_heads, "the hidden size over the heads"
    if config.query_pre_attn_scalar != divisor:
        raise UnsupportedModel(
            f"llama.cpp divides attention scores of the family `{config.model_type}` with {config.num_hidden_layers} layers by "
            f"the root of {name} ({divisor:g}), and the student by that of `query_pre_attn_scalar` "
            f"({config.query_pre_attn_scalar}).",
            "Export nothing: `export: {gguf: []}`.",
        )


FAMILIES = (
    Family(
        "gemma2",
        ATTENTION | FEED_FORWARD | NORMS_AROUND,
        norm_after=True,
        norm_offset=1.0,
        scaled_embedding=True,
        gguf=GgufLayout("gemma2", norm_offset=1.0, windows=True, extra=_gemma2, read=("final_logit_softcapping",)),
    ),
    Family(
        "gemma3_text",
        ATTENTION | FEED_FORWARD | NORMS_AROUND | HEAD_NORMS,
        norm_after=True,
        norm_offset=1.0,
        scaled_embedding=True,
        gguf=GgufLayout("gemma3", norm_offset=1.0, windows=True, extra=_gemma3),
    ),
)
