"""What a cache was made of and how: two signals may only be in one cache when all of this is equal.

It says nothing of the corpus: a piece's digest is its address, whatever rows it was packed into.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from stillroom.recipe.capture import Codec
from stillroom.recipe.section import Section


class CacheIdentity(Section):
    """The teacher, its tokenizer, and the codec behind every signal of a cache."""

    teacher_digest: str
    """SHA-256 over the teacher's stored weights."""
    config_digest: str | None = None
    """SHA-256 over its config: rope scaling, soft caps, windows, scales. None where the weights' file holds it (GGUF), and in
    caches of format 2."""
    tokenizer_digest: str
    """SHA-256 over its tokenizer and chat template."""
    vocabulary_size: int = Field(gt=0, le=2**32)
    """Ids of the teacher's output layer."""
    temperature: float = Field(gt=0)
    """Temperature that the distribution was bent with before it was stored."""
    codec: Codec
    """What is kept of each distribution, and how."""
    codec_version: int = Field(default=1, ge=1)
    """Version of the codec's records and of what it keeps."""
    seed: int
    """Together with a piece's digest, the seed of its sampling."""
    dtype: str
    """The dtype of the teacher's forward pass."""
    sequence_length: int | None = None
    """Tokens per sequence, in caches of format 2; no part of an identity of format 3."""

    def difference(self, other: CacheIdentity, version: int = 3) -> str | None:
        """The first field in which this cache's identity differs from a wanted one, in words, or None.

        Args:
            other: What is wanted.
            version: Format of this cache; one of format 2 knows no config, and the seed of its sampling was the run's.
        """
        mine: dict[str, Any] = self.model_dump(mode="json")
        theirs: dict[str, Any] = other.model_dump(mode="json")
        for key, value in mine.items():
            if key == "sequence_length" or (version == 2 and key in ("config_digest", "seed")):
                continue
            if theirs[key] != value:
                return f"`{key}` is {value} there and {theirs[key]} here"
        return None
