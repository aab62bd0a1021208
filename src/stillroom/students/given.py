"""Students that the recipe gives, fresh or existing: what has to hold of them, found out from configs and tokenizers alone."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

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

    changed = copy.deepcopy(teacher)
    if "vocab_size" in student.config:
        raise UnsupportedModel(
            "`student.config` names `vocab_size`, which does nothing: `student.vocabulary` decides which ids it has.",
            "Leave it out; `vocabulary: {keep: corpus}` makes the vocabulary smaller.",
        )
    for key in COUNTS:
        value = student.config.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UnsupportedModel(f"`student.config.{key}` is {value!r}.", "Write an integer of at least 1.")
    unknown = [key for key in student.config if not hasattr(changed, key)]
    if unknown:
        raise UnsupportedModel(
            f"`student.config.{unknown[0]}` is not a key of the family `{teacher.model_type}`.",
            "Use keys of its Hugging Face config, such as num_hidden_layers, hidden_size, intermediate_size.",
        )
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
