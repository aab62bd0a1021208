"""What a cache was made of and how: two signals may only stand in one cache when all of this is equal."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from stillroom.recipe.capture import Codec
from stillroom.recipe.section import Section


class CacheIdentity(Section):
    """The teacher, its tokenizer, and the codec behind every signal of a cache."""

    teacher_digest: str
    """SHA-256 over the teacher's stored weights."""
    tokenizer_digest: str
    """SHA-256 over its tokenizer."""
    vocabulary_size: int = Field(gt=0, le=2**32)
    """Ids of the teacher's output layer."""
    temperature: float = Field(gt=0)
    """Temperature that the distribution was bent with before it was stored."""
    codec: Codec
    """What is kept of each distribution, and how."""
    seed: int
    """Together with a sequence's digest, the seed of its sampling."""
    dtype: str
    """Number format of the teacher's forward pass."""
    sequence_length: int
    """Tokens a sequence."""

    def difference(self, other: CacheIdentity) -> str | None:
        """The first field in which two identities differ, in words, or None."""
        mine: dict[str, Any] = self.model_dump(mode="json")
        theirs: dict[str, Any] = other.model_dump(mode="json")
        for key, value in mine.items():
            if theirs[key] != value:
                return f"`{key}` is {value} there and {theirs[key]} here"
        return None
