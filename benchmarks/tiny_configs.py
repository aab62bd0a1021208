"""Tiny configs of every causal family of transformers, by one rule and a table of what the rule does not fit."""

from __future__ import annotations

from typing import Any

VOCABULARY = 211
WINDOW = 32
"""Shorter than the documents that are compared, so that windows show."""
F, S, L = "full_attention", "sliding_attention", "linear_attention"

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 512, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "n_embd": 64, "n_layer": 4, "n_head": 4,
    "n_positions": 512, "n_ctx": 512, "n_inner": 96, "d_model": 64, "shared_expert_intermediate_size": 32,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "mamba_d_state": 16, "mamba_n_heads": 4, "mamba_num_heads": 4, "mamba_head_dim": 32, "mamba_d_head": 32,
    "mamba_n_groups": 1, "n_groups": 1, "ssm_state_size": 16, "chunk_size": 64, "mamba_chunk_size": 64,
    "shared_intermediate_size": 32, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8,
}  # fmt: skip
"""What every config that has such a key gets."""
_VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "depth": 1, "num_attention_heads": 2, "num_heads": 2,
    "image_size": 28, "patch_size": 14, "out_hidden_size": 64, "vision_output_dim": 64, "projector_input_dim": 32,
    "projector_output_dim": 64, "embed_dim": 32, "attention_heads": 2, "per_layer_config": {}, "mlp_layer_types": ["dense"],
    "adapter_in_dim": 32, "adapter_out_dim": 64, "adapter_input_size": 32, "base_channels": 32,
}  # fmt: skip
_MLA: dict[str, Any] = {
    "head_dim": None, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "num_key_value_heads": 4,
}  # fmt: skip
_INDEX: dict[str, Any] = {"index_n_heads": 32, "index_head_dim": 16, "index_topk": 24}
"""With few heads some keys score exactly zero in all of them, and which of two is chosen depends on the layout of the rows."""
_GROUPS: dict[str, Any] = {"n_group": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1}
_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10_000.0}
_AXES: dict[str, Any] = {"rope_parameters": _ROPE | {"mrope_section": [2, 3, 3]}}
_WINDOWS: dict[str, Any] = {"sliding_window": WINDOW, "layer_types": [S, S, S, F]}

