"""The manifest of a cache: identity, codec's model and shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stillroom.core import files
from stillroom.core.errors import CacheDamaged, SignalError
from stillroom.signals.cache.identity import CacheIdentity

FORMAT = "stillroom-teacher-cache"
VERSION: Final = 3
READABLE = (2, 3)
NAME = "manifest.json"
MODEL: Final = "model.safetensors.zst"


class FileEntry(BaseModel):
    """A file of the cache, and what it must look like."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ModelEntry(FileEntry):
    """The codec's model: how its bytes are to be read."""

    name: Literal["model.safetensors.zst"] = MODEL


class ShardEntry(FileEntry):
    """One shard, and how much it holds."""

    name: str = Field(pattern=r"^shard-\d{6}\.safetensors$")
    sequences: int = Field(gt=0)
    positions: int = Field(ge=0)

    @property
    def number(self) -> int:
        """The number in its name."""
        return int(self.name[6:12])


class Manifest(BaseModel):
    """``manifest.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str = FORMAT
    version: Literal[2, 3] = VERSION
    identity: CacheIdentity
    model: ModelEntry | None = None
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
        if value.get("version") not in READABLE:
            raise SignalError(
                f"{path} has format version {value.get('version')}, and this program reads "
                f"{' and '.join(map(str, READABLE))}.",
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
        unknown = {"config_digest", "codec_version"} if self.version == 2 else {"sequence_length"}
        files.write_json(folder / NAME, self.model_dump(mode="json", exclude={"identity": unknown}))


def write_model(folder: Path, data: bytes) -> ModelEntry:
    """Write the codec's model, atomically."""
    files.write_bytes(folder / MODEL, data)
    return ModelEntry(bytes=len(data), sha256=files.digest_bytes(data))


def read_model(folder: Path, entry: ModelEntry) -> bytes:
    """The codec's model.

    Raises:
        CacheDamaged: It is missing, or not the one that the manifest names.
    """
    path = folder / entry.name
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""
    if files.digest_bytes(data) != entry.sha256:
        raise CacheDamaged(
            f"{path} is missing or damaged, and no shard can be read without it.",
            f"Run `stillroom cache verify {folder}`, then the same command again: the cache is captured again.",
        )
    return data
