"""The manifest of a cache: identity and shards. Knows nothing of a shard's inside."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stillroom import files
from stillroom.errors import CacheDamaged, SignalError
from stillroom.teacher.cache.identity import CacheIdentity

FORMAT = "stillroom-teacher-cache"
VERSION = 1
NAME = "manifest.json"


class ShardEntry(BaseModel):
    """One shard: its file, what it must look like, and how much it holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^shard-\d{6}\.safetensors$")
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    sequences: int = Field(gt=0)
    positions: int = Field(ge=0)


class Manifest(BaseModel):
    """``manifest.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str = FORMAT
    version: int = VERSION
    identity: CacheIdentity
    shards: tuple[ShardEntry, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read a cache's manifest.

        Raises:
            SignalError: There is no cache, or it is of a version that this program does not know.
            CacheDamaged: The manifest is not what its format says.
        """
        path = folder / NAME
        try:
            value = files.read_json(path)
        except FileNotFoundError:
            raise SignalError(f"{folder} is not a teacher cache: it has no {NAME}.", "Give a cache's folder.") from None
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise CacheDamaged(f"{path} is damaged: {error}.", "Remove the cache and capture again.") from None
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise SignalError(f"{path} is not the manifest of a teacher cache.", "Give a cache's folder.")
        if value.get("version") != VERSION:
            raise SignalError(
                f"{path} has format version {value.get('version')}, and this program reads version {VERSION}.",
                "Use the version of Stillroom that wrote it, or capture again.",
            )
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise CacheDamaged(
                f"{path} is damaged: `{where}`: {first['msg']}.", "Remove the cache and capture again."
            ) from None

    def save(self, folder: Path) -> None:
        """Write it, atomically."""
        files.write_json(folder / NAME, self.model_dump(mode="json"))
