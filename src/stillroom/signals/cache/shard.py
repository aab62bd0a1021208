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
from stillroom.signals.cache.manifest import ShardEntry


@dataclass(frozen=True)
class Encoded:
    """One encoded sequence: its address, number of positions, the teacher's entropy over them (nats), and its bytes."""

    digest: str
    positions: int
    entropy: float
    data: bytes


def write_shard(folder: Path, number: int, sequences: list[Encoded]) -> ShardEntry:
    """Write ``shard-NNNNNN.safetensors``, atomically: digests [S, 32], positions [S], entropy [S], offsets [S + 1], payload."""
    from safetensors.numpy import save_file

    name = f"shard-{number:06}.safetensors"
    sizes = np.asarray([0, *(len(sequence.data) for sequence in sequences)], dtype=np.int64)
    tensors: dict[str, np.ndarray] = {
        "digests": np.frombuffer(b"".join(bytes.fromhex(s.digest) for s in sequences), np.uint8).reshape(-1, 32),
        "positions": np.asarray([s.positions for s in sequences], dtype=np.int32),
        "entropy": np.asarray([s.entropy for s in sequences], dtype=np.float32),
        "offsets": np.cumsum(sizes),
        "payload": np.frombuffer(b"".join(s.data for s in sequences), np.uint8),
    }
    path = folder / name
    try:
        with files.replacing(path) as beside:
            save_file(tensors, beside)
    except Exception as error:
        known = translate(error, str(path))
        if known is None:
            raise
        raise known from None
    return ShardEntry(
        name=name,
        bytes=path.stat().st_size,
        sha256=files.digest_file(path),
        sequences=len(sequences),
        positions=sum(sequence.positions for sequence in sequences),
    )


class ShardReader:
    """Random access to one shard by memory map."""

    def __init__(self, folder: Path, entry: ShardEntry) -> None:
        from safetensors import SafetensorError

        self.path = folder / entry.name
        try:
            size = self.path.stat().st_size
            if size != entry.bytes:
                raise CacheDamaged(
                    f"{self.path} has {size} bytes, and the manifest says {entry.bytes}.", _verify(folder)
                )
            stored = _open(self.path)
            self.digests = [bytes(row).hex() for row in stored.get_tensor("digests")]
            self.positions = stored.get_tensor("positions")
            self.entropy = stored.get_tensor("entropy")
            self._offsets = stored.get_tensor("offsets")
            self._payload = stored.get_slice("payload")
        except FileNotFoundError:
            raise CacheDamaged(f"{self.path} is missing.", _verify(folder)) from None
        except (SafetensorError, ValueError, KeyError) as error:
            raise CacheDamaged(f"{self.path} is damaged: {error}.", _verify(folder)) from None

    def data(self, index: int) -> bytes:
        """The bytes of one sequence."""
        part: np.ndarray = self._payload[int(self._offsets[index]) : int(self._offsets[index + 1])]
        return part.tobytes()


def _open(path: Path) -> Any:
    from safetensors import safe_open

    return safe_open(path, framework="numpy")


def _verify(folder: Path) -> str:
    return f"Run `stillroom cache verify {folder}`, then the same command again: what is damaged is captured again."
