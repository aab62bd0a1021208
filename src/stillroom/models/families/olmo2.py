"""OLMo 2."""

from __future__ import annotations

from stillroom.models.families.family import ATTENTION, FEED_FORWARD, Family, GgufLayout, norms

FAMILIES = (
    Family(
        "olmo2",
        ATTENTION
        | FEED_FORWARD
        | norms("post_attention_layernorm", "post_feedforward_layernorm")
        | {"self_attn.q_norm": ("query_norm", None), "self_attn.k_norm": ("key_norm", None)},
        norm_after=True,
        gguf=GgufLayout("olmo2", square=True),
    ),
)
