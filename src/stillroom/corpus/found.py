"""The documents of a corpus while it is built: digests, sources and order, in about 60 bytes of memory per document."""

from __future__ import annotations

import array
import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

DIGEST = 32
"""Bytes of a digest."""
KEY = 16
"""Bytes of a document's sort key: the beginning of a SHA-256. No two documents are expected to share so many."""
_FIRST_SLOTS = 1 << 10


class Found:
    """Documents without duplicates, numbered in the order in which they were found.

    A dictionary of digests takes about 300 bytes per document. Here the digests are one after the other, and a hash table of
    their numbers (open addressing, linear probing, at most two thirds full) finds them.
    """

    def __init__(self) -> None:
        self._digests = bytearray()
        self._sources = array.array("i")
        # Number of a document plus one; 0 is an empty slot. The number of slots is a power of two.
        self._slots = array.array("I", bytes(4 * _FIRST_SLOTS))

    def __len__(self) -> int:
        return len(self._sources)

    def add(self, digest: str, source: int) -> bool:
        """Note a document.

        Args:
            digest: SHA-256 of its content, in hex.
            source: Index of the source that it is from.

        Returns:
            Whether it is new; its number is then the greatest one.
        """
        key = bytes.fromhex(digest)
        slot = self._slot(key)
        if self._slots[slot]:
            return False
        self._digests += key
        self._sources.append(source)
        self._slots[slot] = len(self)
        if 3 * len(self) > 2 * len(self._slots):
            self._grow()
        return True

    def digest(self, number: int) -> str:
        """The digest of a document, in hex."""
        return self._digests[DIGEST * number : DIGEST * (number + 1)].hex()

    def source(self, number: int) -> int:
        """Index of the source of a document."""
        return self._sources[number]

    @property
    def digests(self) -> Array:
        """All digests, [D, 32] uint8, where they are: nothing can be added while the array is in use."""
        return np.frombuffer(self._digests, np.uint8).reshape(len(self), DIGEST)

    def order(self, seed: int) -> Array:
        """Numbers of all documents in an order that depends on their content and the seed alone, [D] int64.

        They are sorted by SHA-256 of ``seed:digest``.
        """
        keys = np.zeros(len(self), f"S{KEY}")
        for number in range(len(self)):
            keys[number] = hashlib.sha256(f"{seed}:{self.digest(number)}".encode()).digest()[:KEY]
        found: Array = np.argsort(keys, kind="stable")
        return found

    def _slot(self, key: bytes) -> int:
        """Where a digest is in the table, or the empty slot where it belongs."""
        mask = len(self._slots) - 1
        slot = int.from_bytes(key[:8], "little") & mask
        while number := self._slots[slot]:
            if self._digests[DIGEST * (number - 1) : DIGEST * number] == key:
                break
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        """Twice as many slots."""
        slots = array.array("I", bytes(8 * len(self._slots)))
        mask = len(slots) - 1
        for number in range(len(self)):
            slot = int.from_bytes(self._digests[DIGEST * number : DIGEST * number + 8], "little") & mask
            while slots[slot]:
                slot = (slot + 1) & mask
            slots[slot] = number + 1
        self._slots = slots
