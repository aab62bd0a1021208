"""What a quantized teacher was made from: it has to be the same model in floats, or the two are not compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.core.errors import RecipeError
from stillroom.models.load import load_tokenizer, quantization_words, teacher_config
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.routes import OWN
from stillroom.recipe.teacher import HuggingFaceTeacher, Teacher
from stillroom.teachers.several import other_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SAME = (
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
"""Keys of a config that quantizing leaves as they are."""


def require_originals(recipe: Recipe) -> None:
    """Refuse, before anything is spent, originals that are none; no weights are read.

    Raises:
        RecipeError: The teacher is not quantized, or its original is, or has another tokenizer or architecture; names the key.
        TeacherError: There is no such model.
    """
    for name, original in recipe.originals.items():
        _require(original_key(name), recipe.every_teacher[name], original)


def original_tokenizers(recipe: Recipe, of: str | None = None) -> dict[str, PreTrainedTokenizerFast]:
    """The tokenizers of the originals of teachers that are learned from, by their keys; a writer may have other ids.

    Args:
        recipe: The recipe.
        of: One teacher's name; its original alone.
    """
    return {
        original_key(name): load_tokenizer(original)
        for name, original in recipe.originals.items()
        if name in recipe.learned_from and of in (None, name)
    }


def original_key(name: str) -> str:
    """The recipe's key of the original of a teacher, by the teacher's name."""
    return f"{name}.original" if name == OWN else f"teachers.{name}.original"


def _require(key: str, teacher: Teacher, original: HuggingFaceTeacher) -> None:
    if quantization_words(teacher) is None:
        raise RecipeError(
            f"`{key}`: the teacher is not quantized, so that no other model is its original.", f"Leave `{key}` out."
        )
    words = quantization_words(original)
    if words is not None:
        raise RecipeError(
            f"`{key}`: {original.name} is quantized itself ({words}).",
            "Name the model in floats that it was made from.",
        )
    known, found = teacher_config(teacher), teacher_config(original)
    for field in SAME:
        mine, theirs = getattr(known, field, None), getattr(found, field, None)
        if mine != theirs:
            raise RecipeError(
                f"`{key}`: {original.name} has another architecture than the teacher: `{field}` is {theirs}, not {mine}.",
                "Name the model that the teacher was quantized from.",
            )
    other = other_token(load_tokenizer(teacher).get_vocab(), load_tokenizer(original).get_vocab(), OWN, "original")
    if other is not None:
        raise RecipeError(
            f"`{key}`: {original.name} has another tokenizer than the teacher: {other}.",
            "Name the model that the teacher was quantized from.",
        )
