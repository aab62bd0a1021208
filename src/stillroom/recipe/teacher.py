"""The recipe's words for teachers, their capture and the codecs of the cache."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stillroom.recipe.section import Section


class HuggingFaceTeacher(Section):
    """A Hugging Face folder, or a name on the hub (the hub needs a network)."""

    kind: Literal["huggingface"] = "huggingface"
    name: str
    """A folder (relative paths start at the recipe's folder), or a name on the hub."""
    revision: str | None = None
    """The commit to load, so that a run can be repeated."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the teacher while it is captured; ``auto`` takes bfloat16 where the processor is fast at it."""
    licence: str | None = None
    """Licence as its owner states it; without it, what the model card says."""


class GgufTeacher(Section):
    """A GGUF file, by path or inside an installed package."""

    kind: Literal["gguf"] = "gguf"
    path: str
    """A file, or ``package:NAME/FILE`` for a file inside an installed Python package."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the teacher while it is captured; ``auto`` takes bfloat16 where the processor is fast at it."""
    licence: str | None = None
    """Licence as its owner states it; without it, what the file's metadata says."""


Teacher = Annotated[HuggingFaceTeacher | GgufTeacher, Field(discriminator="kind")]
