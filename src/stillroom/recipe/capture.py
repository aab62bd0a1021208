"""Recipe keys of the section `capture`: codecs of the cache and how the teacher's signal is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from stillroom.core.errors import UsageError
from stillroom.core.store import check_url, is_url
from stillroom.recipe.section import SINCE, Section


class ThresholdCodec(Section):
    """Threshold sampling with a systematic tail: unbiased, and of least variance for its size."""

    kind: Literal["threshold"] = "threshold"
    tau: float = Field(default=1 / 36, ge=1e-5, le=1)
    """Ids of at least this probability are kept with their value; a rarer one is kept with probability p/tau and then
    stands for tau. A draw walks through 1/tau points per position."""
    draws: int = Field(default=1, ge=1, le=16)
    """Independent draws of every position; they are averaged when the cache is read."""
    head: int = Field(default=0, ge=0, le=256)
    """Most probable ids that are kept with their value even below tau."""


class TopKCodec(Section):
    """The k most probable ids and the mass that they miss. Biased, how that mass is spread is lost: refused without
    ``distill.biased``.
    """

    kind: Literal["top_k"] = "top_k"
    k: int = Field(default=16, ge=1, le=4096)
    """Ids kept per position."""


class DenseCodec(Section):
    """Every log-probability in float32: exact and large; for tests and small vocabularies."""

    kind: Literal["dense"] = "dense"


class ObservedCodec(Section):
    """The k most probable ids exactly, and the probability of all others together: what an endpoint lists. Every objective
    takes it; losses are lower bounds of those on whole distributions.
    """

    kind: Literal["observed"] = "observed"
    k: int = Field(default=20, ge=1, le=4096)
    """Ids kept per position; with an endpoint at most ``teacher.top``."""


class HiddenCodec(Section):
    """The teacher's last hidden states, and its output matrix once: the whole distribution in 2 bytes per channel. Needs a
    teacher on this machine.
    """

    kind: Literal["hidden"] = "hidden"
    bits: Literal[16, 8] = 16
    """16: bfloat16, exact for a teacher that computes in bfloat16. 8: int8 with a scale per channel and piece, half of that."""


Codec = Annotated[ThresholdCodec | TopKCodec | DenseCodec | ObservedCodec | HiddenCodec, Field(discriminator="kind")]


StoreUrl = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9+.-]*://")]
"""A bucket with a path, such as ``s3://bucket/cache``; credentials come from the environment."""


def known_store(value: str) -> str:
    """A URL of an object store that is known, without credentials.

    Raises:
        ValueError: It is none.
    """
    try:
        return check_url(value)
    except UsageError as error:
        raise ValueError(f"{error.what} {error.todo.removesuffix('.')}") from None


class CaptureConfig(Section):
    """How the teacher's signal is captured into the cache."""

    codec: Codec = ThresholdCodec()
    """What is kept of each distribution."""
    temperature: float = Field(default=1.0, ge=0.01, le=100)
    """Scales the logits of the teacher's distribution before it is stored: softmax(logits / temperature)."""
    batch_tokens: int | None = Field(default=None, gt=0)
    """Tokens a teacher's forward pass; without it, as many as memory allows."""
    shard_tokens: int = Field(default=16_384, ge=1)
    """Tokens per shard of the cache; a kill loses at most the shard that was being written."""
    path: StoreUrl | Path | None = None
    """Folder of the cache, or a URL such as `s3://bucket/cache`; without it, in the run's folder. A shared one serves any
    number of runs. Credentials of an object store come from the environment, never from here."""
    unit_tokens: int = Field(default=2**20, ge=1, json_schema_extra={SINCE: "0.2.0"})
    """Tokens of a unit: what one process of several captures at a time (`capture --part`, `--ray`, a cache at a URL). A process
    that is killed loses at most the unit that it was working on. A unit is held in memory and is one object of a store: take
    fewer with the codecs `hidden` and `dense`, whose signals are large."""
    seed: int = Field(default=0, ge=0, json_schema_extra={SINCE: "0.2.0"})
    """Seed of the codec's sampling, together with a piece's content. It is not the run's `seed`: one cache serves runs of any
    seed."""

    @field_validator("path", mode="before")
    @classmethod
    def _known_store(cls, value: Any) -> Any:
        """A URL is of an object store that is known, and carries no credentials."""
        return known_store(value) if isinstance(value, str) and is_url(value) else value
