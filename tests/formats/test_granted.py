"""What llama.cpp takes for granted of a family is refused by name, in the plan, where a config says otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from benchmarks.tiny_configs import exportable_config
from benchmarks.tiny_files import words
from stillroom.core.errors import UnsupportedModel
from stillroom.formats.gguf_file import planned_bytes
from stillroom.models.families.granted import GRANTED

ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
LARGEST = {"num_hidden_layers": 46, "layer_types": ["sliding_attention", "full_attention"] * 23}
OTHERWISE = [
    ("llama", {"hidden_act": "gelu"}),
    ("gemma2", {"hidden_activation": "silu"}),
    ("gemma3_text", {"final_logit_softcapping": 20.0}),
    ("gemma3_text", {"use_bidirectional_attention": True}),
    ("gpt_neox", {"hidden_act": "relu"}),
    ("gpt_neox", {"attention_bias": False}),
    ("gpt2", {"activation_function": "relu"}),
    ("gpt2", {"scale_attn_weights": False}),
    ("qwen3", {"attention_bias": True}),
    ("qwen3_moe", {"attention_bias": True}),
    ("olmo2", {"attention_bias": True}),
    ("cohere2", {"attention_bias": True}),
    ("starcoder2", {"use_bias": False}),
    ("falcon_h1", {"tie_word_embeddings": True}),
    ("deepseek_v3", {"rope_interleave": False}),
    ("llama4_text", {"use_qk_norm": False}),
    ("seed_oss", {"attention_out_bias": True}),
    ("arcee", {"mlp_bias": True}),
    ("gemma2", {"query_pre_attn_scalar": 20}),
    ("gemma2", LARGEST | {"head_dim": 24, "query_pre_attn_scalar": 24}),
]
THE_SAME = [
    ("llama", {"hidden_act": "swish"}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("gpt2", {"activation_function": "gelu_pytorch_tanh"}),
    ("gemma3_text", {"final_logit_softcapping": None}),
    ("gemma2", LARGEST),
]


def planned(family: str, said: dict[str, Any]) -> int:
    usual = exportable_config(family).to_dict()
    usual.pop("model_type")
    maker: Any = AutoConfig
    return planned_bytes(maker.for_model(family, **(usual | said)), words(), "F16", name="tiny", licence=None)


@pytest.mark.parametrize(("family", "said"), OTHERWISE)
def test_a_setting_that_llama_cpp_does_not_read_is_refused(family: str, said: dict[str, Any]) -> None:
    key = "query_pre_attn_scalar" if family == "gemma2" and "hidden_activation" not in said else next(iter(said))
    with pytest.raises(UnsupportedModel, match=rf"(?s){family}.*{key}|{key}.*{family}"):
        planned(family, said)


def test_a_part_of_a_head_that_is_rotated_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="rotates whole heads in the family `llama`"):
        planned("llama", {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}})


@pytest.mark.parametrize(("family", "said"), THE_SAME)
def test_a_setting_that_means_the_same_is_not(family: str, said: dict[str, Any]) -> None:
    assert planned(family, said) > 0


def test_every_key_of_the_table_is_one_of_its_family() -> None:
    maker: Any = AutoConfig
    for family, keys in GRANTED.items():
        usual = maker.for_model(family).to_dict()
        assert set(keys) <= set(usual), family
