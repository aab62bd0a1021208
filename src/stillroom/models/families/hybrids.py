"""State-space and linear-attention families, alone or beside attention: their mixers stay whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stillroom.models.families.family import DEEP, MIXTURE, Family, GgufLayout
from stillroom.models.families.granite import scales
from stillroom.models.families.mixtures import gates, refuse
from stillroom.models.families.rewrites import (
    DELTA,
    FIRST_STATE_SPACE,
    GRANITE_EXPERTS,
    MULTIPLIED,
    NEMOTRON_H,
    REGROUPED_DELTA,
    SHORT_CONVOLUTION,
    STATE_SPACE,
)
from stillroom.models.families.rope import rope_parameters

if TYPE_CHECKING:
    from gguf import GGUFWriter

ATTENDS = ("attention", "full_attention")
"""Names of layers with attention in configs of hybrids."""


def kinds(config: Any) -> list[str]:
    """What each layer mixes tokens with."""
    return list(getattr(config, "layers_block_type", None) or config.layer_types)


def _attention_heads(config: Any) -> list[int]:
    return [int(config.num_key_value_heads) if kind in ATTENDS else 0 for kind in kinds(config)]


def _none(_config: Any) -> int:
    return 0


def _state_space(writer: GGUFWriter, heads: int, width: int, groups: int, state: int, kernel: int) -> None:
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(heads * width)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(heads)
    writer.add_ssm_group_count(groups)


def _mamba(writer: GGUFWriter, config: Any) -> None:
    if config.intermediate_size != 2 * config.hidden_size:
        refuse(config, "takes the inner size to be twice the hidden size")
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_inner_size(config.intermediate_size)
    writer.add_ssm_state_size(config.state_size)
    writer.add_ssm_time_step_rank(config.time_step_rank)


def _mamba2(writer: GGUFWriter, config: Any) -> None:
    _state_space(writer, config.num_heads, config.head_dim, config.n_groups, config.state_size, config.conv_kernel)


def _mamba2_of_hybrid(writer: GGUFWriter, config: Any) -> None:
    _state_space(
        writer,
        config.mamba_n_heads,
        config.mamba_d_head,
        config.mamba_n_groups,
        config.mamba_d_state,
        config.mamba_d_conv,
    )


def _granite(writer: GGUFWriter, config: Any) -> None:
    scales(writer, config)
    writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)
    _mamba2_of_hybrid(writer, config)
    writer.add_rope_scaling_finetuned(getattr(config, "position_embedding_type", None) == "rope")


def _falcon(writer: GGUFWriter, config: Any) -> None:
    if config.attention_bias or config.mamba_proj_bias or config.mlp_bias or config.projectors_bias:
        refuse(config, "folds multipliers into matrices without biases")
    _mamba2_of_hybrid(writer, config)


def _nemotron(writer: GGUFWriter, config: Any) -> None:
    if getattr(config, "moe_latent_size", None):
        refuse(config, "has no latent experts")
    _state_space(
        writer,
        config.mamba_num_heads,
        config.mamba_head_dim,
        config.n_groups,
        config.ssm_state_size,
        config.conv_kernel,
    )
    writer.add_layer_norm_eps(float(config.layer_norm_epsilon))
    gates(writer, config, sigmoid=True, shared=config.n_shared_experts)
    writer.add_expert_shared_feed_forward_length(config.moe_shared_expert_intermediate_size)
    writer.add_expert_group_count(1)
    writer.add_expert_group_used_count(1)


def _nemotron_sizes(config: Any) -> list[int]:
    sizes = {"mlp": config.intermediate_size, "moe": config.moe_intermediate_size}
    return [int(sizes.get(kind, 0)) for kind in kinds(config)]


def _convolution(writer: GGUFWriter, config: Any) -> None:
    writer.add_shortconv_l_cache(config.conv_L_cache)


def _convolution_experts(writer: GGUFWriter, config: Any) -> None:
    _convolution(writer, config)
    writer.add_leading_dense_block_count(config.num_dense_layers)
    if float(config.routed_scaling_factor or 1.0) != 1.0 or not config.norm_topk_prob:
        refuse(config, "renormalises the gates and does not scale them")
    gates(writer, config, sigmoid=True, scaled=False)


def _convolution_size(config: Any) -> int:
    """LFM2 computes its own feed-forward size from what the config says."""
    size = int(config.intermediate_size)
    if not getattr(config, "block_auto_adjust_ff_dim", False):
        return size
    size = int(2 * size / 3)
    if config.block_ffn_dim_multiplier is not None:
        size = int(config.block_ffn_dim_multiplier * size)
    multiple = int(config.block_multiple_of)
    return multiple * -(-size // multiple)


def _delta(writer: GGUFWriter, config: Any) -> None:
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)
    writer.add_full_attention_interval(4)
    # Which layers are recurrent, in any order.
    writer.add_array(f"{writer.arch}.attention.recurrent_layers", [kind not in ATTENDS for kind in kinds(config)])
    if getattr(config, "shared_expert_intermediate_size", None):
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def _delta_sections(writer: GGUFWriter, config: Any) -> None:
    _delta(writer, config)
    rope = rope_parameters(config)
    rotated = int(config.head_dim * float(rope.get("partial_rotary_factor") or 1.0))
    sections = list(rope.get("mrope_section") or [rotated // 2, 0, 0])
    writer.add_rope_dimension_sections(([*sections, 0])[:4])


FAMILIES = (
    Family(
        "mamba",
        {},
        gguf=GgufLayout(
            "mamba", rules=FIRST_STATE_SPACE, rotary=False, kv_heads=_none, feed_forward=_none, extra=_mamba
        ),
        cuts=DEEP,
        final_norm="norm_f",
    ),
    Family(
        "mamba2",
        {},
        gguf=GgufLayout("mamba2", rules=STATE_SPACE, rotary=False, kv_heads=_none, feed_forward=_none, extra=_mamba2),
        cuts=DEEP,
        final_norm="norm_f",
    ),
    Family(
        "granitemoehybrid",
        {},
        gguf=GgufLayout(
            "granitehybrid",
            permuted=True,
            experts=True,
            rules=(*GRANITE_EXPERTS, *STATE_SPACE),
            kv_heads=_attention_heads,
            extra=_granite,
        ),
        cuts=MIXTURE,
        experts_key="num_local_experts",
    ),
    Family(
        "falcon_h1",
        {},
        gguf=GgufLayout("falcon-h1", rules=MULTIPLIED, extra=_falcon),
        cuts=DEEP,
        final_norm="final_layernorm",
    ),
    Family(
        "nemotron_h",
        {},
        gguf=GgufLayout(
            "nemotron_h_moe",
            experts=True,
            rules=NEMOTRON_H,
            kv_heads=_attention_heads,
            feed_forward=_nemotron_sizes,
            extra=_nemotron,
        ),
        cuts=MIXTURE,
        experts_key="n_routed_experts",
        final_norm="norm_f",
    ),
    Family(
        "lfm2",
        {},
        gguf=GgufLayout(
            "lfm2",
            square=True,
            rules=SHORT_CONVOLUTION,
            kv_heads=_attention_heads,
            feed_forward=_convolution_size,
            extra=_convolution,
        ),
        cuts=DEEP,
        final_norm="embedding_norm",
    ),
    Family(
        "lfm2_moe",
        {},
        gguf=GgufLayout(
            "lfm2moe",
            square=True,
            experts=True,
            rules=SHORT_CONVOLUTION,
            kv_heads=_attention_heads,
            extra=_convolution_experts,
        ),
        cuts=MIXTURE,
        final_norm="embedding_norm",
    ),
    Family("qwen3_next", {}, gguf=GgufLayout("qwen3next", experts=True, rules=DELTA, extra=_delta), cuts=MIXTURE),
    Family("qwen3_5_text", {}, gguf=GgufLayout("qwen35", rules=REGROUPED_DELTA, extra=_delta_sections), cuts=DEEP),
    Family(
        "qwen3_5_moe_text",
        {},
        gguf=GgufLayout(
            "qwen35moe",
            experts=True,
            rules=REGROUPED_DELTA,
            feed_forward=lambda c: int(c.moe_intermediate_size),
            extra=_delta_sections,
        ),
        cuts=MIXTURE,
    ),
)
