"""GGUF files as PyTorch models: every key becomes the config's, every tensor a weight, and nothing is left over.

For the families that Stillroom writes itself, a file is read by the description that it is written by
(:mod:`stillroom.models.families`); transformers' own import drops stretched rotary positions, attention scales and windows.
Files of other families go through transformers, and are refused where they hold a key that it would drop.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stillroom.core import progress
from stillroom.core.errors import TeacherError, UnsupportedModel
from stillroom.models.checkpoint import require_numbers, require_whole
from stillroom.models.families.registry import families
from stillroom.models.tokenizer import quietly

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor
    from transformers import PreTrainedConfig

    from stillroom.models.families.family import GgufLayout
    from stillroom.models.types import CausalModel

Array = np.ndarray

FAMILY_OF = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "gemma3": "gemma3_text", "phi3": "phi3",
    "olmo2": "olmo2", "smollm3": "smollm3", "granite": "granite",
}  # fmt: skip
"""llama.cpp's architectures that are read here, and the family of each."""
_TELLS_NOTHING = frozenset(
    ("vocab_size", "rope.scaling.finetuned", "attention.causal", "tensor_data_layout", "pooling_type", "expert_count")
)
"""Keys without a meaning for what is computed, when they say nothing unusual."""
_USUAL = {"attention.causal": True, "expert_count": 0, "pooling_type": 0}
_READ_BY_TRANSFORMERS = frozenset(
    (
        "context_length", "block_count", "embedding_length", "feed_forward_length", "rope.freq_base", "rope.dimension_count",
        "attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon",
        "attention.key_length", "attention.value_length", "expert_count", "expert_used_count", "vocab_size",
        "expert_feed_forward_length", "ssm.conv_kernel", "ssm.state_size", "ssm.time_step_rank", "ssm.inner_size",
        "shortconv.l_cache", "use_parallel_residual", "tensor_data_layout", "expert_shared_feed_forward_length",
    )
)  # fmt: skip
"""Keys of other architectures that transformers turns into its config, or that tell nothing."""


@dataclass
class _Keys:
    """The keys of a file under its architecture's name; those that are read are crossed off."""

    where: str
    arch: str
    values: dict[str, Any]
    left: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, path: Path, reader: GGUFReader) -> _Keys:
        arch = str(reader.fields["general.architecture"].contents())
        values = {
            name.removeprefix(f"{arch}."): entry.contents()
            for name, entry in reader.fields.items()
            if name.startswith(f"{arch}.")
        }
        return cls(str(path), arch, values, set(values))

    def take(self, name: str, default: Any = None) -> Any:
        """A key's value, or the default where the file does not say."""
        self.left.discard(name)
        return self.values.get(name, default)

    def need(self, name: str) -> Any:
        """A key's value.

        Raises:
            TeacherError: The file does not say.
        """
        value = self.take(name)
        if value is None:
            raise TeacherError(f"{self.where}: the key `{self.arch}.{name}` is missing.", "Get the file again.")
        return value

    def require_all_read(self) -> None:
        """Refuse a file with a key whose meaning is not known.

        Raises:
            UnsupportedModel: Names the key.
        """
        for name in sorted(self.left):
            usual = name in _TELLS_NOTHING and self.values[name] == _USUAL.get(name, self.values[name])
            if not usual:
                raise UnsupportedModel(
                    f"{self.where}: the key `{self.arch}.{name}` ({str(self.values[name])[:60]}) is not known, so the model "
                    "could be run wrongly.",
                    "Use the model's Hugging Face folder.",
                )


def gguf_config(path: Path) -> PreTrainedConfig:
    """The config that a GGUF file describes.

    Raises:
        TeacherError: A key is missing.
        UnsupportedModel: The architecture, or a key, is not known.
    """
    return copy.deepcopy(_config_of(path, path.stat().st_mtime_ns, path.stat().st_size))


@functools.lru_cache(maxsize=4)
def _config_of(path: Path, _changed: int, _size: int) -> PreTrainedConfig:
    """Reading a file's keys takes seconds: its vocabulary is among them."""
    from stillroom.models.gguf_reader import QuickReader

    return _config(path, QuickReader(path))


