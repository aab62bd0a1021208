"""Units of a cache that any number of processes write at the same time, and the seal that makes them a cache.

A unit is some rows of a corpus. Its name is a digest of everything that its signals depend on, so that every process gives the
same unit the same name and a unit that is there need not be made again. A process puts the unit's shard, then its note; it is
done once the note is there. Both are put only where the key is free: where two processes made the same unit, the first one's
counts. The seal checks every noted shard and names it in the manifest; it may run again at any time, while others write.

Keys: ``shards/ab/<name>.safetensors``, ``parts/<name>.json``, ``model.safetensors.zst``, ``manifest.json``.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stillroom.core import files
from stillroom.core.errors import CacheDamaged, SignalError
from stillroom.core.store import LocalStore, Store, is_url, open_store
from stillroom.signals.cache.identity import CacheIdentity
from stillroom.signals.cache.index import FROM_SEQUENCES, Index
from stillroom.signals.cache.manifest import JOURNAL, MODEL, NAME, VERSION, FileEntry, Manifest, ModelEntry, ShardEntry
from stillroom.signals.cache.reader import QUARANTINE, Damage, Difference, damage_in, held_against
from stillroom.signals.cache.shard import ShardReader

PARTS = "parts/"


class PartNote(BaseModel):
    """``parts/<name>.json``: a unit is done, and its shard has to look like this."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    sequences: int = Field(gt=0)
    positions: int = Field(ge=0)
    device: str = "cpu"
    """Device of the forward pass: on other devices than the CPU the draw of a signal may differ, and stays unbiased."""


@dataclass(frozen=True)
class Sealed:
    """What a seal did.

    Attributes:
        manifest: The cache's manifest.
        added: Units that are named by it now and were not before.
        damages: Units that were noted and are not whole; they are set aside, so that they are captured again.
    """

    manifest: Manifest
    added: int
    damages: list[Damage]


def unit_name(identity: CacheIdentity, model_sha256: str | None, addresses: Iterable[str]) -> str:
    """The name of a unit: SHA-256 of the identity's canonical JSON, the codec's model, and its sequences' addresses in order.

    Args:
        identity: Of the cache.
        model_sha256: SHA-256 of the codec's model; None where the codec has none.
        addresses: Of the unit's sequences.
    """
    hashed = hashlib.sha256(files.canonical_json([identity.model_dump(mode="json"), model_sha256]))
    for address in addresses:
        hashed.update(bytes.fromhex(address))
    return hashed.hexdigest()


def shard_key(name: str) -> str:
    """Where a unit's shard is."""
    return f"shards/{name[:2]}/{name}.safetensors"


def note_key(name: str) -> str:
    """Where a unit's note is."""
    return f"{PARTS}{name}.json"


def begin(store: Store, identity: CacheIdentity) -> Manifest:
    """The manifest of the cache that is to be added to; an empty one is made where there is none.

    Raises:
        SignalError: The store holds a cache that was captured otherwise, or one of format 2.
    """
    store.put_new(NAME, Manifest(identity=identity).dump())
    manifest = _manifest(store)
    difference = manifest.identity.difference(identity, manifest.version)
    if difference is None and manifest.version != VERSION:
        difference = f"it has format {manifest.version}, which is read and not written any more"
    if difference is not None:
        raise SignalError(
            f"{store.where} holds a cache that was captured otherwise: {difference}.",
            "Name another folder as `capture.path`, or change the recipe to what the cache holds.",
        )
    return manifest


def _manifest(store: Store) -> Manifest:
    if isinstance(store, LocalStore):
        return Manifest.load(store.folder)
    data = store.get(NAME)
    if data is None:
        raise SignalError(f"{store.where} is not a teacher cache: it has no {NAME}.", "Give a cache's folder or URL.")
    return Manifest.parse(data, f"{store.where}/{NAME}")


def done(store: Store) -> set[str]:
    """Names of units that are noted."""
    return {
        key.removeprefix(PARTS).removesuffix(".json")
        for key in store.names(PARTS)
        if key.startswith(PARTS) and key.endswith(".json")
    }


def put_part(store: Store, name: str, shard: bytes, note: PartNote) -> bool:
    """Put a unit; returns whether it was the first of its name.

    Where another process was first with the shard and was killed before the note, the note is of what is there.
    """
    if not store.put_new(shard_key(name), shard):
        there = store.get(shard_key(name)) or b""
        note = note.model_copy(update={"bytes": len(there), "sha256": files.digest_bytes(there)})
    return store.put_new(note_key(name), note.model_dump_json().encode())


def seal(store: Store) -> Sealed:
    """Check every unit that the manifest does not name yet, and write the manifest that names it.

    A unit whose shard is missing, cut off or altered is set aside (``quarantine/``) with its note.

    Raises:
        SignalError: There is no cache.
        CacheDamaged: The manifest is damaged.
    """
    manifest = _manifest(store)
    known = {entry.name for entry in manifest.shards}
    model = manifest.model
    if model is None and (data := store.get(MODEL)) is not None:
        model = ModelEntry(bytes=len(data), sha256=files.digest_bytes(data))
    added: list[ShardEntry] = []
    damages: list[Damage] = []
    with tempfile.TemporaryDirectory(prefix="stillroom-seal-") as folder:
        for name in sorted(done(store)):
            if shard_key(name) in known:
                continue
            found = _checked(store, name, Path(folder))
            if isinstance(found, ShardEntry):
                added.append(found)
                continue
            damages.append(found)
            _set_aside(store, name)
    if not added and (manifest.model is None) == (model is None):
        return Sealed(manifest, 0, damages)
    manifest = manifest.model_copy(
        update={"model": model, "shards": tuple(sorted((*manifest.shards, *added), key=_order)), "index": None}
    )
    if sum(entry.sequences for entry in manifest.shards) >= FROM_SEQUENCES:
        manifest = _indexed(store, manifest)
    store.put(NAME, manifest.dump())
    if isinstance(store, LocalStore):
        (store.folder / JOURNAL).unlink(missing_ok=True)
    return Sealed(manifest, len(added), damages)


