"""Copies a package's files to a private place and digests what it copies, on all cores.

What is digested is what was written, so nothing can change between the check and the use. Where the file system can share
blocks between two files (Btrfs, XFS), the copy is a clone: it costs nothing, and its own bytes are digested. Elsewhere every
byte is read into a buffer that the CPU's cache holds, digested there and written from there. Memory beyond that buffer
is the page cache's, which the system takes back as it needs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

from stillroom.core.errors import DiskFull, VerificationFailed
from stillroom.verification.manifest import CHUNK, Listed, Manifest

STEP = 1 << 20
"""Bytes that are read, digested and written at a time: the CPU's cache holds them in between."""
FICLONE = 0x40049409
"""Linux: let one file share the blocks of another (``ioctl_ficlone(2)``)."""


def copy_verified(source: Path, manifest: Manifest, target: Path, workers: int | None = None) -> None:
    """Copy exactly the listed files into ``target`` and check each on the way; the copy is read-only.

    Args:
        source: The package's folder, whose content may change at any moment.
        manifest: The signed list.
        target: An empty folder that only this user may enter.
        workers: Threads; one a core without it.

    Raises:
        VerificationFailed: Names the file, and the piece of it, that is not what was signed.
        DiskFull: There is no disk space for the copy.
    """
    size = sum(file.bytes for file in manifest.files)
    free = shutil.disk_usage(target).free
    if free < size:
        raise DiskFull(
            f"{target}: {free / 2**20:,.0f} MiB are free; the copy that is checked and loaded takes {size / 2**20:,.0f}.",
            "Free some disk space, or name another folder.",
        )
    with contextlib.ExitStack() as stack:
        pieces: list[Callable[[], None]] = []
        # Largest first: the last pieces to finish are then small ones.
        for file in sorted(manifest.files, key=lambda entry: -entry.bytes):
            made = target / file.name
            made.parent.mkdir(parents=True, exist_ok=True)
            if not file.chunks:
                pieces.append(partial(_copy_small, source, file, made))
                continue
            reading = _open(source, file)
            stack.callback(os.close, reading)
            writing = _create(made)
            stack.callback(os.close, writing)
            cloned = _clone(reading, writing, file.bytes)
            if not cloned:
                _reserve(writing, file.bytes)
            for index, digest in enumerate(file.chunks):
                start, end = index * CHUNK, min((index + 1) * CHUNK, file.bytes)
                pieces.append(
                    partial(_check, file.name, writing, start, end, digest)
                    if cloned
                    else partial(_check, file.name, reading, start, end, digest, writing)
                )
        # The pool ends before any file is closed: a thread never meets a descriptor that has become another file's.
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            tasks = [pool.submit(piece) for piece in pieces]
            done, rest = wait(tasks, return_when=FIRST_EXCEPTION)
            for task in rest:
                task.cancel()
        for task in done:
            task.result()
    for path in sorted(target.rglob("*"), reverse=True):
        path.chmod(0o500 if path.is_dir() else 0o400)


def _open(source: Path, file: Listed) -> int:
    """Open a listed file without following a link at any step of its name; returns the descriptor."""
    folders: list[int] = []
    no_follow = getattr(os, "O_NOFOLLOW", 0)
    folder_only = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
    try:
        *parts, last = file.name.split("/")
        folders.append(os.open(source, folder_only))
        for part in parts:
            folders.append(os.open(part, folder_only | no_follow, dir_fd=folders[-1]))
        # Without O_NONBLOCK a pipe in a file's place would hold us for ever.
        descriptor = os.open(last, os.O_RDONLY | no_follow | os.O_NONBLOCK, dir_fd=folders[-1])
    except OSError as error:
        raise VerificationFailed(
            f"{source}: `{file.name}` cannot be opened as the file that was signed: {error.strerror}.",
            "It may have been replaced by a link; get the package again.",
        ) from None
    finally:
        for opened in folders:
            os.close(opened)
    facts = os.fstat(descriptor)
    trouble = None
    if not stat.S_ISREG(facts.st_mode):
        trouble = "is not an ordinary file"
    elif facts.st_size != file.bytes:
        trouble = f"has {facts.st_size:,} bytes; {file.bytes:,} were signed"
    if trouble:
        os.close(descriptor)
        raise VerificationFailed(f"{source}: `{file.name}` {trouble}.", "Get the package again.")
    return descriptor


def _create(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)


def _copy_small(source: Path, file: Listed, made: Path) -> None:
    """Copy and digest a file of one piece; it is open for no longer than that."""
    with contextlib.ExitStack() as stack:
        reading = _open(source, file)
        stack.callback(os.close, reading)
        writing = _create(made)
        stack.callback(os.close, writing)
        _check(file.name, reading, 0, file.bytes, file.sha256, writing)


def _reserve(descriptor: int, size: int) -> None:
    """Give a new file its blocks at once: a full disk is noticed before the work, and writing costs less."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def _clone(reading: int, writing: int, size: int) -> bool:
    """Let the empty file share the other's blocks as they are now; says whether the file systems can."""
    try:
        import fcntl

        fcntl.ioctl(writing, FICLONE, reading)
    except (ImportError, OSError):  # no such call on this system, or not between these file systems
        return False
    os.ftruncate(writing, size)  # the other may have grown since it was opened
    return True


def _check(name: str, reading: int, start: int, end: int, digest: str, writing: int | None = None) -> None:
    """Digest the bytes [start, end) of a file, and write what was digested to the other file if there is one."""
    buffer = _buffer()
    hasher = hashlib.sha256()
    position = start
    while position < end:
        count = os.preadv(reading, [buffer[: min(STEP, end - position)]], position)
        if count == 0:
            break  # cut short while it was read: the digest will tell
        hasher.update(buffer[:count])
        if writing is not None:
            _write(writing, buffer[:count], position)
        position += count
    if position < end or hasher.hexdigest() != digest:
        raise VerificationFailed(
            f"`{name}` is not the file that was signed: bytes {start:,} to {end:,} differ.", "Get the package again."
        )


def _write(writing: int, data: memoryview, position: int) -> None:
    while data:
        count = os.pwrite(writing, data, position)
        data, position = data[count:], position + count


_local = threading.local()


def _buffer() -> memoryview:
    found: memoryview | None = getattr(_local, "buffer", None)
    if found is None:
        found = _local.buffer = memoryview(bytearray(STEP))
    return found
