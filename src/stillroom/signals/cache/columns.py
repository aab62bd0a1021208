"""Columns of small integers to bytes and back: each byte of a column is packed by itself.

Bytes of equal significance have a distribution of their own (the high byte of a token id is far from uniform), so that the
entropy coder of Zstandard shortens each of them to about its entropy. A column that would not shrink is stored as it is.
"""

from __future__ import annotations

import struct

import numpy as np
import zstandard

from stillroom.core.errors import CacheDamaged

LEVEL = 3
RAW, PACKED = 0, 1


def pack_columns(columns: list[tuple[np.ndarray, int]]) -> bytes:
    """Pack columns, each given with its width in bytes (1 to 4, little-endian).

    Layout, for every byte of every column in turn: one byte for the method (0 raw, 1 Zstandard frame), the stored length
    as an unsigned 32-bit little-endian number, and the stored bytes.
    """
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False, write_content_size=True)
    parts: list[bytes] = []
    for column, width in columns:
        planes = column.astype("<u4").view(np.uint8).reshape(-1, 4)
        for plane in range(width):
            raw = planes[:, plane].tobytes()
            packed = compressor.compress(raw) if raw else b""
            if raw and len(packed) < len(raw):
                parts += [struct.pack("<BI", PACKED, len(packed)), packed]
            else:
                parts += [struct.pack("<BI", RAW, len(raw)), raw]
    return b"".join(parts)


class ColumnReader:
    """Reads columns in the order in which they were packed.

    Raises:
        CacheDamaged: Bytes are missing, or are not what the layout says.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._decompressor = zstandard.ZstdDecompressor()

    def column(self, count: int, width: int) -> np.ndarray:
        """A column of ``count`` numbers of ``width`` bytes, as int64."""
        values = np.zeros(count, dtype=np.int64)
        for plane in range(width):
            values |= self._plane(count).astype(np.int64) << (8 * plane)
        return values

    def _plane(self, count: int) -> np.ndarray:
        try:
            method, length = struct.unpack_from("<BI", self._data, self._at)
            stored = self._data[self._at + 5 : self._at + 5 + length]
            self._at += 5 + length
            if len(stored) != length or method not in (RAW, PACKED):
                raise CacheDamaged("A signal of the cache is cut off.", "Run `stillroom cache verify` on its folder.")
            raw = self._decompressor.decompress(stored, max_output_size=count) if method == PACKED else stored
        except (struct.error, zstandard.ZstdError):
            raise CacheDamaged(
                "A signal of the cache cannot be read.", "Run `stillroom cache verify` on its folder."
            ) from None
        if len(raw) != count:
            raise CacheDamaged(
                "A signal of the cache has the wrong length.", "Run `stillroom cache verify` on its folder."
            )
        return np.frombuffer(raw, dtype=np.uint8)


def id_width(vocabulary_size: int) -> int:
    """Bytes of an id."""
    return max(1, (max(1, vocabulary_size - 1).bit_length() + 7) // 8)
