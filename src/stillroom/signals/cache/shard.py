"""One shard: a safetensors file of encoded sequences that any reader of safetensors can open.

Legend: S sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.core import files
from stillroom.core.errors import CacheDamaged, translate
from stillroom.signals.cache.manifest import FileEntry, ShardEntry


@dataclass(frozen=True)
class Encoded:
    """One encoded sequence: its address, number of positions, the teacher's entropy over them (nats), and its bytes."""

    digest: str
    positions: int
    entropy: float
    data: bytes


def shard_bytes(sequences: list[Encoded]) -> bytes:
    """A shard: digests [S, 32], positions [S], entropy [S], offsets [S + 1], payload."""
    from safetensors.numpy import save

    sizes = np.asarray([0, *(len(sequence.data) for sequence in sequences)], dtype=np.int64)
    return save(
        {
            "digests": np.frombuffer(b"".join(bytes.fromhex(s.digest) for s in sequences), np.uint8).reshape(-1, 32),
            "positions": np.asarray([s.positions for s in sequences], dtype=np.int32),
            "entropy": np.asarray([s.entropy for s in sequences], dtype=np.float32),
            "offsets": np.cumsum(sizes),
            "payload": np.frombuffer(b"".join(s.data for s in sequences), np.uint8),
        }
    )


def write_shard(folder: Path, number: int, sequences: list[Encoded]) -> ShardEntry:
    """Write ``shard-NNNNNN.safetensors``, atomically."""
    name = f"shard-{number:06}.safetensors"
    data = shard_bytes(sequences)
    try:
        files.write_bytes(folder / name, data)
    except Exception as error:
        known = translate(error, str(folder / name))
        if known is None:
            raise
        raise known from None
    return entry_of(name, data, sequences)


def entry_of(name: str, data: bytes, sequences: list[Encoded]) -> ShardEntry:
    """What a manifest says of a shard."""
    return ShardEntry(
        name=name,
        bytes=len(data),
        sha256=files.digest_bytes(data),
        sequences=len(sequences),
        positions=sum(sequence.positions for sequence in sequences),
    )


class ShardReader:
    """Random access to one shard by memory map.

    Args:
        path: The shard's file.
        entry: What the manifest says of it.
        where: The cache's folder or URL, for messages.

    Raises:
        CacheDamaged: It is missing or damaged.
    """

    def __init__(self, path: Path, entry: ShardEntry, where: str) -> None:
        from safetensors import SafetensorError

        self.path = path
        try:
            check_size(path, entry, where)
            stored = _open(self.path)
            self.digests: np.ndarray = stored.get_tensor("digests")
            self.positions: np.ndarray = stored.get_tensor("positions")
            self.entropy: np.ndarray = stored.get_tensor("entropy")
            self._offsets = stored.get_tensor("offsets")
            self._payload = stored.get_slice("payload")
            if self.digests.shape != (entry.sequences, 32) or len(self._offsets) != entry.sequences + 1:
                raise ValueError("its parts do not fit together")
        except (SafetensorError, ValueError, KeyError) as error:
            raise CacheDamaged(f"{self.path} is damaged: {error}.", verify_hint(where)) from None

    def data(self, index: int) -> bytes:
        """The bytes of one sequence."""
        part: np.ndarray = self._payload[int(self._offsets[index]) : int(self._offsets[index + 1])]
        return part.tobytes()


def check_size(path: Path, entry: FileEntry, where: str) -> None:
    """Whether a file of the cache is there and has its size.

    Raises:
        CacheDamaged: It is missing, or has another size.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise CacheDamaged(f"{path} is missing.", verify_hint(where)) from None
    if size != entry.bytes:
        raise CacheDamaged(f"{path} has {size} bytes, and the manifest says {entry.bytes}.", verify_hint(where))


def _open(path: Path) -> Any:
    from safetensors import safe_open

    return safe_open(path, framework="numpy")


def verify_hint(where: str) -> str:
    """What to do about a damaged cache."""
    return f"Run `stillroom cache verify {where}`, then the same command again: what is damaged is captured again."
