"""What a cache was made of and how: two signals may only be in one cache when all of this is equal.

It says nothing of the corpus: a piece's digest is its address, whatever rows it was packed into.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

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
    quantization: str | None = None
    """How the teacher's weights are stored where they are quantized (method, bits, block), such as ``fp8, 8 bits, blocks of
    128 x 128``. No part of what is written where they are not, and in caches of earlier versions."""

    @model_serializer(mode="wrap")
    def _without_nothing(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Units are named by what is written here: a teacher of floats has no other names than before."""
        found: dict[str, Any] = write(self)
        if self.quantization is None:
            found.pop("quantization", None)
        return found

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
            if theirs.get(key) != value:
                return f"`{key}` is {value} there and {theirs.get(key)} here"
        if "quantization" in theirs and "quantization" not in mine:
            return f"`quantization` is not said there and {theirs['quantization']} here"
        return None
