"""The recipe's words for students: cut from the teacher, existing, or fresh."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from stillroom.section import Section


class VocabularyConfig(Section):
    """Which ids of the teacher's vocabulary the student keeps."""

    keep: Literal["corpus", "all"] = "corpus"
    """``corpus`` keeps every id that the training text uses, every byte and special token, and what merges need to reach
    them; ``all`` keeps the teacher's vocabulary as it is."""
    size: int | None = Field(default=None, ge=256)
    """At most this many ids: the most frequent first. Without it, as many as the training text uses."""
    multiple_of: int = Field(default=64, ge=1)
    """The embedding's rows are padded to a multiple of this; padding rows can never be predicted."""


class ImportanceConfig(Section):
    """The sample of training text on which importance is measured."""

    tokens: int = Field(default=4096, ge=64)
    """Tokens of the sample."""


class ShrinkStudent(Section):
    """The teacher itself, with layers and vocabulary cut by measured importance."""

    kind: Literal["shrink"] = "shrink"
    layers: int | None = Field(default=None, ge=1)
    """Layers that the student keeps; without it, all."""
    vocabulary: VocabularyConfig = VocabularyConfig()
    """Which ids the student keeps."""
    importance: ImportanceConfig = ImportanceConfig()
    """How importance is measured."""
    heal: bool = True
    """Repair removed layers in closed form (least squares) before any training."""


class ExistingStudent(Section):
    """A smaller model that already exists and has the teacher's tokenizer."""

    kind: Literal["existing"] = "existing"
    name: str
    """A Hugging Face folder or name."""
    revision: str | None = None
    """The commit to load."""


class FreshStudent(Section):
    """A new network of the teacher's family, with random weights."""

    kind: Literal["fresh"] = "fresh"
    config: dict[str, Any]
    """Keys of the family's Hugging Face config that differ from the teacher's, for example ``num_hidden_layers: 6``."""
    vocabulary: VocabularyConfig = VocabularyConfig(keep="all")
    """Which ids the student keeps."""


Student = Annotated[ShrinkStudent | ExistingStudent | FreshStudent, Field(discriminator="kind")]
