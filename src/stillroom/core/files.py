"""Digests, and writing beside and renaming."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillroom.core.errors import NotJson, UsageError

CHUNK = 1 << 20


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_bytes(data: bytes) -> str:
    """SHA-256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one JSON form of a value: sorted keys, no spaces, UTF-8. Refuses NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON, in hex."""
    return digest_bytes(canonical_json(value))


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path, *, settled: bool = True) -> Iterator[Path]:
    """Write a file or a folder beside ``path`` and put it in place at the end, or not at all.

    Yields a path that does not exist yet, in the same folder. The body creates a file or a folder there. When the body
    ends, it is flushed to disk and renamed onto ``path``; when the body raises, it is removed and ``path`` is as before. A
    folder that is where a file has to be is moved aside (:func:`make_way`). A file that is not to be ``settled`` is seen by
    every process at once, but a loss of power may take it: :func:`settle` is to follow.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield beside
        if beside.is_dir():
            for file in sorted(beside.rglob("*")):
                if file.is_file():
                    _sync_file(file)
            old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old.partial")
            if path.exists():
                os.rename(path, old)
            try:
                os.rename(beside, path)
            except BaseException:
                if old.exists():
                    os.rename(old, path)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            if settled:
                _sync_file(beside)
            make_way(path)
            os.replace(beside, path)
        if settled:
            sync_folder(path.parent)
    except BaseException:
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        else:
            beside.unlink(missing_ok=True)
        raise


def _sync_file(path: Path) -> None:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def write_bytes(path: Path, data: bytes, *, settled: bool = True) -> None:
    """Replace a file's content atomically; ``settled`` as in :func:`replacing`."""
    with replacing(path, settled=settled) as beside:
        beside.write_bytes(data)


def write_text(path: Path, text: str, *, settled: bool = True) -> None:
    """Replace a file's content atomically, as UTF-8; ``settled`` as in :func:`replacing`."""
    write_bytes(path, text.encode(), settled=settled)


def write_json(path: Path, value: Any, *, settled: bool = True) -> None:
    """Replace a file with indented JSON, atomically; ``settled`` as in :func:`replacing`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", settled=settled)


def append(path: Path, data: bytes) -> None:
    """Add a record to the end of a file that only its owner may read; whole, or not at all where the disk is full. A kill can
    only cut off the last record. One writer at a time.
    """
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        before = os.fstat(handle).st_size
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(handle, view) :]
        except OSError:
            # Half a record would take the next one with it.
            os.ftruncate(handle, before)
            raise
    finally:
        os.close(handle)


def is_cut_off(path: Path) -> bool:
    """Whether a file is there, and its last line has no end, as a kill leaves it."""
    if not path.exists() or not path.stat().st_size:
        return False
    with open(path, "rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"


def settle(path: Path) -> None:
    """Flush a file, and its folder, to disk."""
    _sync_file(path)
    sync_folder(path.parent)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        NotJson: It is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise NotJson(str(path), str(error)) from None


def require_no_folder(path: Path) -> None:
    """Refuse to write a file that a user names where a folder is: only what is in the way of files of ours is moved away.

    Raises:
        UsageError: It is a folder.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder, where a file is to be written.", "Name a file.")


def make_way(path: Path, *, folder: bool = False) -> None:
    """Move away what stands in the way of a file of ours: a folder of that name (or, for a folder, a file).

    It is renamed to ``NAME.moved-away``, with a number where there was one before; nothing is removed.
    """
    if path.exists() and path.is_dir() != folder:
        target = path.with_name(f"{path.name}.moved-away")
        number = 1
        while target.exists():
            number += 1
            target = path.with_name(f"{path.name}.moved-away-{number}")
        os.rename(path, target)


def remove_leftovers(folder: Path, *, below: bool = True) -> None:
    """Remove what a killed process was writing beside its targets.

    Args:
        folder: Of a stage; nothing happens where it is none.
        below: In folders inside it too. Where not, hidden entries alone go, as others may be a user's.
    """
    if not folder.is_dir():
        return
    for leftover in sorted(folder.rglob("*.partial") if below else folder.glob(".*.partial")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def read_at_most(path: Path, limit: int) -> bytes | None:
    """A whole file; None where it has more than ``limit`` bytes, which are then not read.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb") as stream:
        data = stream.read(limit + 1)
    return data if len(data) <= limit else None


def folder_bytes(path: Path) -> int:
    """Bytes of a file, or of all files under a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
