"""Recipe keys of the section `write`: text that a teacher writes about the owner's documents."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from stillroom.recipe.section import Section

LEAST_TEMPERATURE = 0.01
"""Above 0."""
Form = Literal["question_answer", "open_book", "rephrase"]


class WriteConfig(Section):
    """Text that a teacher writes about the training documents, to be learned beside them (docs/written-text.md)."""

    by: str = "teacher"
    """Who writes: ``teacher``, or a name under ``teachers``; an endpoint of kind ``chat`` can write, too."""
    forms: tuple[Form, ...] = Field(default=("question_answer", "rephrase"), min_length=1)
    """What is written for each chunk of a document. ``question_answer``: a question and its answer, written with the chunk in
    sight and learned without it; ``open_book``: the same, learned with the chunk in the question; ``rephrase``: the chunk in
    other words."""
    per_chunk: int = Field(default=1, ge=1, le=16)
    """How often each form is written for a chunk."""
    chunk_characters: int = Field(default=2000, ge=200, le=100_000)
    """Characters of a chunk at most; it ends at a paragraph's end, or else a sentence's."""
    limit: int | None = Field(default=None, gt=0)
    """Take at most this many chunks, spread over the documents; without it, all of the training documents."""
    max_tokens: int = Field(default=256, ge=8, le=4096)
    """Tokens of a text at most; one that does not end by then is left out."""
    temperature: float = Field(default=0.7, ge=0, le=2)
    """Of the writer's sampling, at least 0.01; 0 takes the most probable token each time."""
    distinct: float = Field(default=0.5, ge=0, le=1)
    """A text in which fewer of its four-word sequences are distinct is left out as repeating itself."""
    support: float = Field(default=0.3, ge=0, le=1)
    """An answer of which fewer content words are in its chunk is left out as not supported."""

    @field_validator("temperature")
    @classmethod
    def _divides(cls, value: float) -> float:
        """Logits that are divided by almost nothing are no longer numbers."""
        if 0 < value < LEAST_TEMPERATURE:
            raise ValueError(f"should be 0, or between {LEAST_TEMPERATURE} and 2")
        return value

    @model_validator(mode="after")
    def _differs(self) -> WriteConfig:
        if self.temperature == 0 and self.per_chunk > 1 and self.forms != ("rephrase",):
            raise ValueError(
                f"with `temperature: 0` a chunk's question is the same each of the {self.per_chunk} times that it is asked "
                "for it: write `per_chunk: 1`, or a `temperature` above 0"
            )
        return self