def _order(entry: ShardEntry) -> tuple[bool, str]:
    """Numbered shards first, so that parts in any order make the same manifest."""
    return (entry.number < 0, entry.name)


def _checked(store: Store, name: str, folder: Path) -> ShardEntry | Damage:
    """The entry of a unit that is whole, or what is wrong with it."""
    key = shard_key(name)
    try:
        note = PartNote.model_validate_json(store.get(note_key(name)) or b"")
    except ValidationError:
        return Damage(key, "has a note that cannot be read", 0)
    data = store.get(key)
    if data is None:
        return Damage(key, "is missing", note.sequences)
    if len(data) != note.bytes:
        return Damage(key, f"has {len(data)} bytes instead of {note.bytes}", note.sequences)
    if files.digest_bytes(data) != note.sha256:
        return Damage(key, "has another SHA-256 than its note says", note.sequences)
    entry = ShardEntry(name=key, **note.model_dump(exclude={"device"}))
    # A process that was killed while another one's shard lay there noted what it found: so its inside is looked at, too.
    path = folder / "shard.safetensors"
    path.write_bytes(data)
    try:
        ShardReader(path, entry, store.where)
    except CacheDamaged as error:
        return Damage(key, f"is no shard: {error.what}", note.sequences)
    finally:
        path.unlink()
    return entry


def _set_aside(store: Store, name: str) -> None:
    data = store.get(shard_key(name))
    if data is not None:
        store.put(f"{QUARANTINE}/{name}.safetensors", data)
    # The note first: without it the unit is not done, and it can only be put again where its shard is gone.
    store.remove(note_key(name))
    store.remove(shard_key(name))


def verify(store: Store, difference: Difference | None = None) -> tuple[Manifest, list[Damage]]:
    """Compare every object of a cache in an object store with its manifest, as ``TeacherCache.verify_folder`` does with files.

    A damaged shard is set aside with its note and taken out of the manifest, so that its unit is captured again. Without the
    codec's model no shard can be read: all of them go with it.

    Args:
        store: The cache.
        difference: As in :func:`stillroom.signals.cache.reader.held_against`; None looks at one object after another here.

    Returns:
        The manifest as it is now, and what was wrong.

    Raises:
        SignalError: There is no cache.
        CacheDamaged: The manifest is damaged.
    """
    whole, damaged = held_against(_manifest(store), difference or (lambda entry: _difference(store, entry)))
    for entry, _ in damaged:
        if isinstance(entry, ShardEntry):
            _set_aside(store, Path(entry.name).name.removesuffix(".safetensors"))
        else:
            store.remove(entry.name)
    if damaged:
        store.put(NAME, whole.dump())
    return whole, [damage for _, damage in damaged]


def looked_at(where: str) -> tuple[Manifest, Difference]:
    """The manifest of a cache, and what looks at one file of it from this machine. Changes nothing.

    Args:
        where: Its folder, or its URL.

    Raises:
        SignalError: There is no cache.
        CacheDamaged: The manifest is damaged.
    """
    if is_url(where):
        store = open_store(where)
        return _manifest(store), lambda entry: _difference(store, entry)
    return Manifest.load(Path(where)), lambda entry: damage_in(Path(where), entry)


def _difference(store: Store, entry: FileEntry) -> str | None:
    """How an object differs from what the manifest says, or None."""
    data = store.get(entry.name)
    return entry.difference(None if data is None else len(data), lambda: files.digest_bytes(data or b""))


def _indexed(store: Store, manifest: Manifest) -> Manifest:
    """The manifest with an index, which is put into the store."""
    from safetensors.numpy import load

    def lists() -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for entry in manifest.shards:
            tensors = load(store.get(entry.name) or b"")
            yield tensors["digests"], tensors["positions"], tensors["entropy"]

    index = Index.of_shards(lists())
    data = index.rows.tobytes()
    entry = index.entry(files.digest_bytes(data))
    store.put(entry.name, data)
    return manifest.model_copy(update={"index": entry})


def seal_words(sealed: Sealed) -> str:
    """What a seal did, for people."""
    manifest = sealed.manifest
    words = f"{sealed.added:,} units added; {len(manifest.shards):,} shards with {_positions(manifest):,} positions"
    if sealed.damages:
        bad = "; ".join(f"{damage.shard} {damage.reason}" for damage in sealed.damages[:5])
        words += f"; {len(sealed.damages)} set aside, to be captured again: {bad}"
    return words


def _positions(manifest: Manifest) -> int:
    return sum(entry.positions for entry in manifest.shards)


def seal_json(sealed: Sealed) -> str:
    """The same as JSON."""
    return json.dumps(
        {
            "added": sealed.added,
            "shards": len(sealed.manifest.shards),
            "positions": _positions(sealed.manifest),
            "set_aside": [vars(damage) for damage in sealed.damages],
        },
        indent=2,
    )
