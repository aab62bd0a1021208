"""Copies a package's files to a private place and digests what it copies, on all cores. Knows nothing of signatures.

Every byte is read once; what is digested is what is written, so nothing can change between the check and the use. Where the
file system can share blocks between two files (Btrfs, XFS), the private copy is such a clone and costs nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

from stillroom.errors import VerificationFailed
from stillroom.package.manifest import CHUNK, Listed, Manifest

BUFFER = 256 << 10
"""Bytes between reading, digesting and writing: they stay in a core's own cache."""
_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)


def copy_verified(source: Path, manifest: Manifest, target: Path, workers: int | None = None) -> None:
    """Copy exactly the listed files into ``target`` and check each on the way; the copy is read-only.

    Args:
        source: The package's folder, whose content may change at any moment.
        manifest: The signed list.
        target: An empty folder that only this user may enter.
        workers: Threads; one a core without it.

    Raises:
        VerificationFailed: Names the file, and the piece of it, that is not what was signed.
    """
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(workers or os.cpu_count()))
        tasks: list[Future[None]] = []
        # Largest first: the last pieces to finish are then small ones.
        for file in sorted(manifest.files, key=lambda entry: -entry.bytes):
            made = target / file.name
            made.parent.mkdir(parents=True, exist_ok=True)
            reading = stack.enter_context(_opened(source, file))
            writing = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            stack.callback(os.close, writing)
            cloned = _clone(reading, writing, file)
            digests = file.chunks or (file.sha256,)
            span = CHUNK if file.chunks else file.bytes
            for index, digest in enumerate(digests):
                start = index * span
                end = min(start + span, file.bytes)
                tasks.append(pool.submit(_copy, file.name, reading, writing, start, end, digest, cloned))
        done, rest = wait(tasks, return_when=FIRST_EXCEPTION)
        for task in rest:
            task.cancel()
        for task in done:
            task.result()
    for path in sorted(target.rglob("*"), reverse=True):
        path.chmod(0o500 if path.is_dir() else 0o400)


@contextlib.contextmanager
def _opened(source: Path, file: Listed) -> Iterator[int]:
    """Open a listed file without following a link at any step of its name."""
    folders: list[int] = []
    descriptor = -1
    no_follow = getattr(os, "O_NOFOLLOW", 0)
    try:
        *parts, last = file.name.split("/")
        if os.open in os.supports_dir_fd:
            folders.append(os.open(source, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)))
            for part in parts:
                folders.append(
                    os.open(part, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | no_follow, dir_fd=folders[-1])
                )
            # Without O_NONBLOCK a pipe in a file's place would hold us for ever.
            descriptor = os.open(last, os.O_RDONLY | no_follow | os.O_NONBLOCK, dir_fd=folders[-1])
        else:
            descriptor = os.open(source / file.name, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise VerificationFailed(f"{source}: `{file.name}` is not an ordinary file.", "Get the package again.")
        if facts.st_size != file.bytes:
            raise VerificationFailed(
                f"{source}: `{file.name}` has {facts.st_size:,} bytes; {file.bytes:,} were signed.",
                "Get the package again.",
            )
        yield descriptor
    except OSError as error:
        raise VerificationFailed(
            f"{source}: `{file.name}` cannot be opened as the file that was signed: {error.strerror}.",
            "It may have been replaced by a link; get the package again.",
        ) from None
    finally:
        for opened in (descriptor, *folders):
            if opened >= 0:
                os.close(opened)


def _clone(reading: int, writing: int, file: Listed) -> bool:
    """Share the blocks of the source, where the file system can."""
    if not file.chunks or os.name != "posix":
        return False
    try:
        import fcntl

        fcntl.ioctl(writing, _FICLONE, reading)
        if os.fstat(writing).st_size == file.bytes:
            return True
        os.ftruncate(writing, 0)
    except OSError:
        pass
    return False


def _copy(name: str, reading: int, writing: int, start: int, end: int, digest: str, cloned: bool) -> None:
    """Copy and digest one piece, [start, end); what was cloned is digested where it is."""
    buffer = _buffer()
    hasher = hashlib.sha256()
    position = start
    while position < end:
        count = os.preadv(writing if cloned else reading, [buffer[: min(BUFFER, end - position)]], position)
        if count == 0:
            break
        hasher.update(buffer[:count])
        if not cloned:
            written = 0
            while written < count:
                written += os.pwrite(writing, buffer[written:count], position + written)
        position += count
    if position != end or hasher.hexdigest() != digest:
        raise VerificationFailed(
            f"`{name}` is not the file that was signed: bytes {start:,} to {end:,} differ.", "Get the package again."
        )


_local = threading.local()


def _buffer() -> memoryview:
    found: memoryview | None = getattr(_local, "buffer", None)
    if found is None:
        found = _local.buffer = memoryview(bytearray(BUFFER))
    return found
