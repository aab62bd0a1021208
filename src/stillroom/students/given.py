"""Students that the recipe gives, fresh or existing: what has to hold of them, found out from configs and tokenizers alone."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from stillroom.core.errors import UnsupportedModel, VocabularyMismatch
from stillroom.models.families.family import fit_layer_lists
from stillroom.models.kinds import last_line
from stillroom.models.load import model_folder
from stillroom.models.tokenizer import open_tokenizer
from stillroom.recipe.routes import OWN
from stillroom.recipe.student import ExistingStudent, FreshStudent, Student
from stillroom.teachers.several import other_token
from stillroom.teachers.tokenizers import STUDENT

COUNTS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
"""Keys of a config that count something."""
MOST = {"num_hidden_layers": 10_000}
"""More layers than any model has; making them would take for ever."""
OF_THE_FILE = (
    "add_cross_attention", "auto_map", "bos_token_id", "eos_token_id", "is_decoder", "model_type", "name_or_path", "num_labels",
    "output_attentions", "pad_token_id", "quantization_config", "torch_dtype", "use_return_dict",
)  # fmt: skip
"""Keys of a config that say what kind of model its file is, besides those that every config has."""
OF_THE_NETWORK = ("tie_word_embeddings",)
"""Keys that every config has and that say something of the network."""
LARGEST = 2**31 - 1
"""Integer of a config that files still hold."""
LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "model_max_length", "context_length")
"""Keys by which families say how many tokens a sequence has at most."""
TRIED_TOKENS = 8
"""Tokens of the forward pass, without numbers, that a fresh student has to be able to make."""

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from stillroom.models.types import CausalModel, ModelConfig


def fresh_model(student: FreshStudent, teacher: ModelConfig, rows: int) -> CausalModel:
    """A network of the teacher's family, float32, with random weights; on the meta device none.

    Args:
        student: The recipe's section.
        teacher: The teacher's config.
        rows: Of the embedding.

    Raises:
        UnsupportedModel: The family has no key of a name, or cannot be built so.
    """
    from transformers import AutoModelForCausalLM

    for key, value in student.config.items():
        _require_key(key, value, teacher)
    changed = copy.deepcopy(teacher)
    try:
        fit_layer_lists(changed, student.config.get("num_hidden_layers", changed.num_hidden_layers), student.config)
        for key, value in student.config.items():
            setattr(changed, key, value)
        changed.vocab_size = rows
        # What is written is opened again, with all that transformers asks of a config.
        type(changed).from_dict(changed.to_dict())
        model: CausalModel = AutoModelForCausalLM.from_config(changed, dtype=torch.float32)
    except Exception as error:
        raise UnsupportedModel(
            f"The family `{teacher.model_type}` cannot be built from `student.config`: {last_line(error)}",
            "Mind that heads divide the width, and key/value heads divide the heads.",
        ) from None
    return model


def _require_key(key: str, value: Any, teacher: ModelConfig) -> None:
    """Refuse a key of ``student.config`` that does nothing, that the family does not have, or that has another kind of value.

    Raises:
        UnsupportedModel: Names the key.
    """
    from transformers import PreTrainedConfig

    if key == "vocab_size":
        raise UnsupportedModel(
            "`student.config` names `vocab_size`, which does nothing: `student.vocabulary` decides which ids it has.",
            "Leave it out; `vocabulary: {keep: corpus}` makes the vocabulary smaller.",
        )
    if key in OF_THE_FILE or (key in vars(PreTrainedConfig()) and key not in OF_THE_NETWORK):
        raise UnsupportedModel(
            f"`student.config` names `{key}`, which is not of the network: a fresh student has the teacher's family, "
            f"`{teacher.model_type}`, and its tokenizer.",
            "Leave it out. For a model of another family, make one and take it as `student: {kind: existing}`.",
        )
    own = getattr(type(teacher), key, None)
    settable = isinstance(own, property) and own.fset is not None
    if key.startswith("_") or not (key in vars(teacher) or key in teacher.attribute_map or settable):
        raise UnsupportedModel(
            f"`student.config.{key}` is not a key of the family `{teacher.model_type}`.",
            "Use keys of its Hugging Face config, such as num_hidden_layers, hidden_size, intermediate_size.",
        )
    known = (key, teacher.attribute_map.get(key), *(name for name, own in teacher.attribute_map.items() if own == key))
    if not set(COUNTS).isdisjoint(known) or key in LENGTHS:
        most = min((MOST[name] for name in known if name in MOST), default=LARGEST)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise UnsupportedModel(
                f"`student.config.{key}` is {value!r}.", f"Write an integer of at least 1, and at most {most:,}."
            )
        return
    held = getattr(teacher, key)
    if isinstance(value, int) and value != held and not 0 <= value <= LARGEST:
        raise UnsupportedModel(f"`student.config.{key}` is {value!r}.", f"Write an integer from 0 to {LARGEST:,}.")
    if "drop" in key and not (isinstance(value, (int, float)) and 0 <= value < 1):
        raise UnsupportedModel(f"`student.config.{key}` is {value!r}.", "Write a number of at least 0 and below 1.")
    if value is not None and held is not None and _kind_of(value) != _kind_of(held):
        raise UnsupportedModel(
            f"`student.config.{key}` is {value!r}, and the teacher's is {held!r}.",
            f"Write {_kind_of(held)}, as it has.",
        )


def _kind_of(value: object) -> str:
    """What kind of value a config's key has, in words."""
    if isinstance(value, bool):
        return "true or false"
    kinds: dict[type | tuple[type, ...], str] = {(int, float): "a number", str: "text", (list, tuple): "a list"}
    return next((words for kind, words in kinds.items() if isinstance(value, kind)), "keys and values")


