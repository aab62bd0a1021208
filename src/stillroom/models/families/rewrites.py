"""How tensors of transformers become those of llama.cpp: the rules that several families share.

Every change takes a tensor, the config and a reader of the same layer's other tensors, and also computes on shapes alone.

Legend: E experts, F feed-forward size, H hidden size, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from stillroom.models.families.family import Rule

Read = Callable[[str], torch.Tensor]
Change = Callable[[torch.Tensor, Any, Read], tuple[torch.Tensor, ...]]


def times(factor: Callable[[Any], float]) -> Change:
    """Multiplied by a number of the config."""
    return lambda tensor, config, _read: (tensor * float(factor(config)),)


def _halves(tensor: torch.Tensor, _config: Any, _read: Read) -> tuple[torch.Tensor, ...]:
    """Gate and up, one after the other along the axis before the last: [..., 2F, H] each to [..., F, H]."""
    return tuple(tensor.chunk(2, dim=-2))


def _turned_halves(tensor: torch.Tensor, _config: Any, _read: Read) -> tuple[torch.Tensor, ...]:
    """[E, H, 2F] to two of [E, F, H]."""
    return tuple(tensor.transpose(-1, -2).chunk(2, dim=-2))


def _turned_alternating(tensor: torch.Tensor, _config: Any, _read: Read) -> tuple[torch.Tensor, ...]:
    """[E, H, 2F] with gate and up in turn to two of [E, F, H]."""
    turned = tensor.transpose(-1, -2)
    return turned[:, 0::2], turned[:, 1::2]


def _alternating(tensor: torch.Tensor, _config: Any, _read: Read) -> tuple[torch.Tensor, ...]:
    """[E, 2F] with gate and up in turn to two of [E, F]."""
    return tensor[:, 0::2], tensor[:, 1::2]


def _turned(tensor: torch.Tensor, _config: Any, _read: Read) -> tuple[torch.Tensor, ...]:
    return (tensor.transpose(-1, -2),)


def _flat(tensor: torch.Tensor, _config: Any, _read: Read) -> tuple[torch.Tensor, ...]:
    return (tensor.reshape(-1),)


def _squeezed(tensor: torch.Tensor, _config: Any, _read: Read) -> tuple[torch.Tensor, ...]:
    return (tensor.squeeze(1),)


def _column(tensor: torch.Tensor, _config: Any, _read: Read) -> tuple[torch.Tensor, ...]:
    return (tensor.reshape(-1, 1),)


def _decay(tensor: torch.Tensor, _config: Any, _read: Read) -> tuple[torch.Tensor, ...]:
    return (-torch.exp(tensor),)


def _decay_column(tensor: torch.Tensor, _config: Any, _read: Read) -> tuple[torch.Tensor, ...]:
    return (-torch.exp(tensor.reshape(-1, 1)),)


def _plus_one(tensor: torch.Tensor, _config: Any, _read: Read) -> tuple[torch.Tensor, ...]:
    return (tensor + 1,)


def _per_head(tensor: torch.Tensor, config: Any, _read: Read) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values of one head after the other to those of all heads: [heads · 3 · D, ...]."""
    parts = tensor.reshape(config.num_attention_heads, 3, -1, *tensor.shape[1:])
    return (parts.transpose(0, 1).reshape(tensor.shape),)


def _joined(tensor: torch.Tensor, _config: Any, read: Read, kind: str) -> tuple[torch.Tensor, ...]:
    return (torch.cat([tensor, read(f"self_attn.k_proj.{kind}"), read(f"self_attn.v_proj.{kind}")]),)


def _latent(tensor: torch.Tensor, config: Any, _read: Read) -> tuple[torch.Tensor, ...]:
    """Latent attention: [heads · (nope + value), rank] to keys [heads, rank, nope] and values [heads, value, rank]."""
    heads, nope, value = config.num_attention_heads, config.qk_nope_head_dim, config.v_head_dim
    parts = tensor.reshape(heads, nope + value, -1)
    return parts[:, :nope].transpose(1, 2), parts[:, nope:]


def _grouped_norm(tensor: torch.Tensor, config: Any, _read: Read) -> tuple[torch.Tensor, ...]:
    """A norm over groups of state-space heads: [groups, width]."""
    return (tensor.reshape(getattr(config, "mamba_n_groups", None) or config.n_groups, -1),)


