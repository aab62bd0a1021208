"""Families with layer norms: a layer norm subtracts a mean, so that entries of the hidden size cannot simply go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stillroom.core.errors import UnsupportedModel
from stillroom.models.families.dense import UP_DOWN, windows
from stillroom.models.families.family import FEED_FORWARD, NARROW, Axes, Family, GgufLayout
from stillroom.models.families.rewrites import JOINED, PER_HEAD, TURNED_MATRICES

if TYPE_CHECKING:
    from gguf import GGUFWriter

DEPTH_OF_HEAD_NORMS = 64
"""Layers from which on llama.cpp looks for Command-R's norms of queries and keys."""


def _olmo(writer: GGUFWriter, config: Any) -> None:
    if config.clip_qkv:
        writer.add_clamp_kqv(float(config.clip_qkv))


def _parallel(writer: GGUFWriter, config: Any) -> None:
    _no_head_norms(config, "qk_layernorm")
    writer.add_parallel_residual(bool(config.use_parallel_residual))


def _phi(_writer: GGUFWriter, config: Any) -> None:
    _no_head_norms(config, "qk_layernorm")


def _no_head_norms(config: Any, key: str) -> None:
    if getattr(config, key, False):
        raise UnsupportedModel(
            f"llama.cpp has no norms of queries and keys (`{key}`) in the family `{config.model_type}`.",
            "Export nothing: `export: {gguf: []}`.",
        )


def _cohere(writer: GGUFWriter, config: Any) -> None:
    if config.num_hidden_layers < DEPTH_OF_HEAD_NORMS:
        _no_head_norms(config, "use_qk_norm")
    writer.add_logit_scale(float(config.logit_scale))


def _cohere2(writer: GGUFWriter, config: Any) -> None:
    writer.add_logit_scale(float(config.logit_scale))
    windows(writer, config)


def _square(arch: str, **options: Any) -> GgufLayout:
    return GgufLayout(arch, square=True, layer_norm=True, **options)


def _channels(up: str, down: str, up_columns: str = "hidden") -> Axes:
    return {up: ("channels", up_columns), down: ("hidden", "channels")}


FAMILIES = (
    Family("olmo", FEED_FORWARD, gguf=_square("olmo", permuted=True, extra=_olmo), cuts=NARROW),
    Family("stablelm", FEED_FORWARD, gguf=_square("stablelm", extra=_parallel), cuts=NARROW),
    Family("cohere", FEED_FORWARD, gguf=_square("command-r", extra=_cohere), cuts=NARROW),
    Family("cohere2", FEED_FORWARD, gguf=_square("cohere2", extra=_cohere2, windows=True), cuts=NARROW),
    Family("nemotron", UP_DOWN, gguf=_square("nemotron", norm_offset=1.0), cuts=NARROW),
    Family("jais2", UP_DOWN, gguf=GgufLayout("jais2", layer_norm=True), cuts=NARROW),
    Family(
        "starcoder2",
        _channels("mlp.c_fc", "mlp.c_proj"),
        feed_forward_output="mlp.c_proj",
        gguf=_square("starcoder2"),
        cuts=NARROW,
    ),
    Family(
        "phi",
        _channels("mlp.fc1", "mlp.fc2"),
        attention_output="self_attn.dense",
        feed_forward_output="mlp.fc2",
        final_norm="final_layernorm",
        gguf=_square("phi2", extra=_phi),
        cuts=NARROW,
    ),
    Family(
        "gpt_neox",
        _channels("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        attention_output="attention.dense",
        feed_forward_output="mlp.dense_4h_to_h",
        final_norm="final_layer_norm",
        gguf=_square("gptneox", rules=PER_HEAD, extra=_parallel),
        cuts=NARROW,
    ),
    Family(
        "gpt2",
        _channels("mlp.c_fc", "mlp.c_proj"),
        attention_output="attn.c_proj",
        feed_forward_output="mlp.c_proj",
        stack="h",
        final_norm="ln_f",
        channels_key="n_inner",
        gguf=_square(
            "gpt2",
            rules=TURNED_MATRICES,
            rotary=False,
            feed_forward=lambda config: config.n_inner or 4 * config.n_embd,
        ),
        cuts=NARROW,
    ),
    Family(
        "glm",
        {"mlp.gate_up_proj": ("gated", "hidden"), "mlp.down_proj": ("hidden", "channels")},
        gguf=GgufLayout("chatglm", square=True, rules=JOINED),
        cuts=NARROW,
    ),
)
