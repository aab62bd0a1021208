"""The manifest of a cache: identity, codec's model and shards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stillroom.core import files
from stillroom.core.errors import CacheDamaged, SignalError
from stillroom.signals.cache.identity import CacheIdentity

FORMAT = "stillroom-teacher-cache"
VERSION: Final = 3
READABLE = (2, 3)
NAME = "manifest.json"
MODEL: Final = "model.safetensors.zst"
INDEX: Final = "index.bin"
JOURNAL = "manifest.jsonl"
"""While a cache is written: the entries of shards that the manifest does not name yet, one per line."""
REWRITE_SHARE = 8
"""The manifest is written anew when shards were added that are one in so many, so that what is written grows linearly."""


class FileEntry(BaseModel):
    """A file of the cache, and what it must look like."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    def difference(self, size: int | None, digest: Callable[[], str]) -> str | None:
        """How what is there differs, or None: its bytes (None where there is nothing), and its SHA-256, asked for last."""
        if size is None:
            return "is missing"
        if size != self.bytes:
            return f"has {size} bytes instead of {self.bytes}"
        return None if digest() == self.sha256 else "has another SHA-256 than the manifest says"


class ModelEntry(FileEntry):
    """The codec's model: how its bytes are to be read."""

    name: Literal["model.safetensors.zst"] = MODEL


class ShardEntry(FileEntry):
    """One shard, and how much it holds. It is named by its number, or by the content of its unit."""

    name: str = Field(pattern=r"^(shard-\d{6}|shards/[0-9a-f]{2}/[0-9a-f]{64})\.safetensors$")
    sequences: int = Field(gt=0)
    positions: int = Field(ge=0)

    @property
    def number(self) -> int:
        """The number in its name; -1 for one that is named by content."""
        return -1 if self.name.startswith("shards/") else int(self.name[6:12])


class IndexEntry(FileEntry):
    """The index of a large cache: where each sequence's signal is stored."""

    name: Literal["index.bin"] = INDEX
    sequences: int = Field(gt=0)
    positions: int = Field(ge=0)


class Manifest(BaseModel):
    """``manifest.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str = FORMAT
    version: Literal[2, 3] = VERSION
    identity: CacheIdentity
    model: ModelEntry | None = None
    shards: tuple[ShardEntry, ...] = ()
    index: IndexEntry | None = None

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read a cache's manifest, with the shards of a capture that was interrupted or is under way.

        Raises:
            SignalError: There is no cache, or it is of a version that this program does not know.
            CacheDamaged: The manifest is not what its format says.
        """
        path = folder / NAME
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise SignalError(f"{folder} is not a teacher cache: it has no {NAME}.", "Give a cache's folder.") from None
        found = cls.parse(data, str(path))
        more = _journal(folder / JOURNAL, {entry.name for entry in found.shards})
        return found.model_copy(update={"shards": (*found.shards, *more), "index": None}) if more else found

    @classmethod
    def parse(cls, data: bytes, path: str) -> Manifest:
        """A manifest of bytes. Errors as in :meth:`load`.

        Args:
            data: What is stored.
            path: Where, for messages.
        """
        try:
            value = json.loads(data.decode("utf-8"))
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

    def dump(self) -> bytes:
        """As it is stored."""
        unknown = {"config_digest", "codec_version"} if self.version == 2 else {"sequence_length"}
        exclude: dict[str, Any] = {"identity": unknown}
        if self.index is None:
            exclude["index"] = True
        value = self.model_dump(mode="json", exclude=exclude)
        return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()

    def save(self, folder: Path) -> None:
        """Write it, atomically; what stood in the journal is in it."""
        files.write_bytes(folder / NAME, self.dump())
        (folder / JOURNAL).unlink(missing_ok=True)


def append_entry(folder: Path, entry: ShardEntry) -> None:
    """Name one more shard: a line of the journal, on disk when this returns."""
    with open(folder / JOURNAL, "ab") as stream:
        stream.write(files.canonical_json(entry.model_dump(mode="json")) + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _journal(path: Path, known: set[str]) -> list[ShardEntry]:
    """Entries of the journal that the manifest does not name; what a kill cut off is left out, and all behind it."""
    found: list[ShardEntry] = []
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return found
    for line in lines:
        try:
            if not line.endswith(b"\n"):
                break
            entry = ShardEntry.model_validate_json(line)
        except ValidationError:
            break
        if entry.name not in known:
            known.add(entry.name)
            found.append(entry)
    return found


def part_of(shard: str) -> str:
    """The key of the note that a shard which is named by content has while it is not sealed."""
    return f"parts/{Path(shard).name.removesuffix('.safetensors')}.json"


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


def is_cache(folder: Path) -> bool:
    """Whether a folder holds a cache."""
    return (folder / NAME).is_file() or (folder / JOURNAL).is_file()