def open_gguf(path: Path, dtype: torch.dtype) -> CausalModel:
    """The model of a GGUF file, complete and finite.

    Raises:
        TeacherError: A key or tensor is missing, superfluous, of another shape, or not finite.
        UnsupportedModel: The architecture, or a key, is not known.
    """
    import transformers
    from transformers.initialization import no_init_weights

    from stillroom.models.gguf_reader import QuickReader, read_quickly

    opener: Any = transformers.AutoModelForCausalLM
    reader = QuickReader(path)
    config = _config(path, reader)
    if str(reader.fields["general.architecture"].contents()) not in FAMILY_OF:
        with quietly(), read_quickly():
            found: Any
            info: dict[str, Any]
            found, info = opener.from_pretrained(
                path.parent, gguf_file=path.name, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
            )
        require_whole(str(path), info, {})
    else:
        # Every weight comes from the file.
        with quietly(), no_init_weights():
            found = opener.from_config(config, dtype=dtype)
            found.tie_weights()
        _fill(str(path), found, reader)
    model: CausalModel = found
    require_numbers(str(path), model)
    return model


def _config(path: Path, reader: GGUFReader) -> PreTrainedConfig:
    from transformers import AutoConfig

    if "split.count" in reader.fields and int(reader.fields["split.count"].contents()) > 1:
        raise UnsupportedModel(
            f"{path}: it is one of {int(reader.fields['split.count'].contents())} parts of a model.",
            "Join them first: llama-gguf-split --merge.",
        )
    keys = _Keys.of(path, reader)
    family = FAMILY_OF.get(keys.arch)
    if family is None:
        return _by_transformers(path, reader, keys)
    shapes = {tensor.name: tuple(int(size) for size in reversed(tensor.shape)) for tensor in reader.tensors}
    if "token_embd.weight" not in shapes:
        raise TeacherError(f"{path}: the tensor token_embd.weight is missing.", "Get the file again.")
    hidden, heads = int(keys.need("embedding_length")), int(keys.need("attention.head_count"))
    width = int(keys.take("attention.key_length", hidden // heads))
    if int(keys.take("attention.value_length", width)) != width:
        raise UnsupportedModel(
            f"{path}: its values are not as wide as its keys.", "Use the model's Hugging Face folder."
        )
    said: dict[str, Any] = {
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": hidden,
        "intermediate_size": int(keys.need("feed_forward_length")),
        "num_hidden_layers": int(keys.need("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(keys.take("attention.head_count_kv", heads)),
        "max_position_embeddings": int(keys.need("context_length")),
        "rms_norm_eps": float(keys.need("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in shapes,
        "head_dim": width,
        **_special_tokens(reader),
    }
    rotated = int(keys.take("rope.dimension_count", width))
    rope = _rope(keys, reader, width, rotated, said["max_position_embeddings"])
    said["rope_parameters"] = rope
    if family == "llama":
        said["attention_bias"] = "blk.0.attn_q.bias" in shapes
        said["mlp_bias"] = "blk.0.ffn_up.bias" in shapes
    elif family in _OWN:
        _OWN[family](keys, said, rope)
    keys.require_all_read()
    made: Any = AutoConfig
    config: PreTrainedConfig = made.for_model(family, **said)
    return config


def _by_transformers(path: Path, reader: GGUFReader, keys: _Keys) -> PreTrainedConfig:
    """The config of an architecture that transformers reads, if it reads all of the file's keys."""
    from transformers import AutoConfig

    from stillroom.models.gguf_reader import read_quickly

    stretched = [tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_")]
    keys.left -= _READ_BY_TRANSFORMERS
    if keys.arch == "gpt-oss":
        keys.left = {name for name in keys.left if not name.startswith(("rope.scaling.", "attention.sliding_window"))}
    if stretched:
        raise UnsupportedModel(
            f"{path}: its stretched rotary positions ({stretched[0]}) are not known in the architecture `{keys.arch}`.",
            "Use the model's Hugging Face folder.",
        )
    try:
        with quietly(), read_quickly():
            config: PreTrainedConfig = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    except ValueError:
        raise UnsupportedModel(
            f"{path}: the architecture `{keys.arch}` cannot be read from GGUF.", "Use the model's Hugging Face folder."
        ) from None
    keys.require_all_read()
    return config


def _special_tokens(reader: GGUFReader) -> dict[str, Any]:
    """The ids that begin, end and pad a text; several that end it are a list."""

    def number(name: str) -> int | None:
        entry = reader.fields.get(f"tokenizer.ggml.{name}_token_id")
        return None if entry is None else int(entry.contents())

    ends = list(dict.fromkeys(end for end in map(number, ("eos", "eot", "eom")) if end is not None))
    return {
        "bos_token_id": number("bos"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": number("padding"),
    }


def _rope(keys: _Keys, reader: GGUFReader, width: int, rotated: int, context: int) -> dict[str, Any]:
    """Rotary positions as a config's ``rope_parameters``."""
    theta = float(keys.take("rope.freq_base", 10_000.0))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if rotated != width:
        rope["partial_rotary_factor"] = rotated / width
    tensors = {
        tensor.name: np.array(tensor.data, dtype=np.float32)
        for tensor in reader.tensors
        if tensor.name.startswith("rope_")
    }
    kind = str(keys.take("rope.scaling.type", "none"))
    factor = keys.take("rope.scaling.factor", keys.take("rope.scale_linear"))
    original = keys.take("rope.scaling.original_context_length")
    attention = keys.take("rope.scaling.attn_factor")
    slow, fast = keys.take("rope.scaling.yarn_beta_slow"), keys.take("rope.scaling.yarn_beta_fast")
    if "rope_freqs.weight" in tensors:
        return rope | _llama3(keys, tensors["rope_freqs.weight"], theta, rotated)
    if "rope_factors_long.weight" in tensors:
        original = int(original or context)
        stretch = context / original
        usual = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
        return rope | {
            "rope_type": "longrope",
            "long_factor": [float(value) for value in tensors["rope_factors_long.weight"]],
            "short_factor": [float(value) for value in tensors["rope_factors_short.weight"]],
            "original_max_position_embeddings": original,
            "attention_factor": float(usual if attention is None else attention),
        }
    if kind == "linear" or (kind == "none" and factor not in (None, 0.0, 1.0)):
        return rope | {"rope_type": "linear", "factor": float(factor or 1.0)}
    if kind == "yarn":
        if attention not in (None, 1.0):
            raise UnsupportedModel(
                f"{keys.where}: the key `{keys.arch}.rope.scaling.attn_factor` ({attention}) is not known with yarn.",
                "Use the model's Hugging Face folder.",
            )
        original = int(original or context)
        return rope | {
            "rope_type": "yarn",
            "factor": float(factor or context / original),
            "original_max_position_embeddings": original,
            "beta_fast": float(fast or 32.0),
            "beta_slow": float(slow or 1.0),
        }
    if kind not in ("none", "linear"):
        raise UnsupportedModel(
            f"{keys.where}: rotary positions of the type `{kind}` without their factors.", "Get the file again."
        )
    return rope


def _llama3(keys: _Keys, factors: Array, theta: float, rotated: int) -> dict[str, Any]:
    """Llama 3's scaling from its factors: 1 for short waves, ``factor`` for long ones, and between them, with w the length
    of a wave, ``1 / ((1 - s) / factor + s)`` of ``s = (context / w - low) / (high - low)``.

    Raises:
        UnsupportedModel: The factors are not of this kind.
    """
    frequencies = theta ** -(np.arange(0, rotated, 2, dtype=np.float64) / rotated)
    per_wave = frequencies / (2 * math.pi)
    factor = float(np.round(factors.max(), 4))
    smooth = (1 / factors.astype(np.float64) - 1 / factor) / (1 - 1 / factor) if factor > 1 else np.ones(len(factors))
    between = (smooth > 1e-3) & (smooth < 1 - 1e-3)
    # Contexts and both limits may be stretched together; the lower limit is taken to be 1.
    pairs = [(8192.0, 4.0)]
    if between.sum() >= 2:
        slope, offset = np.polyfit(per_wave[between], smooth[between], 1)
        high = 1 - 1 / offset if offset < 0 else 4.0
        pairs.append((float(round(slope * (high - 1))), float(np.round(high, 3))))
    elif between.sum() == 1:
        wave, share = float(per_wave[between][0]), float(smooth[between][0])
        pairs += [(2.0**power, 1 + (2.0**power * wave - 1) / share) for power in range(6, 21)]
    for context, high in pairs:
        found = np.clip((context * per_wave - 1) / (high - 1), 0.0, 1.0) if high > 1 else np.zeros(len(per_wave))
        if len(factors) == len(per_wave) and np.abs(1 / ((1 - found) / factor + found) / factors - 1).max() < 1e-3:
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": high,
                "original_max_position_embeddings": int(context),
            }
    raise UnsupportedModel(
        f"{keys.where}: the factors of its rotary positions (rope_freqs.weight) are not those of Llama 3.",
        "Use the model's Hugging Face folder.",
    )


def _gemma(keys: _Keys, said: dict[str, Any], period: int, odd_depth: int) -> None:
    """What llama.cpp takes for granted: the order of windows, and the scale of scores by the number of layers."""
    layers = said["num_hidden_layers"]
    said["sliding_window"] = int(keys.need("attention.sliding_window"))
    order = keys.take("attention.sliding_window_pattern")
    if isinstance(order, int):
        period = order
    windowed = order if isinstance(order, list) else [(index + 1) % period != 0 for index in range(layers)]
    said["layer_types"] = ["sliding_attention" if here else "full_attention" for here in windowed]
    said["query_pre_attn_scalar"] = (
        said["hidden_size"] // said["num_attention_heads"] if layers == odd_depth else said["head_dim"]
    )


def _gemma2(keys: _Keys, said: dict[str, Any], _rope: dict[str, Any]) -> None:
    _gemma(keys, said, 2, 46)
    said["attn_logit_softcapping"] = float(keys.take("attn_logit_softcapping", 50.0))
    said["final_logit_softcapping"] = float(keys.take("final_logit_softcapping", 30.0))


def _gemma3(keys: _Keys, said: dict[str, Any], rope: dict[str, Any]) -> None:
    _gemma(keys, said, 6, 62)
    said["final_logit_softcapping"] = keys.take("final_logit_softcapping") or None
    local = {"rope_type": "default", "rope_theta": float(keys.take("rope.freq_base_swa", 10_000.0))}
    said["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}


def _granite(keys: _Keys, said: dict[str, Any], _rope: dict[str, Any]) -> None:
    said["attention_multiplier"] = float(keys.take("attention.scale") or said["head_dim"] ** -0.5)
    said["embedding_multiplier"] = float(keys.take("embedding_scale") or 1.0)
    said["residual_multiplier"] = float(keys.take("residual_scale") or 1.0)
    said["logits_scaling"] = float(keys.take("logit_scale") or 1.0)


def _phi3(keys: _Keys, said: dict[str, Any], rope: dict[str, Any]) -> None:
    said["sliding_window"] = int(keys.take("attention.sliding_window", 0)) or None
    said["original_max_position_embeddings"] = rope.get(
        "original_max_position_embeddings", said["max_position_embeddings"]
    )


def _smollm3(_keys: _Keys, said: dict[str, Any], _rope: dict[str, Any]) -> None:
    said["no_rope_layers"] = [int((index + 1) % 4 != 0) for index in range(said["num_hidden_layers"])]


def _olmo2(keys: _Keys, _said: dict[str, Any], _rope: dict[str, Any]) -> None:
    window = int(keys.take("attention.sliding_window", 0))
    if window:
        raise UnsupportedModel(
            f"{keys.where}: it has windows of attention (Olmo 3), which are not read from GGUF.",
            "Use the model's Hugging Face folder.",
        )


_OWN: dict[str, Callable[[_Keys, dict[str, Any], dict[str, Any]], None]] = {
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "granite": _granite,
    "olmo2": _olmo2,
    "phi3": _phi3,
    "smollm3": _smollm3,
}
"""What each family's config says besides the common keys."""


@torch.no_grad()
def _fill(where: str, model: CausalModel, reader: GGUFReader) -> None:
    """Copy every tensor of a file into a model.

    Raises:
        TeacherError: A tensor is missing, superfluous or of another shape.
    """
    from gguf import dequantize, get_tensor_name_map

    config = model.config
    gguf = families()[config.model_type].gguf
    assert gguf is not None
    names = get_tensor_name_map(gguf.model_arch, config.num_hidden_layers)
    stored: dict[str, ReaderTensor] = {
        tensor.name: tensor for tensor in reader.tensors if not tensor.name.startswith(("rope_freqs.", "rope_factors_"))
    }
    missing, mismatched = [], []
    for key, parameter in model.named_parameters():  # tied ones once
        progress.ask()
        name = str(names.get_name(key, try_suffixes=(".weight", ".bias")))
        tensor = stored.pop(name, None)
        if tensor is None:
            missing.append(name)
            continue
        shape = tuple(int(size) for size in reversed(tensor.shape))
        if shape != tuple(parameter.shape):
            mismatched.append((name, shape, tuple(parameter.shape)))
            continue
        numbers = dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        parameter.copy_(torch.from_numpy(np.array(_back(gguf, config, key, numbers))))
    require_whole(where, {"missing_keys": missing, "unexpected_keys": list(stored), "mismatched_keys": mismatched}, {})


def _back(layout: GgufLayout, config: Any, name: str, tensor: Array) -> Array:
    """A tensor as transformers wants it: what :func:`stillroom.models.families.gguf_keys.lay_out` did, undone."""
    if layout.permuted and name.endswith(("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        pairs = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(tensor.shape)
    if layout.norm_offset and name.endswith("norm.weight"):
        return tensor - np.float32(layout.norm_offset)
    return tensor