EXPERTS = (
    Rule(r"experts\.gate_up_proj$", ("=blk.{n}.ffn_gate_exps.weight", "=blk.{n}.ffn_up_exps.weight"), _halves),
    Rule(r"experts\.up_proj$", ("=blk.{n}.ffn_up_exps.weight",)),
    Rule(r"experts\.down_proj$", ("=blk.{n}.ffn_down_exps.weight",)),
    Rule(r"(e_score_correction_bias|expert_bias)$", ("=blk.{n}.exp_probs_b.bias",), _flat),
)
"""Stacked experts, and the bias by which they are chosen."""
TURNED_EXPERTS = (
    Rule(r"experts\.gate_up_proj$", ("=blk.{n}.ffn_gate_exps.weight", "=blk.{n}.ffn_up_exps.weight"), _turned_halves),
    Rule(r"experts\.down_proj$", ("=blk.{n}.ffn_down_exps.weight",), _turned),
)
"""Stacked experts whose rows are inputs (Llama 4)."""
ALTERNATING_EXPERTS = (
    Rule(
        r"experts\.gate_up_proj$", ("=blk.{n}.ffn_gate_exps.weight", "=blk.{n}.ffn_up_exps.weight"), _turned_alternating
    ),
    Rule(r"experts\.gate_up_proj_bias$", ("=blk.{n}.ffn_gate_exps.bias", "=blk.{n}.ffn_up_exps.bias"), _alternating),
    Rule(r"experts\.down_proj$", ("=blk.{n}.ffn_down_exps.weight",), _turned),
    Rule(r"experts\.down_proj_bias$", ("=blk.{n}.ffn_down_exps.bias",)),
    Rule(r"sinks$", ("{name}.weight",)),
)
"""Stacked experts whose rows are inputs, gate and up in turn, with biases; attention with sinks (gpt-oss)."""
GRANITE_EXPERTS = (
    Rule(r"block_sparse_moe\.router", ("=blk.{n}.ffn_gate_inp.weight",)),
    *EXPERTS,
    Rule(r"shared_mlp\.input_linear", ("=blk.{n}.ffn_gate{shexp}.weight", "=blk.{n}.ffn_up{shexp}.weight"), _halves),
    Rule(r"shared_mlp\.output_linear", ("=blk.{n}.ffn_down{shexp}.weight",)),
)
"""Granite's router and shared expert, which is the feed-forward part where there are no experts."""
STATE_SPACE = (
    Rule(r"dt_bias$", ("=blk.{n}.ssm_dt.bias",)),
    Rule(r"A_log$", ("=blk.{n}.ssm_a",), _decay_column),
    Rule(r"(mamba|mixer)\.D$", ("=blk.{n}.ssm_d",), _column),
    Rule(r"conv1d\.weight$", ("{name}",), _squeezed),
    Rule(r"(mamba|mixer)\.norm\.weight$", ("{name}",), _grouped_norm),
)
"""Mamba 2."""
FIRST_STATE_SPACE = (
    Rule(r"A_log$", ("=blk.{n}.ssm_a",), _decay),
    Rule(r"mixer\.D$", ("=blk.{n}.ssm_d",)),
    Rule(r"conv1d\.weight$", ("{name}",), _squeezed),
)
"""Mamba."""
LATENT = (
    *EXPERTS,
    Rule(r"self_attn\.kv_b_proj\.weight$", ("=blk.{n}.attn_k_b.weight", "=blk.{n}.attn_v_b.weight"), _latent),
)
"""Multi-head latent attention (DeepSeek)."""
SHORT_CONVOLUTION = (Rule(r"conv\.conv\.weight$", ("{name}",), _squeezed), *EXPERTS)
"""Short convolutions (LFM2)."""
TURNED_MATRICES = (Rule(r"(c_attn|c_proj|c_fc)\.weight$", ("{name}",), _turned),)
"""Matrices whose rows are inputs (GPT-2)."""
PER_HEAD = (Rule(r"query_key_value\.", ("{name}",), _per_head),)
"""Queries, keys and values head by head (GPT-NeoX)."""
JOINED = (
    Rule(r"self_attn\.q_proj\.weight$", ("=blk.{n}.attn_qkv.weight",), lambda t, c, r: _joined(t, c, r, "weight")),
    Rule(r"self_attn\.q_proj\.bias$", ("=blk.{n}.attn_qkv.bias",), lambda t, c, r: _joined(t, c, r, "bias")),
    Rule(r"self_attn\.[kv]_proj\.", ()),
)
"""Queries, keys and values in one matrix (GLM)."""
DELTA = (
    Rule(r"dt_bias$", ("=blk.{n}.ssm_dt.bias",)),
    Rule(r"A_log$", ("=blk.{n}.ssm_a",), _decay),
    Rule(r"conv1d\.weight$", ("{name}",), _squeezed),
    Rule(r"linear_attn\.norm\.weight$"),
    Rule(r"norm\.weight$", ("{name}",), _plus_one),
    *EXPERTS,
)
"""Gated delta nets (Qwen3-Next); norms store their weight minus one."""


def _regrouped(tensor: torch.Tensor, config: Any, axis: int, width: int) -> torch.Tensor:
    """Value heads of one key head after the other to one of each key head in turn."""
    keys = config.linear_num_key_heads
    each = config.linear_num_value_heads // keys
    shape = tensor.shape
    parts = tensor.reshape(*shape[:axis], keys, each, width, *shape[axis + 1 :])
    return parts.transpose(axis, axis + 1).reshape(shape)