SPECIAL: dict[str, dict[str, Any]] = {
    "afmoe": _WINDOWS | {"num_dense_layers": 1},
    "apertus": {"rope_parameters": _ROPE},
    "axk1": _MLA | {"rope_parameters": _ROPE, "n_group": 2, "topk_group": 1},
    "axk2": _MLA | _INDEX,
    "bailing_hybrid": _MLA
    | {
        "head_dim": 16,
        "rope_parameters": _ROPE | {"partial_rotary_factor": 0.5},
        "num_expert_group": 2,
        "topk_group": 1,
        "num_experts_per_token": 2,
        "layer_group_size": 2,
        "linear_head_dim": 16,
        "linear_num_heads": 4,
    },
    "beam": {"rope_parameters": {S: _ROPE, F: None}, "sliding_window": WINDOW, "n_group": 2, "topk_group": 1},
    "codegen": {"rotary_dim": 8},
    "cohere2": _WINDOWS,
    "cwm": {"rope_parameters": _ROPE, "layer_types": [F] * 4},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        "n_heads": 4,
        "n_layers": 4,
        "max_seq_len": 512,
        "rope_theta": 10_000.0,
    },
    "deepseek_v2": _MLA | _GROUPS | {"n_group": 1},
    "deepseek_v3": _MLA | _GROUPS,
    "deepseek_v32": _MLA | _GROUPS | _INDEX,
    "dots1": {
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
        "layer_types": [F] * 4,
    },
    "emu3": {"vocabulary_map": {"<image>": 5}},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_layer_start_index": 1},
    "exaone4": _WINDOWS,
    "exaone_moe": _WINDOWS | {"n_group": 1, "topk_group": 1},
    "falcon": {"alibi": True},
    "falcon_h1": {"mamba_d_ssm": 128, "lm_head_multiplier": 0.8, "embedding_multiplier": 2.0, "key_multiplier": 0.6},
    "gemma2": {"query_pre_attn_scalar": 16, "sliding_window": WINDOW},
    "gemma3_text": _WINDOWS | {"query_pre_attn_scalar": 16},
    "gemma3n_text": _WINDOWS
    | {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0] * 4, "laurel_rank": 8, "intermediate_size": 96},
    "gemma4_text": _WINDOWS | {"global_head_dim": 16, "num_kv_shared_layers": 0},
    "glm4_moe": {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "glm4_moe_lite": _MLA | {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "glm_moe_dsa": _MLA
    | _GROUPS
    | {
        "n_group": 1,
        **_INDEX,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    },
    "gpt_oss": {"sliding_window": WINDOW, "layer_types": [S, F, S, F]},
    "gptj": {"rotary_dim": 8},
    "granite": {
        "attention_multiplier": 0.1,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "logits_scaling": 2.0,
    },
    "granitemoehybrid": {"layer_types": ["mamba", "mamba", "attention", "mamba"], "logits_scaling": 2.0},
    "kimi_linear": _MLA
    | {
        "num_experts_per_token": 2,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "layer_types": [L, L, L, F],
        "linear_head_dim": 16,
        "linear_num_heads": 4,
    },
    "lfm2": {"layer_types": ["conv", "conv", F, "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "conv", F, "conv"], "num_dense_layers": 1},
    "llama4_text": {"intermediate_size_mlp": 96, "attention_chunk_size": WINDOW, "num_experts_per_tok": 1},
    "mamba2": {"num_heads": 4, "head_dim": 32, "expand": 2, "state_size": 16, "n_groups": 1},
    "minicpm3": _MLA,
    "ministral": {"layer_types": [F] * 4},
    "mistral": {"sliding_window": WINDOW},
    "nemotron": {"head_dim": 16},
    "nemotron_h": {
        "layers_block_type": ["mamba", "moe", "attention", "moe"],
        "n_group": 1,
        "topk_group": 1,
        "moe_shared_expert_intermediate_size": 32,
        "n_groups": 1,
    },
    "olmo3": _WINDOWS,
    "phi3": {"sliding_window": WINDOW},
    "phi4_multimodal": {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "crop_size": 28,
        },
        "audio_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_blocks": 2,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 32,
            "depthwise_separable_out_channel": 32,
            "nemo_conv_channels": 32,
        },
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 32,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 24,
        "indexer_compress_ratio": 4,
        "hc_lowrank": 16,
        "layer_types": [L, L, L, "indexed_attention"],
        "ple_layer_ids": [2],
        "ngram_vocab_size_base": 512,
        "split_ngram_parts": 2,
    },
    "qwen3_5_moe_text": {"rope_parameters": _ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}},
    "qwen3_5_text": {"rope_parameters": _ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}},
    "zaya": {"num_experts_per_tok": 1},
    "dots3_note_text": _MLA
    | {
        **_INDEX,
        "head_dim": 24,
        "sliding_window": WINDOW,
        "shared_experts_intermediate_size": 32,
        "per_layer_config": {},
        "layer_types": ["indexed_attention", S, S, "indexed_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    },
    "cohere_compass_text": {"rope_parameters": {F: _ROPE, S: _ROPE}},
    "longcat_flash": _MLA
    | {
        "head_dim": 8,
        "ffn_hidden_size": 96,
        "expert_ffn_hidden_size": 32,
        "num_layers": 2,
        "moe_topk": 2,
        "zero_expert_num": 2,
    },
    "zamba": {
        "layers_block_type": [L, "hybrid", L, "hybrid"],
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "mamba_dt_rank": 4,
    },
    "zamba2": {"layer_types": None, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
    "qwen2_vl_text": _AXES,
    "qwen2_5_vl_text": _AXES,
    "qwen3_vl_text": _AXES,
    "qwen3_vl_moe_text": _AXES,
    "youtu": _MLA | {"tie_word_embeddings": True},
}
"""Families that need more: every kind of layer, windows shorter than documents, factors that are not one."""
OTHERWISE: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"norm_topk_prob": True},
    "olmoe": {"num_key_value_heads": 4},
    "exaone4": {"sliding_window": None, "layer_types": ["full_attention"] * 4},
    "gpt_oss": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "truncate": True,
        }
    },
    "llama4_text": {"attention_chunk_size": 8192},
    "gemma3_text": {"num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]},
    "gemma2": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "mamba": {"intermediate_size": 128},
    "mistral": {"sliding_window": None},
    "phi3": {"sliding_window": None},
    "olmo": {"clip_qkv": 1.0},
    "lfm2": {"block_auto_adjust_ff_dim": False},
}
"""What llama.cpp can hold of a family where the configs above hold something else, which export refuses by name."""
LARGEST = 60_000_000
"""Parameters beyond which a config is not tiny."""


def tiny_config(family: str) -> Any:
    """A config of a family, small enough for a test; raises where the rule does not fit."""
    from transformers import AutoConfig

    maker: Any = AutoConfig
    usual = maker.for_model(family).to_dict()
    if "text_config" not in usual or not isinstance(usual["text_config"], dict):
        return maker.for_model(family, **_shrunk(usual, family))
    text = usual["text_config"]
    inner = str(text.get("model_type"))
    said: dict[str, Any] = {"text_config": _shrunk(text, inner) | {"model_type": inner}}
    for part, value in usual.items():
        if part != "text_config" and part.endswith("_config") and isinstance(value, dict):
            said[part] = {key: small for key, small in _VISION.items() if key in value}
            if value.get("model_type"):
                said[part]["model_type"] = value["model_type"]
    said |= SPECIAL.get(family, {})
    return maker.for_model(family, **said)


def exportable_config(family: str) -> Any:
    """The same, but only with what llama.cpp has of the family."""
    from transformers import AutoConfig

    said = OTHERWISE.get(family)
    if said is None:
        return tiny_config(family)
    maker: Any = AutoConfig
    kept = {key: value for key, value in said.items() if value is not None}
    config = maker.for_model(family, **_shrunk(maker.for_model(family).to_dict(), family) | kept)
    for key, value in said.items():
        if value is None:
            setattr(config, key, None)
    return config


def _shrunk(usual: dict[str, Any], family: str) -> dict[str, Any]:
    said = {key: value for key, value in SMALL.items() if key in usual}
    for key, value in SPECIAL.get(family, {}).items():
        if value is None:
            said.pop(key, None)
        else:
            said[key] = value
    return said


def tiny_model(config: Any, opener: Any) -> Any:
    """A model of random weights, float32; its logits are far from uniform."""
    import torch

    torch.manual_seed(0)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in opener.from_config(config).parameters())
    if count > LARGEST:
        raise ValueError(f"not tiny: {count:,} parameters")
    model = opener.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                wide = parameter.shape[0] == VOCABULARY
                parameter.normal_(0, 0.2 if wide else parameter.shape[-1] ** -0.5)
    return model