def require_forward(student: FreshStudent, model: CausalModel, teacher: CausalModel) -> None:
    """Refuse a fresh student that cannot make a forward pass where its teacher can. Both are on the meta device.

    Raises:
        UnsupportedModel: It cannot.
    """
    if _why_no_forward(teacher) is not None:
        return
    reason = _why_no_forward(model)
    if reason is not None:
        raise UnsupportedModel(
            f"A model of the family `{model.config.model_type}` with `student.config: {student.config}` makes no forward pass: "
            f"{reason}",
            "Change or leave out the key that this is about.",
        )


def _why_no_forward(model: CausalModel) -> str | None:
    ids = torch.zeros((1, TRIED_TOKENS), dtype=torch.long, device="meta")
    # A mask that is made already: transformers would look into the numbers to make one.
    mask = torch.zeros((1, 1, TRIED_TOKENS, TRIED_TOKENS), device="meta")
    try:
        model.train()(input_ids=ids, attention_mask=mask, use_cache=False)
    except NotImplementedError:
        return None
    except Exception as error:
        # Some layers choose their way by numbers, such as RoPE that grows with the text: the meta device has none.
        return None if "meta" in str(error).lower() else last_line(error)
    return None


def student_tokenizer(student: Student) -> dict[str, PreTrainedTokenizerFast]:
    """The tokenizer of an existing student, by the recipe's key; empty for every other one."""
    if not isinstance(student, ExistingStudent):
        return {}
    return {STUDENT: open_tokenizer(model_folder(student.name, student.revision))}


def require_vocabulary(
    student: ExistingStudent, teacher: PreTrainedTokenizerFast, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Refuse a student with another vocabulary than the teacher's, unless it is to keep it.

    Raises:
        VocabularyMismatch: Names a token.
    """
    if student.tokenizer == "own":
        return
    example = other_token(teacher.get_vocab(), tokenizer.get_vocab(), OWN, "student")
    if example is not None:
        raise VocabularyMismatch(
            f"The student {student.name} and the teacher have different vocabularies: {example}.",
            "Say `student.tokenizer: own` if it has another tokenizer and is to keep it. Otherwise use a student with the "
            "teacher's tokenizer, or `student: {kind: shrink}`.",
        )
