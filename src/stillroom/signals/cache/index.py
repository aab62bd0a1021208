"""From a sequence's address to where its signal is stored: one table, sorted by address, mapped into memory.

A row has 48 bytes, and a look-up reads a few pages of the table, so that a cache of any size opens at once and takes no memory.
Small caches have no index file; the same table is then made of the shards' own lists.

Legend: S sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from stillroom.core import files
from stillroom.signals.cache.manifest import INDEX, IndexEntry

ROW = np.dtype([("digest", "V32"), ("shard", "<u4"), ("row", "<u4"), ("positions", "<u4"), ("entropy", "<f4")])
"""A sequence's address, the number of its shard in the manifest, its row there, its positions, the teacher's entropy (nats)."""
FROM_SEQUENCES = 65_536
"""A cache of at least so many sequences has its index in a file."""
_BLOCK = 65_536


class Index:
    """The table of a cache.

    Args:
        rows: [S] of :data:`ROW`, sorted by address, each address once.
    """

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows
        self._digests = rows["digest"]

    def __len__(self) -> int:
        return len(self.rows)

    def find(self, digest: str) -> np.void | None:
        """The row of an address, by binary search; None where there is none."""
        try:
            wanted = bytes.fromhex(digest)
        except ValueError:
            return None
        if len(wanted) != 32:
            return None
        low, high = 0, len(self.rows)
        while low < high:
            middle = (low + high) // 2
            if self._digests[middle].tobytes() < wanted:
                low = middle + 1
            else:
                high = middle
        if low < len(self.rows) and self._digests[low].tobytes() == wanted:
            found: np.void = self.rows[low]
            return found
        return None

    def digests(self) -> Iterator[str]:
        """All addresses, sorted."""
        for start in range(0, len(self.rows), _BLOCK):
            for digest in self._digests[start : start + _BLOCK]:
                yield digest.tobytes().hex()

    @property
    def positions(self) -> int:
        """Positions of all sequences."""
        return int(self.rows["positions"].sum(dtype=np.int64))

    @classmethod
    def of_shards(cls, shards: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Index:
        """The table of shards, given in the manifest's order as digests [S, 32], positions [S], and entropy [S].

        Where an address is in several shards, the first one counts.
        """
        parts = [np.zeros(0, ROW)]
        for number, (digests, positions, entropy) in enumerate(shards):
            rows = np.zeros(len(digests), ROW)
            rows["digest"] = np.ascontiguousarray(digests).view("V32").reshape(-1)
            rows["shard"], rows["row"] = number, np.arange(len(digests))
            rows["positions"], rows["entropy"] = positions, entropy
            parts.append(rows)
        return cls(_sorted(np.concatenate(parts)))

    def save(self, folder: Path) -> IndexEntry:
        """Write ``index.bin``, atomically."""
        with files.replacing(folder / INDEX) as beside:
            self.rows.tofile(beside)
        return self.entry(files.digest_file(folder / INDEX))

    def entry(self, sha256: str) -> IndexEntry:
        """What a manifest says of the table's file."""
        return IndexEntry(bytes=self.rows.nbytes, sha256=sha256, sequences=len(self), positions=self.positions)

    @classmethod
    def open(cls, path: Path) -> Index:
        """Map what :meth:`save` wrote into memory."""
        return cls(np.memmap(path, dtype=ROW, mode="r"))


def _sorted(rows: np.ndarray) -> np.ndarray:
    """Rows by address, each address once: the first one."""
    # Big-endian numbers sort as their bytes do; the key is not unique only where an address is there twice.
    words = np.ascontiguousarray(rows["digest"]).view(">u8").reshape(-1, 4)
    order = np.lexsort((words[:, 3], words[:, 2], words[:, 1], words[:, 0]))
    rows, words = rows[order], words[order]
    first = np.ones(len(rows), dtype=bool)
    first[1:] = (words[1:] != words[:-1]).any(axis=1)
    found: np.ndarray = rows[first]
    return found
