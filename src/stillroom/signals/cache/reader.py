"""Reads a cache: the signals of any pieces, in any order, in constant memory; and verifies it.

A cache of format 2 holds whole rows of pieces, and is read the same way: a row is then what has an address.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stillroom.core import files
from stillroom.core.errors import CacheDamaged, SignalError
from stillroom.core.store import Store, is_url, open_store
from stillroom.signals.cache.index import Index
from stillroom.signals.cache.manifest import INDEX, NAME, FileEntry, IndexEntry, Manifest, part_of, read_model
from stillroom.signals.cache.registry import make_codec
from stillroom.signals.cache.shard import ShardReader, check_size, verify_hint
from stillroom.signals.signal import Signal

QUARANTINE = "quarantine"


@dataclass(frozen=True)
class Damage:
    """A file that is not what the manifest says, and the sequences that are lost with it."""

    shard: str
    reason: str
    sequences: int


Difference = Callable[[FileEntry], str | None]
"""How a file of a cache differs from its entry, or None."""
OPEN_SHARDS = 256
"""Shards that are held open at the same time."""


class TeacherCache:
    """A cache, opened for reading. Use :meth:`open`.

    Args:
        folder: Where it is; for one in an object store, where its copies are kept.
        manifest: Its manifest.
        store: The object store, where the cache is in one.
    """

    def __init__(self, folder: Path, manifest: Manifest, store: Store | None = None) -> None:
        self.folder = folder
        self.manifest = manifest
        self.identity = manifest.identity
        self._store = store
        self._where = str(folder) if store is None else store.where
        self._codec = make_codec(
            manifest.identity.codec, manifest.identity.vocabulary_size, manifest.identity.codec_version
        )
        if manifest.model is not None:
            self._file(manifest.model)
            self._codec.recall(read_model(folder, manifest.model))
        self._shards: OrderedDict[int, ShardReader] = OrderedDict()
        self._lock = threading.Lock()
        if store is None:
            for entry in manifest.shards:
                check_size(folder / entry.name, entry, self._where)
        if manifest.index is not None and self._file(manifest.index).is_file():
            check_size(folder / manifest.index.name, manifest.index, self._where)
            self._index = Index.open(folder / manifest.index.name)
            self._positions = manifest.index.positions
        else:
            numbers = range(len(manifest.shards))
            readers = (self._shard(number) for number in numbers)
            self._index = Index.of_shards((shard.digests, shard.positions, shard.entropy) for shard in readers)
            self._positions = self._index.positions

    @classmethod
    def open(cls, folder: str | Path, copies: Path | None = None) -> TeacherCache:
        """Open a cache.

        Args:
            folder: Its folder, or the URL of an object store.
            copies: Where copies of what is read from an object store are kept; None takes a folder for temporary files.

        Raises:
            SignalError: There is no cache that this program can read.
            CacheDamaged: A shard is missing or has the wrong size.
        """
        if not is_url(folder):
            return cls(Path(folder), Manifest.load(Path(folder)))
        store = open_store(folder)
        data = store.get(NAME)
        if data is None:
            raise SignalError(f"{store.where} is not a teacher cache: it has no {NAME}.", "Give a cache's URL.")
        manifest = Manifest.parse(data, store.where)
        if copies is not None:
            return cls(copies, manifest, store)
        made = Path(tempfile.mkdtemp(prefix="stillroom-cache-"))
        try:
            cache = cls(made, manifest, store)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        weakref.finalize(cache, shutil.rmtree, made, ignore_errors=True)
        return cache

    def _file(self, entry: FileEntry) -> Path:
        """A file of the cache on this machine; one in an object store is copied, and compared with the manifest, once.

        Raises:
            CacheDamaged: It is missing there, or not the one that the manifest names.
        """
        path = self.folder / entry.name
        if self._store is None or (path.is_file() and path.stat().st_size == entry.bytes):
            return path
        data = self._store.get(entry.name)
        if data is None or len(data) != entry.bytes or files.digest_bytes(data) != entry.sha256:
            reason = "is missing" if data is None else "is not what the manifest says"
            raise CacheDamaged(f"{self._where}/{entry.name} {reason}.", verify_hint(self._where))
        files.write_bytes(path, data)
        return path

    def _shard(self, number: int) -> ShardReader:
        """A shard, by its number in the manifest."""
        with self._lock:
            found = self._shards.pop(number, None)
            if found is None:
                entry = self.manifest.shards[number]
                found = ShardReader(self._file(entry), entry, self._where)
                if len(self._shards) >= OPEN_SHARDS:
                    self._shards.popitem(last=False)
            self._shards[number] = found
            return found

    def __contains__(self, digest: str) -> bool:
        return self._index.find(digest) is not None

    def __len__(self) -> int:
        return len(self._index)

    @property
    def digests(self) -> list[str]:
        """Addresses of all sequences, sorted: of pieces, or of rows in a cache of format 2."""
        return list(self._index.digests())

    def save_index(self) -> IndexEntry:
        """Write the index into the folder; what the manifest is to say of it."""
        return self._index.save(self.folder)

    def before(self, shard: int) -> set[str]:
        """Addresses that are stored in shards with a lower number."""
        numbers = np.asarray([entry.number for entry in self.manifest.shards], dtype=np.int64)
        rows = self._index.rows
        earlier = rows[numbers[rows["shard"]] < shard] if len(rows) else rows
        return set(Index(earlier).digests())

    def addresses_in(self, names: Collection[str]) -> set[str]:
        """Addresses that are in shards of these names; one that several shards have is in the first of them."""
        numbers = [number for number, entry in enumerate(self.manifest.shards) if entry.name in names]
        rows = self._index.rows
        return set(Index(rows[np.isin(rows["shard"], numbers)]).digests())

    @property
    def positions(self) -> int:
        """Positions of all sequences."""
        return self._positions

    @property
    def bytes_per_position(self) -> float:
        """Bytes on disk per position: shards with their lists, index, the codec's model, and the manifest."""
        stored = sum(entry.bytes for entry in self.manifest.shards) + len(self.manifest.dump())
        for entry in (self.manifest.model, self.manifest.index):
            stored += entry.bytes if entry is not None else 0
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
                    f"{self._where}: the cache was captured with `{key}` {there}, and the recipe asks for {value}.",
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
            shard, row = self._place(digest)
            counts.append(int(shard.positions[row]))
            records.append(shard.data(row))
        return self._codec.decode(records, counts), counts

    def entropy(self, digest: str) -> float:
        """The teacher's entropy summed over a sequence's positions, nats."""
        shard, row = self._place(digest)
        return float(shard.entropy[row])

    def _place(self, digest: str) -> tuple[ShardReader, int]:
        found = self._index.find(digest)
        if found is None:
            if not is_url(self._where) and (damaged := damages_of(self.folder)):
                # Addresses are in the shards: a changed byte there loses a sequence as surely as a file that ends too early.
                raise CacheDamaged(
                    f"{self.folder}: {'; '.join(damaged)}.",
                    "Give the same `run` again: what is damaged is captured again.",
                )
            raise SignalError(
                f"{self._where}: the cache does not hold the sequence {digest[:12]}….", "Capture this corpus first."
            )
        number, row = int(found["shard"]), int(found["row"])
        shard = self._shard(number) if number < len(self.manifest.shards) else None
        if shard is None or row >= len(shard.digests) or shard.digests[row].tobytes().hex() != digest:
            raise CacheDamaged(f"{self._where}/{INDEX} does not fit the shards.", verify_hint(self._where))
        return shard, row

    @staticmethod
    def verify_folder(folder: str | Path, difference: Difference | None = None) -> list[Damage]:
        """Compare every file with the manifest: presence, size, SHA-256.

        A damaged shard is moved to ``quarantine/`` and taken out of the manifest, so that the next capture makes its
        sequences again. Without the codec's model no shard can be read: all of them go with it. Shards that the manifest
        does not name are left by a kill and removed.

        Args:
            folder: The cache.
            difference: As in :func:`held_against`; None looks at the files here, one after another.

        Returns:
            What was wrong.
        """
        folder = Path(folder)
        manifest = Manifest.load(folder)
        whole, damaged = held_against(manifest, difference or (lambda entry: damage_in(folder, entry)))
        for entry, _ in damaged:
            _quarantine(folder, entry.name)
        if damaged:
            whole.save(folder)
            for entry in set(manifest.shards) - set(whole.shards):
                note = folder / part_of(entry.name)
                note.unlink(missing_ok=True)
        named = {entry.name for entry in manifest.shards}
        for path in folder.glob("shard-*.safetensors"):
            if path.name not in named:
                path.unlink()
        return [damage for _, damage in damaged]


