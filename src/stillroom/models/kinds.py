"""What kind of model a config describes: a causal language model, one inside a larger model, or neither. Reads no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.core.errors import TeacherError, UnsupportedModel, first_line, translate
from stillroom.core.extras import installed
from stillroom.core.strict_json import parse_json
from stillroom.models.stored_as import require_floats
from stillroom.models.tokenizer import quietly

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ENCODERS = frozenset(
    (
        "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "reformer",
        "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
    )
)  # fmt: skip
"""Families of the causal mapping that see later tokens unless their config says ``is_decoder: true``."""
REASONS = {
    "cpmant": "it sees later tokens of its prompt",
    "xlnet": "it is trained on permuted text, not from left to right",
    "xlm": "it sees later tokens unless its config says `causal: true`",
    "trocr": "it is the decoder of a reader of images",
    "git": "it describes images",
    "blt": "it predicts bytes through patches of a second model",
    "moshi": "it is a model of speech",
    "musicgen": "it is a model of music",
    "musicgen_melody": "it is a model of music",
    "moss_transcribe_diarize": "it is a model of speech",
    "gemma4_assistant": "it drafts for another model and does not run without it",
    "gemma4_unified_assistant": "it drafts for another model and does not run without it",
}
"""Families of the causal mapping that cannot be teachers, and why."""
TEXT_AS = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
    "emu3_text_model": "llama",
}
"""Text models of vision-language models without a class of their own: the family whose layers they have."""


MOST = {
    "num_hidden_layers": 10_000,
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim"), 1 << 20),
    **dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), 1 << 31),
}
"""More than any model has of what its config counts."""


@dataclass(frozen=True)
class Kind:
    """How a folder is opened.

    Attributes:
        config: Its config.
        inside: The ``model_type`` of the language model inside a larger model; None where the folder holds the language
            model itself.
        notes: What is to be said of it.
    """

    config: PreTrainedConfig
    inside: str | None = None
    notes: tuple[str, ...] = ()


def kind_of(folder: Path) -> Kind:
    """How a folder is opened, from its ``config.json`` alone.

    Raises:
        TeacherError: The config cannot be read.
        UnsupportedModel: It is no causal language model, by name.
    """
    path = folder / "config.json"
    said = parse_json(path.read_bytes(), str(path), infinities=True)
    name = said.get("model_type") if isinstance(said, dict) else None
    if not isinstance(name, str):
        raise TeacherError(f"{path}: no `model_type`.", "Get the model's own config.json.")
    from transformers import CONFIG_MAPPING

    if name not in CONFIG_MAPPING:
        code = " It comes with code of its own (`auto_map`), which is never run." if said.get("auto_map") else ""
        raise UnsupportedModel(
            f"{folder}: transformers does not recognize the family `{name}`.{code}",
            "Give a causal language model that transformers knows, or install a newer transformers.",
        )
    notes = (
        (f"its own code (`auto_map`) is not run; transformers has the family `{name}` itself",)
        if said.get("auto_map")
        else ()
    )
    if name in REASONS and not (name == "xlm" and said.get("causal")):
        raise no_teacher(name, REASONS[name])
    require_floats(folder, said)
    _require_sizes(path, said)
    config = _config(folder, said)
    if getattr(config, "is_encoder_decoder", False):
        raise no_teacher(name, "it is an encoder with a decoder, not a language model that goes from left to right")
    if name in ENCODERS and not getattr(config, "is_decoder", False):
        raise no_teacher(name, "it is an encoder: it sees later tokens (its config does not say `is_decoder: true`)")
    return Kind(config, _inside(name, config), notes)


def _require_sizes(path: Path, said: dict[str, Any]) -> None:
    """Refuse what no model has, before transformers makes layers of it without end, or weights of less than nothing."""
    parts = [said, *(part for part in said.values() if isinstance(part, dict))]
    for part in parts:
        for key, most in MOST.items():
            value = part.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and not 0 <= value <= most:
                raise TeacherError(f"{path}: `{key}` is {value:,}.", "Get the model's own config.json.")
    names = said.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise TeacherError(f"{path}: `architectures` is no list of names.", "Get the model's own config.json.")


def no_teacher(name: str, why: str) -> UnsupportedModel:
    """The error for a family that cannot be used."""
    return UnsupportedModel(
        f"The family `{name}` cannot be used: {why}.",
        "Give a causal language model: docs/import.md says which ones transformers has.",
    )


def _config(folder: Path, said: dict[str, Any]) -> PreTrainedConfig:
    from transformers import AutoConfig

    try:
        with quietly():
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
    except Exception as error:
        raise translate(error, str(folder)) or TeacherError(
            f"{folder}: config.json of the family `{said.get('model_type')}` cannot be used: {last_line(error)}",
            "Get the model's own config.json.",
        ) from None
    # Weights are floats wherever the config is used; a student that took it over would say otherwise.
    for part in (config, config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    return config


def last_line(error: BaseException) -> str:
    """The last line of an error that has several: what transformers' checks of configs found."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return first_line(ValueError(lines[-1])) if lines else first_line(error)


def _inside(name: str, config: PreTrainedConfig) -> str | None:
    """The family of the language model inside, or None where the config is that of one itself."""
    from transformers.models.auto import modeling_auto

    names = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    images = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    causal = names.get(name)
    text = config.get_text_config()
    larger = text is not config
    if causal is not None:
        own = _class_name(causal)
        # Llama 4 has a class for text beside the one for images, and files are of the latter unless they say otherwise.
        whole = _class_name(images.get(name, causal))
        if not larger or (
            not own.endswith("ForConditionalGeneration") and own in {whole, *(config.architectures or ())}
        ):
            return None
    multimodal = getattr(modeling_auto, "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES", {})
    if causal is None and name not in {**images, **multimodal}:
        raise no_teacher(name, "it is not a causal language model, and has none inside that could be taken")
    inner = str(text.model_type)
    if not larger or (inner not in TEXT_AS and inner not in names):
        raise no_teacher(name, f"transformers has no causal language model for the text model `{inner}` inside it")
    _require_timm(name, config)
    return inner


def _require_timm(name: str, config: PreTrainedConfig) -> None:
    """Refuse a model whose encoder of images transformers takes from timm, where that is not installed."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    parts = [getattr(part, "model_type", None) for part in vars(config).values()]
    if not installed("timm") and any(MODEL_MAPPING_NAMES.get(str(part)) == "TimmWrapperModel" for part in parts):
        raise UnsupportedModel(
            f"The family `{name}` cannot be used: its encoder of images needs the package timm, which is not installed.",
            "Install it (`pip install timm`), or give a folder that holds the language model alone.",
        )


def _class_name(entry: Any) -> str:
    return str(entry if isinstance(entry, str) else entry[0])
