"""Reads a cache: the signals of any pieces, in any order, in constant memory; and verifies it.

A cache of format 2 holds whole rows of pieces, and is read the same way: a row is then what has an address.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stillroom.core import files
from stillroom.core.errors import CacheDamaged, SignalError
from stillroom.signals.cache.manifest import NAME, FileEntry, Manifest, read_model
from stillroom.signals.cache.registry import make_codec
from stillroom.signals.cache.shard import ShardReader
from stillroom.signals.signal import Signal

QUARANTINE = "quarantine"


@dataclass(frozen=True)
class Damage:
    """A file that is not what the manifest says, and the sequences that are lost with it."""

    shard: str
    reason: str
    sequences: int


class TeacherCache:
    """A cache, opened for reading. Use :meth:`open`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.identity = manifest.identity
        self._codec = make_codec(
            manifest.identity.codec, manifest.identity.vocabulary_size, manifest.identity.codec_version
        )
        if manifest.model is not None:
            self._codec.recall(read_model(folder, manifest.model))
        self._shards = [ShardReader(folder, entry) for entry in manifest.shards]
        self._places: dict[str, tuple[int, int]] = {}
        for number, shard in enumerate(self._shards):
            for index, digest in enumerate(shard.digests):
                self._places[digest] = (number, index)

    @classmethod
    def open(cls, folder: str | Path) -> TeacherCache:
        """Open a cache.

        Raises:
            SignalError: There is no cache that this program can read.
            CacheDamaged: A shard is missing or has the wrong size.
        """
        return cls(Path(folder), Manifest.load(Path(folder)))

    def __contains__(self, digest: str) -> bool:
        return digest in self._places

    @property
    def digests(self) -> list[str]:
        """Addresses of all sequences: of pieces, or of rows in a cache of format 2."""
        return list(self._places)

    def before(self, shard: int) -> set[str]:
        """Addresses that stand in shards with a lower number."""
        numbers = [entry.number for entry in self.manifest.shards]
        return {address for address, (place, _) in self._places.items() if numbers[place] < shard}

    @property
    def positions(self) -> int:
        """Positions of all sequences."""
        return sum(entry.positions for entry in self.manifest.shards)

    @property
    def bytes_per_position(self) -> float:
        """Bytes on disk a position: shards with their indices, the codec's model, and the manifest."""
        stored = sum(entry.bytes for entry in self.manifest.shards) + (self.folder / NAME).stat().st_size
        if self.manifest.model is not None:
            stored += self.manifest.model.bytes
        return stored / max(1, self.positions)

    def require(self, **wanted: object) -> None:
        """Refuse a cache that was captured otherwise.

        Args:
            wanted: Fields of the identity with the values that they must have.

        Raises:
            SignalError: A field differs.
        """
        for key, value in wanted.items():
            there = getattr(self.identity, key)
            if there != value:
                raise SignalError(
                    f"{self.folder}: the cache was captured with `{key}` {there}, and the recipe asks for {value}.",
                    "Capture again, or change the recipe.",
                )

    def read(self, digests: list[str]) -> tuple[Signal, list[int]]:
        """The signals of sequences, one after the other, and the number of positions of each.

        Raises:
            SignalError: A sequence is not in the cache.
            CacheDamaged: Bytes are not what the format says.
        """
        records: list[bytes] = []
        counts: list[int] = []
        for digest in digests:
            number, index = self._place(digest)
            shard = self._shards[number]
            counts.append(int(shard.positions[index]))
            records.append(shard.data(index))
        return self._codec.decode(records, counts), counts

    def entropy(self, digest: str) -> float:
        """The teacher's entropy summed over a sequence's positions, nats."""
        number, index = self._place(digest)
        return float(self._shards[number].entropy[index])

    def _place(self, digest: str) -> tuple[int, int]:
        place = self._places.get(digest)
        if place is None:
            if found := damages_of(self.folder):
                # Addresses stand in the shards: a changed byte there loses a sequence as surely as a cut file.
                raise CacheDamaged(
                    f"{self.folder}: {'; '.join(found)}.",
                    "Give the same `run` again: what is damaged is captured again.",
                )
            raise SignalError(
                f"{self.folder}: the cache does not hold the sequence {digest[:12]}….", "Capture this corpus first."
            )
        return place

    @staticmethod
    def verify_folder(folder: str | Path) -> list[Damage]:
        """Compare every file with the manifest: presence, size, SHA-256.

        A damaged shard is moved to ``quarantine/`` and taken out of the manifest, so that the next capture makes its
        sequences again. Without the codec's model no shard can be read: all of them go with it. Shards that the manifest
        does not name are left by a kill and removed.

        Returns:
            What was wrong.
        """
        folder = Path(folder)
        manifest = Manifest.load(folder)
        damages: list[Damage] = []
        whole = []
        model = manifest.model
        if model is not None and (reason := _damage(folder, model)) is not None:
            damages.append(Damage(model.name, reason, 0))
            _quarantine(folder, model.name)
            model = None
        for entry in manifest.shards:
            reason = _damage(folder, entry)
            if reason is None and manifest.model is not None and model is None:
                reason = "cannot be read without the codec's model"
            if reason is None:
                whole.append(entry)
                continue
            damages.append(Damage(entry.name, reason, entry.sequences))
            _quarantine(folder, entry.name)
        if damages:
            manifest.model_copy(update={"shards": tuple(whole), "model": model}).save(folder)
        named = {entry.name for entry in manifest.shards}
        for path in folder.glob("shard-*.safetensors"):
            if path.name not in named:
                path.unlink()
        return damages


def damages_of(folder: Path, digest: Callable[[Path], str] = files.digest_file) -> list[str]:
    """Files of a cache that are not what its manifest says, and how, in words. Changes nothing.

    Args:
        folder: The cache.
        digest: Gives the SHA-256 of a file.

    Raises:
        SignalError: There is no cache.
        CacheDamaged: The manifest cannot be read.
    """
    manifest = Manifest.load(folder)
    entries: list[FileEntry] = [*([manifest.model] if manifest.model is not None else []), *manifest.shards]
    return [f"{entry.name} {reason}" for entry in entries if (reason := _damage(folder, entry, digest)) is not None]


def _damage(folder: Path, entry: FileEntry, digest: Callable[[Path], str] = files.digest_file) -> str | None:
    """How a file differs from what the manifest says, or None."""
    path = folder / entry.name
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != entry.bytes:
        return f"has {path.stat().st_size} bytes instead of {entry.bytes}"
    if digest(path) != entry.sha256:
        return "has another SHA-256 than the manifest says"
    return None


def _quarantine(folder: Path, name: str) -> None:
    if (folder / name).is_file():
        (folder / QUARANTINE).mkdir(exist_ok=True)
        os.replace(folder / name, folder / QUARANTINE / name)
