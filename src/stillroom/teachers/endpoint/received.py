"""What an endpoint answered and the cache does not hold yet: nothing that was received is asked for twice.

An answer is written here as soon as it came. It goes into the cache once the model's fingerprint was checked after it.
"""

from __future__ import annotations

import hashlib
import struct
import threading
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
        while at + HEAD.size + SUM <= len(data):
            teacher, address, positions, length = HEAD.unpack_from(data, at)
            end = at + HEAD.size + length
            if end + SUM > len(data) or hashlib.sha256(data[at:end]).digest()[:SUM] != data[end : end + SUM]:
                break
            if teacher == self._teacher:
                found[address.hex()] = self._codec.decode([data[at + HEAD.size : end]], [positions])
            at = end + SUM
        if at < len(data):
            with self.path.open("rb+") as file:
                file.truncate(at)
        return found

    def clear(self) -> None:
        """Forget what is in the cache now, or is not to be trusted."""
        self.path.unlink(missing_ok=True)