def _values(axis: int, wide: bool, then: Change | None = None) -> Change:
    def change(tensor: torch.Tensor, config: Any, read: Read) -> tuple[torch.Tensor, ...]:
        found = _regrouped(tensor, config, axis, config.linear_value_head_dim if wide else 1)
        return (found,) if then is None else then(found, config, read)

    return change


def _values_after_keys(then: Change | None = None) -> Change:
    """Queries and keys stay, the values behind them are regrouped."""

    def change(tensor: torch.Tensor, config: Any, read: Read) -> tuple[torch.Tensor, ...]:
        before = 2 * config.linear_num_key_heads * config.linear_key_head_dim
        values = _regrouped(tensor[before:], config, 0, config.linear_value_head_dim)
        found = torch.cat([tensor[:before], values])
        return (found,) if then is None else then(found, config, read)

    return change


REGROUPED_DELTA = (
    Rule(r"dt_bias$", ("=blk.{n}.ssm_dt.bias",), _values(0, wide=False)),
    Rule(r"A_log$", ("=blk.{n}.ssm_a",), _values(0, wide=False, then=_decay)),
    Rule(r"linear_attn\.conv1d\.weight$", ("{name}",), _values_after_keys(_squeezed)),
    Rule(r"linear_attn\.in_proj_qkv\.weight$", ("{name}",), _values_after_keys()),
    Rule(r"linear_attn\.in_proj_z\.weight$", ("{name}",), _values(0, wide=True)),
    Rule(r"linear_attn\.in_proj_[ab]\.weight$", ("{name}",), _values(0, wide=False)),
    Rule(r"linear_attn\.out_proj\.weight$", ("{name}",), _values(1, wide=True)),
    *DELTA[3:],
)
"""The same with llama.cpp's order of value heads (Qwen3.5)."""


def _ssm_parts(tensor: torch.Tensor, config: Any, _read: Read) -> tuple[torch.Tensor, ...]:
    """Falcon-H1's multipliers of the gate, the input, B, C and the time steps, folded into the rows that make them."""
    inner, state = config.mamba_d_ssm, config.mamba_n_groups * config.mamba_d_state
    sizes = [inner, inner, state, state, tensor.shape[0] - 2 * inner - 2 * state]
    rows = torch.cat(
        [torch.full((size,), float(value)) for size, value in zip(sizes, config.ssm_multipliers, strict=True)]
    )
    return (tensor * float(config.ssm_in_multiplier) * rows.to(tensor.device)[:, None],)


MULTIPLIED = (
    Rule(r"feed_forward\.down_proj\.", ("{name}",), times(lambda c: c.mlp_multipliers[1])),
    Rule(r"feed_forward\.gate_proj\.", ("{name}",), times(lambda c: c.mlp_multipliers[0])),
    Rule(r"self_attn\.k_proj\.weight", ("{name}",), times(lambda c: c.key_multiplier * c.attention_in_multiplier)),
    Rule(r"self_attn\.[qv]_proj\.weight", ("{name}",), times(lambda c: c.attention_in_multiplier)),
    Rule(r"self_attn\.o_proj\.", ("{name}",), times(lambda c: c.attention_out_multiplier)),
    Rule(r"mamba\.out_proj\.", ("{name}",), times(lambda c: c.ssm_out_multiplier)),
    Rule(r"mamba\.in_proj\.", ("{name}",), _ssm_parts),
    Rule(r"lm_head\.", ("{name}",), times(lambda c: c.lm_head_multiplier)),
    Rule(r"embed_tokens\.", ("{name}",), times(lambda c: c.embedding_multiplier)),
    *STATE_SPACE,
)
"""Falcon-H1: its multipliers are folded into the weights."""
NEMOTRON_H = (
    *EXPERTS,
    Rule(r"dt_bias$", ("=blk.{n}.ssm_dt.bias",)),
    Rule(r"A_log$", ("=blk.{n}.ssm_a",), _decay_column),
    Rule(r"mixer\.D$", ("=blk.{n}.ssm_d",), _column),
    Rule(r"conv1d\.weight$", ("=blk.{n}.ssm_conv1d.weight",), _squeezed),
    Rule(r"conv1d\.bias$", ("=blk.{n}.ssm_conv1d.bias",)),
    Rule(r"mixer\.norm\.weight$", ("=blk.{n}.ssm_norm.weight",), _grouped_norm),
    Rule(r"^model\.", ("backbone.{rest}",)),
)
"""Nemotron-H: one part a layer, under the names of its own checkpoints."""
APERTUS = (Rule(r"mlp\.act_fn\.", ()),)
"""Apertus: the numbers of its activations are keys of the file."""
