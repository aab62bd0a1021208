"""Mixtures of experts: layers and experts can go; routers lose the rows of experts that went."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stillroom.core.errors import UnsupportedModel
from stillroom.models.families.dense import windows
from stillroom.models.families.family import FEED_FORWARD, MIXTURE, NARROW, Family, GgufLayout
from stillroom.models.families.granite import scales
from stillroom.models.families.rewrites import (
    ALTERNATING_EXPERTS,
    EXPERTS,
    GRANITE_EXPERTS,
    LATENT,
    TURNED_EXPERTS,
)
from stillroom.models.families.rope import rope_parameters

if TYPE_CHECKING:
    from gguf import GGUFWriter

Extra = Callable[["GGUFWriter", Any], None]
CHUNK = 8192
"""Tokens of a chunk of attention that llama.cpp takes for granted of Llama 4."""
LITE = (26, 27)
"""Numbers of layers at which llama.cpp takes DeepSeek 2 for its "lite" version, without low-rank queries."""


def refuse(config: Any, why: str) -> None:
    """Refuse a config that llama.cpp would compute otherwise."""
    raise UnsupportedModel(
        f"llama.cpp {why} in the family `{config.model_type}`.", "Export nothing: `export: {gguf: []}`."
    )


def dense_layers(config: Any) -> int:
    """How many of the first layers have no experts; all that have none must be the first."""
    kinds = getattr(config, "mlp_layer_types", None)
    if kinds is None:
        kinds = ["dense"] * int(getattr(config, "first_k_dense_replace", None) or 0)
    count: int = sum(kind == "dense" for kind in kinds)
    if any(kind != "dense" for kind in kinds[:count]):
        refuse(config, "takes the layers without experts to be the first ones")
    return count


def gates(
    writer: GGUFWriter,
    config: Any,
    *,
    sigmoid: bool,
    scaled: bool = True,
    shared: int | None = None,
    dense: int | None = None,
    grouped: bool = False,
    renormalised: bool | None = None,
) -> None:
    """How experts are chosen and weighted, as keys."""
    from gguf import ExpertGatingFuncType

    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID if sigmoid else ExpertGatingFuncType.SOFTMAX)
    if scaled:
        writer.add_expert_weights_scale(float(getattr(config, "routed_scaling_factor", None) or 1.0))
        if renormalised is None:
            renormalised = bool(getattr(config, "norm_topk_prob", True))
        writer.add_expert_weights_norm(renormalised)
    if shared is not None:
        writer.add_expert_shared_count(shared)
    if dense is not None:
        writer.add_leading_dense_block_count(dense)
    if (getattr(config, "n_group", None) or 1) > 1:
        if not grouped:
            refuse(config, "has no groups of experts")
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)


def _equal_heads(config: Any) -> None:
    if config.num_key_value_heads != config.num_attention_heads:
        refuse(config, "takes every query head to have a key/value head of its own")


def _qwen3_moe(_writer: GGUFWriter, config: Any) -> None:
    if not config.norm_topk_prob:
        refuse(config, "always renormalises the gates, and `norm_topk_prob` is false")
    _every_layer(config)


def _every_layer(config: Any) -> None:
    if getattr(config, "decoder_sparse_step", 1) != 1 or getattr(config, "mlp_only_layers", None):
        refuse(config, "has experts in every layer")


def _qwen2_moe(writer: GGUFWriter, config: Any) -> None:
    _every_layer(config)
    if config.norm_topk_prob:
        refuse(config, "does not renormalise the gates, and `norm_topk_prob` is true")
    writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def _olmoe(_writer: GGUFWriter, config: Any) -> None:
    _equal_heads(config)
    if config.clip_qkv:
        refuse(config, "does not clip queries, keys and values")
    if config.norm_topk_prob:
        refuse(config, "does not renormalise the gates, and `norm_topk_prob` is true")


def _granite_shared(writer: GGUFWriter, config: Any) -> None:
    scales(writer, config)
    writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)


def _glm4_moe(writer: GGUFWriter, config: Any) -> None:
    gates(writer, config, sigmoid=True, shared=config.n_shared_experts, dense=dense_layers(config))


def _dots1(writer: GGUFWriter, config: Any) -> None:
    _equal_heads(config)
    gates(writer, config, sigmoid=True, shared=config.n_shared_experts, dense=dense_layers(config))


def _exaone_moe(writer: GGUFWriter, config: Any) -> None:
    windows(writer, config)
    gates(writer, config, sigmoid=True, shared=config.num_shared_experts, dense=dense_layers(config))
    writer.add_expert_shared_feed_forward_length(config.moe_intermediate_size * config.num_shared_experts)


def _ernie(writer: GGUFWriter, config: Any) -> None:
    if config.moe_layer_end_index not in (-1, config.num_hidden_layers - 1):
        refuse(config, "has experts up to the last layer")
    writer.add_interleave_moe_layer_step(config.moe_layer_interval)
    writer.add_leading_dense_block_count(config.moe_layer_start_index)
    writer.add_expert_shared_count(config.moe_num_shared_experts)
    writer.add_expert_shared_feed_forward_length(config.moe_intermediate_size * config.moe_num_shared_experts)


def _hunyuan(writer: GGUFWriter, config: Any) -> None:
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_expert_shared_feed_forward_length(config.intermediate_size)
    writer.add_expert_shared_count(1)


def _minimax(writer: GGUFWriter, config: Any) -> None:
    writer.add_expert_feed_forward_length(config.intermediate_size)
    gates(writer, config, sigmoid=True, scaled=False)


def _minimax_rotated(config: Any) -> int:
    partial = float(rope_parameters(config).get("partial_rotary_factor") or 1.0)
    return int(getattr(config, "rotary_dim", None) or config.head_dim * partial)


def _gpt_oss(writer: GGUFWriter, config: Any) -> None:
    windows(writer, config)
    writer.add_expert_feed_forward_length(config.intermediate_size)


def _llama4(writer: GGUFWriter, config: Any) -> None:
    kinds = [(index + 1) % 4 == 0 for index in range(config.num_hidden_layers)]
    if [kind == "full_attention" for kind in config.layer_types] != kinds:
        refuse(config, "takes every 4. layer to have no rotary positions and to attend to everything")
    if min(config.max_position_embeddings, CHUNK) > config.attention_chunk_size or config.attention_chunk_size > CHUNK:
        refuse(config, f"attends in chunks of {CHUNK} tokens")
    if config.attn_temperature_tuning and (config.attn_scale, config.floor_scale) != (0.1, CHUNK):
        refuse(config, f"scales queries by 0.1 from {CHUNK} tokens on")
    writer.add_interleave_moe_layer_step(config.interleave_moe_layer_step)
    writer.add_expert_feed_forward_length(config.intermediate_size)


def _latent(sigmoid: bool) -> Extra:
    """Multi-head latent attention, whose keys are stored as one head of rank and rotated part."""

    def write(writer: GGUFWriter, config: Any) -> None:
        if config.q_lora_rank:
            if config.num_hidden_layers in LITE:
                refuse(config, f"takes {config.num_hidden_layers} layers for a version without `q_lora_rank`")
            writer.add_q_lora_rank(config.q_lora_rank)
        elif config.num_hidden_layers not in LITE:
            refuse(config, "has queries without `q_lora_rank` at 26 and 27 layers only")
        writer.add_kv_lora_rank(config.kv_lora_rank)
        writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
        writer.add_value_length(config.kv_lora_rank)
        writer.add_key_length_mla(config.qk_nope_head_dim + config.qk_rope_head_dim)
        writer.add_value_length_mla(config.v_head_dim)
        if getattr(config, "n_routed_experts", None):
            gates(
                writer,
                config,
                sigmoid=sigmoid,
                shared=config.n_shared_experts,
                dense=dense_layers(config),
                grouped=True,
                renormalised=None if sigmoid else False,  # DeepSeek 2 never does, whatever its config says
            )
        else:
            writer.add_leading_dense_block_count(config.num_hidden_layers)
            writer.add_expert_feed_forward_length(config.intermediate_size)
            writer.add_expert_shared_count(0)

    return write


def _layout(arch: str, extra: Extra | None = None, **options: Any) -> GgufLayout:
    return GgufLayout(arch, **({"extra": extra, "experts": True, "rules": EXPERTS} | options))


def _mixture(name: str, gguf: GgufLayout | None, experts_key: str = "num_experts", **options: Any) -> Family:
    return Family(name, {}, gguf=gguf, cuts=MIXTURE, experts_key=experts_key, **options)


def _latent_layout(sigmoid: bool, experts: bool = True) -> GgufLayout:
    return _layout(
        "deepseek2",
        _latent(sigmoid),
        rules=LATENT,
        experts=experts,
        kv_heads=lambda _config: 1,
        rotated=lambda config: int(config.qk_rope_head_dim),
    )


LOCAL, ROUTED = "num_local_experts", "n_routed_experts"

FAMILIES = (
    _mixture("qwen3_moe", _layout("qwen3moe", _qwen3_moe)),
    _mixture("qwen2_moe", _layout("qwen2moe", _qwen2_moe, square=True)),
    _mixture("mixtral", _layout("llama", permuted=True), LOCAL),
    _mixture("olmoe", _layout("olmoe", _olmoe, square=True)),
    _mixture("granitemoe", _layout("granitemoe", scales, permuted=True, rules=GRANITE_EXPERTS), LOCAL),
    _mixture("granitemoeshared", _layout("granitemoe", _granite_shared, permuted=True, rules=GRANITE_EXPERTS), LOCAL),
    _mixture("glm4_moe", _layout("glm4moe", _glm4_moe), ROUTED),
    _mixture("solar_open", _layout("glm4moe", _glm4_moe, feed_forward=lambda c: int(c.moe_intermediate_size)), ROUTED),
    _mixture("dots1", _layout("dots1", _dots1), ROUTED),
    _mixture("exaone_moe", _layout("exaone-moe", _exaone_moe, windows=True)),
    _mixture("ernie4_5_moe", _layout("ernie4_5-moe", _ernie), "moe_num_experts", chosen_key="moe_k"),
    _mixture("hunyuan_v1_moe", _layout("hunyuan-moe", _hunyuan), chosen_key="moe_topk"),
    _mixture("minimax_m2", _layout("minimax-m2", _minimax, rotated=_minimax_rotated), LOCAL),
    _mixture("gpt_oss", _layout("gpt-oss", _gpt_oss, rules=ALTERNATING_EXPERTS, windows=True), LOCAL),
    _mixture(
        "llama4_text",
        _layout(
            "llama4", _llama4, rules=TURNED_EXPERTS, windows=True, feed_forward=lambda c: int(c.intermediate_size_mlp)
        ),
        LOCAL,
    ),
    _mixture("deepseek_v2", _latent_layout(sigmoid=False), ROUTED),
    _mixture("deepseek_v3", _latent_layout(sigmoid=True), ROUTED),
    _mixture("glm4_moe_lite", _latent_layout(sigmoid=True), ROUTED),
    Family("youtu", FEED_FORWARD, gguf=_latent_layout(sigmoid=False, experts=False), cuts=NARROW),
    # llama.cpp does not have these, or computes them otherwise.
    _mixture("flex_olmo", None),
    _mixture("afmoe", None),
    _mixture("mimo_v2_flash", None, ROUTED),
)
