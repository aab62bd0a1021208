"""What an endpoint answered and the cache does not hold yet: nothing that was received is asked for twice.

An answer is written here as soon as it came. It goes into the cache once the model's fingerprint was checked after it.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from stillroom.core import files
from stillroom.signals.cache.observed import Observed
from stillroom.signals.signal import CoarseSignal

NAME = "received.bin"
"""In a run's folder."""
HEAD = struct.Struct("<32s32sII")
"""Digest of the teacher, address of the piece, positions, and bytes of the record. Behind it: 8 bytes of SHA-256 over all."""
SUM = 8


class Received:
    """A file of answers, one after the other; a kill can only cut off the last. Safe for threads.

    Answers of another teacher, or of other settings, may be there too: they are left out, and kept until they are asked for.

    Args:
        path: The file.
        codec: Packs signals.
        teacher: Digest of what is captured, 64 hexadecimal digits: answers of another are left out.
    """

    def __init__(self, path: Path, codec: Observed, teacher: str) -> None:
        self.path = path
        self._codec = codec
        self._teacher = bytes.fromhex(teacher)
        self._lock = threading.Lock()

    def add(self, address: str, signal: CoarseSignal) -> None:
        """Keep an answer."""
        record = self._codec.pack(signal)
        data = HEAD.pack(self._teacher, bytes.fromhex(address), len(signal), len(record)) + record
        data += hashlib.sha256(data).digest()[:SUM]
        with self._lock:
            files.append(self.path, data)

    def read(self) -> dict[str, CoarseSignal]:
        """What was kept, by address. What a kill cut off is cut off the file, too."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        found: dict[str, CoarseSignal] = {}
        at = 0
        for record in _records(data):
            teacher, address, positions, length = HEAD.unpack_from(record)
            if teacher == self._teacher:
                found[address.hex()] = self._codec.decode([record[HEAD.size : HEAD.size + length]], [positions])
            at += len(record)
        if at < len(data):
            with self.path.open("rb+") as file:
                file.truncate(at)
        return found

    def clear(self) -> None:
        """Forget what is in the cache now, or is not to be trusted; what is of another teacher or other settings stays."""
        with self._lock:
            self._take(self.path)

    def take_over(self, path: Path) -> None:
        """Take answers of the same teacher and settings out of a file that has another teacher's name.

        Args:
            path: The file.
        """
        with self._lock:
            self._take(path, self.path)

    def _take(self, path: Path, target: Path | None = None) -> None:
        """Take the records of this teacher out of a file, and put them into another one if it is given."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return
        mine: list[bytes] = []
        others: list[bytes] = []
        for record in _records(data):
            (mine if record.startswith(self._teacher) else others).append(record)
        if mine and target is not None:
            # First there, then no more here: after a kill between the two they are in both, which are read as one.
            files.append(target, b"".join(mine))
        if not others:
            path.unlink()
        elif mine:
            # As before, only its owner may read it.
            with files.replacing(path) as beside:
                files.append(beside, b"".join(others))


def _records(data: bytes) -> Iterator[bytes]:
    """The whole records of a file, up to the first that is cut off or damaged."""
    at = 0
    while at + HEAD.size + SUM <= len(data):
        *_, length = HEAD.unpack_from(data, at)
        end = at + HEAD.size + length
        if end + SUM > len(data) or hashlib.sha256(data[at:end]).digest()[:SUM] != data[end : end + SUM]:
            return
        yield data[at : end + SUM]
        at = end + SUM
