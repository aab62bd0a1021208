"""Settings that llama.cpp takes for granted: what a config says otherwise would be computed otherwise, or not load.

Found by exporting a tiny random model of every family with each of its switches turned over, and comparing with PyTorch.
"""

ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act")
"""Keys under which configs name the function between a feed-forward layer's matrices."""
ALIKE = (frozenset(("silu", "swish")), frozenset(("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python")))
"""Names of the same function, or of ones that differ by less than a file of type F16 does."""
EVERYWHERE = (
    *ACTIVATIONS,
    "final_logit_softcapping",
    "use_bidirectional_attention",
    "scale_attn_by_inverse_layer_idx",
    "scale_attn_weights",
)
"""Keys that it reads in no family, but for what a family's layout says."""
TIED, BIAS = "tie_word_embeddings", "attention_bias"
GRANTED: dict[str, tuple[str, ...]] = {
    "apertus": (TIED,),
    "arcee": (BIAS, "mlp_bias"),
    "cohere": (BIAS,),
    "cohere2": (BIAS,),
    "deepseek_v2": (BIAS, "mlp_bias"),
    "deepseek_v3": (BIAS, "rope_interleave"),
    "dots1": (TIED, BIAS),
    "ernie4_5_moe": ("use_bias",),
    "exaone_moe": (TIED,),
    "falcon_h1": (TIED, "mamba_conv_bias", "mamba_rms_norm"),
    "gemma2": (BIAS,),
    "gemma3_text": (BIAS,),
    "glm4_moe_lite": (BIAS, "rope_interleave"),
    "gpt_neox": (TIED, BIAS),
    "gpt_oss": (TIED, BIAS),
    "granitemoehybrid": ("mamba_conv_bias", "mamba_proj_bias"),
    "hunyuan_v1_dense": (BIAS,),
    "hunyuan_v1_moe": (BIAS,),
    "jais2": (BIAS, "mlp_bias"),
    "lfm2": ("conv_bias",),
    "lfm2_moe": ("conv_bias", "use_expert_bias"),
    "llama4_text": (BIAS, "use_qk_norm"),
    "mamba": ("use_bias", "use_conv_bias"),
    "mamba2": ("use_bias", "use_conv_bias"),
    "minimax_m2": (TIED,),
    "nemotron": (TIED,),
    "nemotron_h": (TIED, "mlp_bias", "use_bias", "use_conv_bias"),
    "olmo": (BIAS,),
    "olmo2": (TIED, BIAS),
    "olmo3": (TIED, BIAS),
    "olmoe": (TIED, BIAS),
    "phi": (TIED,),
    "qwen2_moe": (TIED,),
    "qwen3": (BIAS,),
    "qwen3_5_moe_text": (BIAS,),
    "qwen3_5_text": (BIAS,),
    "qwen3_moe": (BIAS,),
    "qwen3_next": (BIAS, "norm_topk_prob"),
    "seed_oss": ("attention_out_bias", "mlp_bias"),
    "smollm3": (BIAS, "mlp_bias"),
    "stablelm": (TIED,),
    "starcoder2": ("use_bias",),
    "youtu": (BIAS, "rope_interleave"),
}
"""Keys that it takes for granted in one family, by ``model_type``."""