def held_against(manifest: Manifest, difference: Difference) -> tuple[Manifest, list[tuple[FileEntry, Damage]]]:
    """A manifest without what is damaged, and each file that is. Changes nothing.

    Args:
        manifest: What should be there. Without the codec's model no shard can be read: all of them go with it.
        difference: Says how a file differs from its entry, or None.
    """
    damaged: list[tuple[FileEntry, Damage]] = []

    def whole(entry: FileEntry, sequences: int = 0, lost: str | None = None) -> bool:
        reason = difference(entry) or lost
        if reason is not None:
            damaged.append((entry, Damage(entry.name, reason, sequences)))
        return reason is None

    model = manifest.model if manifest.model is not None and whole(manifest.model) else None
    index = manifest.index if manifest.index is not None and whole(manifest.index) else None
    lost = "cannot be read without the codec's model" if manifest.model is not None and model is None else None
    shards = tuple(entry for entry in manifest.shards if whole(entry, entry.sequences, lost))
    # An index counts shards by their place in the manifest: with one shard less it is another.
    index = index if len(shards) == len(manifest.shards) else None
    return manifest.model_copy(update={"shards": shards, "model": model, "index": index}), damaged


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
    return [f"{entry.name} {reason}" for entry in entries if (reason := damage_in(folder, entry, digest)) is not None]


def damage_in(folder: Path, entry: FileEntry, digest: Callable[[Path], str] = files.digest_file) -> str | None:
    """How a file differs from what the manifest says, or None."""
    path = folder / entry.name
    return entry.difference(path.stat().st_size if path.is_file() else None, lambda: digest(path))


def _quarantine(folder: Path, name: str) -> None:
    if (folder / name).is_file():
        (folder / QUARANTINE).mkdir(exist_ok=True)
        os.replace(folder / name, folder / QUARANTINE / Path(name).name)
