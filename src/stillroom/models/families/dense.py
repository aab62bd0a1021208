"""Families that are Llama's but for a bias, a norm or a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stillroom.core.errors import UnsupportedModel
from stillroom.models.families.family import (
    ATTENTION,
    FEED_FORWARD,
    HEAD_NORMS,
    NARROW,
    NORMS_BEFORE,
    Axes,
    Family,
    GgufLayout,
    norms,
)
from stillroom.models.families.rewrites import APERTUS
from stillroom.models.families.rope import rope_parameters

if TYPE_CHECKING:
    import torch
    from gguf import GGUFWriter

UP_DOWN: Axes = {"mlp.up_proj": ("channels", "hidden"), "mlp.down_proj": ("hidden", "channels")}
"""A feed-forward part without a gate."""
NORMS_AFTER = norms("post_attention_layernorm", "post_feedforward_layernorm")
LATE_HEAD_NORMS: Axes = {"self_attn.query_layernorm": ("head", None), "self_attn.key_layernorm": ("head", None)}
ALL_HEADS: Axes = {"self_attn.q_norm": ("query_norm", None), "self_attn.k_norm": ("key_norm", None)}


def windows(writer: GGUFWriter, config: Any) -> None:
    """The window, and which layers have it, in any order."""
    kinds = list(getattr(config, "layer_types", None) or ())
    if getattr(config, "sliding_window", None) and "sliding_attention" in kinds:
        writer.add_sliding_window(int(config.sliding_window))
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in kinds])


def _ministral3(writer: GGUFWriter, config: Any) -> None:
    rope = rope_parameters(config)
    if rope.get("mscale_all_dim"):
        writer.add_rope_scaling_yarn_log_mul(float(rope["mscale_all_dim"]))
    if rope.get("llama_4_scaling_beta"):
        writer.add_attn_temperature_scale(float(rope["llama_4_scaling_beta"]))


def _exaone4(_writer: GGUFWriter, config: Any) -> None:
    # With a window, layers without it have no rotary positions.
    if getattr(config, "sliding_window", None):
        raise UnsupportedModel(
            "llama.cpp has the windows of the family `exaone4` at 64 layers only, in one order.",
            "Use a model without `sliding_window`, or export nothing: `export: {gguf: []}`.",
        )


def _xielu(writer: GGUFWriter, config: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """The numbers of each layer's activation. Negative and positive slopes are stored before their softplus."""

    def numbers(name: str) -> list[float]:
        found = [tensors[f"model.layers.{index}.mlp.act_fn.{name}"] for index in range(config.num_hidden_layers)]
        return [0.0 if tensor.is_meta else float(tensor) for tensor in found]

    writer.add_xielu_alpha_n(numbers("alpha_n"))
    writer.add_xielu_alpha_p(numbers("alpha_p"))
    writer.add_xielu_beta(numbers("beta"))
    writer.add_xielu_eps(numbers("eps"))


LLAMA = GgufLayout("llama", permuted=True)

FAMILIES = (
    Family("ministral", gguf=LLAMA),
    Family("internlm3", gguf=LLAMA),
    Family("cwm", gguf=LLAMA),
    Family("ministral3", gguf=GgufLayout("mistral3", permuted=True, extra=_ministral3)),
    Family("seed_oss", gguf=GgufLayout("seed_oss")),
    # transformers sizes its output matrix by the hidden size.
    Family("helium", gguf=GgufLayout("llama", square=True), cuts=NARROW),
    Family("arcee", ATTENTION | UP_DOWN | NORMS_BEFORE, gguf=GgufLayout("arcee", permuted=True)),
    Family(
        "hunyuan_v1_dense",
        ATTENTION | FEED_FORWARD | NORMS_BEFORE | LATE_HEAD_NORMS,
        gguf=GgufLayout("hunyuan-dense"),
    ),
    Family(
        "exaone4",
        ATTENTION | FEED_FORWARD | NORMS_AFTER | HEAD_NORMS,
        norm_after=True,
        gguf=GgufLayout("exaone4", extra=_exaone4),
    ),
    Family(
        "olmo3",
        ATTENTION | FEED_FORWARD | NORMS_AFTER | ALL_HEADS,
        norm_after=True,
        gguf=GgufLayout("olmo2", windows=True, extra=windows, square=True),
    ),
    Family(
        "glm4",
        ATTENTION
        | {"mlp.gate_up_proj": ("gated", "hidden"), "mlp.down_proj": ("hidden", "channels")}
        | NORMS_BEFORE
        | norms("post_self_attn_layernorm", "post_mlp_layernorm"),
        norm_after=True,
        gguf=GgufLayout("glm4"),
    ),
    Family(
        "apertus",
        ATTENTION
        | UP_DOWN
        | norms("attention_layernorm", "feedforward_layernorm")
        | HEAD_NORMS
        | {"mlp.act_fn": ("head", None)},
        gguf=GgufLayout("apertus", rules=APERTUS, learned=_xielu),
        cuts=NARROW,
    ),
)
