"""Rotary positions of a config as GGUF's keys and tensors.

The numbers come from transformers' own functions, so that what is exported is what PyTorch computes with. Of `longrope`'s two
sets of factors, llama.cpp takes one by the context that it was started with, transformers by the length of the text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType

from stillroom.core.errors import UnsupportedModel

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from stillroom.models.types import ModelConfig

Array = np.ndarray


LLAMA3 = (MODEL_ARCH.LLAMA, MODEL_ARCH.APERTUS)
"""Architectures that read the factors of Llama 3's stretched positions."""


def add_rope(writer: GGUFWriter, arch: MODEL_ARCH, config: ModelConfig, rotated: int | None = None) -> dict[str, Array]:
    """Write the keys; returns the tensors that belong to them, by their names in GGUF.

    Args:
        writer: Of the file.
        arch: llama.cpp's architecture.
        config: The model's.
        rotated: Elements of a head that are rotated; None takes them from the config's factor.

    Raises:
        UnsupportedModel: llama.cpp has no such rotary positions, or not in this family.
    """
    rope = rope_parameters(config)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kind = rope["rope_type"]
    base = float(rope["rope_theta"])
    if kind == "dynamic" and rope.get("alpha") and arch in (MODEL_ARCH.HUNYUAN_DENSE, MODEL_ARCH.HUNYUAN_MOE):
        # Hunyuan's "dynamic" positions are plain ones of a larger base.
        base, kind = base * float(rope["alpha"]) ** (width / (width - 2)), "default"
    writer.add_rope_freq_base(base)
    partial = float(rope.get("partial_rotary_factor") or 1.0)
    writer.add_rope_dimension_count(int(width * partial) if rotated is None else rotated)
    if kind == "default":
        return {}
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        return {}
    if kind == "yarn":
        _yarn(writer, arch, config, rope)
        return {}
    if kind == "llama3" and arch in LLAMA3:
        plain = _frequencies(config, "default", rope)
        return {"rope_freqs.weight": plain / _frequencies(config, "llama3", rope)}
    if kind == "longrope" and arch == MODEL_ARCH.PHI3:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        original = rope.get("original_max_position_embeddings") or config.original_max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(int(original))
        writer.add_rope_scaling_attn_factors(float(ROPE_INIT_FUNCTIONS["longrope"](config, None)[1]))
        return {
            "rope_factors_long.weight": np.asarray(rope["long_factor"], dtype=np.float32),
            "rope_factors_short.weight": np.asarray(rope["short_factor"], dtype=np.float32),
        }
    raise UnsupportedModel(
        f"llama.cpp has no rotary positions of the type `{kind}` in the family `{config.model_type}`.",
        "Use a teacher without stretched context, or export nothing: `export: {gguf: []}`.",
    )


def rope_parameters(config: PreTrainedConfig, attention: str = "full_attention") -> dict[str, Any]:
    """The parameters, with their type and base; of families with two kinds of ``attention``, of that one."""
    parameters = dict(getattr(config, "rope_parameters", None) or {})
    parameters = dict(parameters.get(attention, parameters))
    parameters.setdefault("rope_type", "default")
    parameters.setdefault("rope_theta", getattr(config, "rope_theta", 10_000.0))
    return parameters


def _yarn(writer: GGUFWriter, arch: MODEL_ARCH, config: ModelConfig, rope: dict[str, Any]) -> None:
    other = [key for key in ("mscale", "mscale_all_dim", "attention_factor") if rope.get(key) is not None]
    if arch == MODEL_ARCH.MISTRAL3:
        other = [key for key in ("mscale", "attention_factor") if rope.get(key) not in (None, 1.0)]
    # llama.cpp rounds the limits of gpt-oss, which costs a KL of 1e-5 nats at a head's width of 64.
    if other or (rope.get("truncate") is False and arch != MODEL_ARCH.GPT_OSS):
        raise UnsupportedModel(
            f"llama.cpp does not know {', '.join(other) or 'truncate: false'} of the rotary positions `yarn` "
            f"in the family `{config.model_type}`.",
            "Export nothing: `export: {gguf: []}`.",
        )
    original = int(rope["original_max_position_embeddings"])
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(float(rope["factor"] or config.max_position_embeddings / original))
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_rope_scaling_yarn_beta_fast(float(rope.get("beta_fast") or 32))
    writer.add_rope_scaling_yarn_beta_slow(float(rope.get("beta_slow") or 1))


def _frequencies(config: ModelConfig, kind: str, rope: dict[str, Any]) -> Array:
    """Inverse frequencies of each pair of a head's numbers, [width / 2]."""
    if kind == "default":
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        steps = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
        return (1.0 / np.power(np.float32(rope["rope_theta"]), steps)).astype(np.float32)
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, _ = ROPE_INIT_FUNCTIONS[kind](config, None)
    result: Array = frequencies.float().numpy()
    return result
