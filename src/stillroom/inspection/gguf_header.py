"""A bounded reader of GGUF headers (versions 2 and 3).

It keeps short values only; arrays are walked over and counted. Every count and length is held against what is left of the
file before anything is read, so that a header can ask for neither memory nor time that its file does not have.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from stillroom.core.errors import InspectionRefused

MAGIC = b"GGUF"
MOST_KEYS = 65_536
MOST_TENSORS = 262_144
LONGEST_KEY = 65_535
LONGEST_NAME = 63
"""Bytes of a tensor's name: llama.cpp has space for 64 with the closing zero."""
KEPT_BYTES = 1 << 20
"""A longer text is walked over and not kept."""
DEEPEST = 4
"""Arrays inside arrays."""
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_ARRAY_HEAD = 12
"""Bytes of an array in front of its entries: their type and their count."""
# Values and bytes of a block of each type (ggml.h; the same numbers as gguf.constants.GGML_QUANT_SIZES, under test).
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36),
    41: (128, 18),
}  # fmt: skip


@dataclass
class GgufHeader:
    """What a header says.

    Attributes:
        metadata: Scalars and short texts by key; an array is given as ``{"type", "count", "offset"}``.
        tensors: Name to (shape, type number, bytes).
        offsets: Name to where a tensor begins, counted from ``data_offset``.
        data_offset: Where the tensors begin.
    """

    version: int
    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, tuple[tuple[int, ...], int, int]] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    data_offset: int = 0


class _Reader:
    """Reads forward, and never past the end."""

    def __init__(self, stream: BinaryIO, size: int, name: str) -> None:
        self.stream, self.size, self.name = stream, size, name
        self.at = 0

    def take(self, count: int, what: str) -> bytes:
        self.require(count, what)
        data = self.stream.read(count)
        if len(data) != count:
            raise self.refused(f"the file ends inside {what}")
        self.at += count
        return data

    def skip(self, count: int, what: str) -> None:
        self.require(count, what)
        self.stream.seek(count, io.SEEK_CUR)
        self.at += count

    def require(self, count: int, what: str) -> None:
        if count > self.size - self.at:
            raise self.refused(f"{what} would take {count:,} bytes, and the file has {self.size - self.at:,} left")

    def number(self, form: str, what: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def refused(self, what: str, at: int | None = None) -> InspectionRefused:
        return InspectionRefused(
            f"{self.name}: {what} (byte {self.at if at is None else at:,}).", "Get the whole file from its owner again."
        )


def read_gguf(path: Path) -> GgufHeader:
    """Check a whole file's header. Errors as in :func:`parse_gguf`."""
    with open(path, "rb") as stream:
        return parse_gguf(stream, path.stat().st_size, str(path))


def read_texts(stream: BinaryIO, array: dict[str, Any]) -> Iterator[str]:
    """The texts of an array that a checked header stands for."""
    stream.seek(array["offset"] + _ARRAY_HEAD)
    for _ in range(array["count"]):
        yield stream.read(int.from_bytes(stream.read(8), "little")).decode(errors="replace")


def read_numbers(stream: BinaryIO, array: dict[str, Any]) -> list[int]:
    """The 32-bit integers of an array that a checked header stands for."""
    stream.seek(array["offset"] + _ARRAY_HEAD)
    return list(struct.unpack(f"<{array['count']}i", stream.read(4 * array["count"])))


def parse_bytes(data: bytes, name: str = "gguf") -> GgufHeader:
    """Check a file in memory."""
    return parse_gguf(io.BytesIO(data), len(data), name)


def parse_gguf(stream: BinaryIO, size: int, name: str) -> GgufHeader:
    """Check a header.

    Args:
        stream: The file from its beginning.
        size: Its bytes.
        name: What messages call it.

    Raises:
        InspectionRefused: Says what is wrong and at which byte.
    """
    reader = _Reader(stream, size, name)
    if size < 4 or reader.take(4, "the magic") != MAGIC:
        raise InspectionRefused(f"{name} does not begin as a GGUF file does (byte 0).", "Get a whole GGUF file.")
    version = reader.number("<I", "the version")
    if version not in (2, 3):
        raise reader.refused(f"version {version} of the format is not known (2 and 3 are)", 4)
    tensors = reader.number("<Q", "the count of tensors")
    keys = reader.number("<Q", "the count of keys")
    if tensors > MOST_TENSORS:
        raise reader.refused(f"an absurd count of tensors: {tensors:,}", 8)
    if keys > MOST_KEYS:
        raise reader.refused(f"an absurd count of keys: {keys:,}", 16)
    header = GgufHeader(version)
    for _ in range(keys):
        _metadata(reader, header)
    spans = [_tensor(reader, header) for _ in range(tensors)]
    alignment = header.metadata.get("general.alignment", 32)
    if (
        not isinstance(alignment, int)
        or isinstance(alignment, bool)
        or not 0 < alignment <= 1 << 20
        or alignment & (alignment - 1)
    ):
        raise reader.refused(f"an alignment of {str(alignment)[:40]}")
    header.data_offset = -(-reader.at // alignment) * alignment
    _require_apart(reader, header.data_offset, alignment, spans)
    return header


def _new_name(reader: _Reader, kind: Literal["key", "tensor"], longest: int, known: Container[str]) -> str:
    """The name of the next key or tensor, which no earlier one may have."""
    at, what = reader.at, "a key" if kind == "key" else "a tensor's name"
    length = reader.number("<Q", f"the length of {what}")
    if length > longest:
        raise reader.refused(f"{what} of {length:,} bytes", at)
    name = _text(reader, reader.take(length, what), at)
    if name in known:
        raise reader.refused(f"the {kind} {name[:80]!r} is there twice; readers would disagree", at)
    return name


def _metadata(reader: _Reader, header: GgufHeader) -> None:
    key = _new_name(reader, "key", LONGEST_KEY, header.metadata)
    kind = reader.number("<I", f"the type of {key[:80]!r}")
    header.metadata[key] = _value(reader, kind, f"the value of {key[:80]!r}", 0)


def _value(reader: _Reader, kind: int, what: str, depth: int) -> Any:
    if kind in _SCALARS:
        if kind == 7:
            return reader.take(1, what) != b"\0"
        return reader.number(_SCALARS[kind], what)
    at = reader.at
    if kind == _STRING:
        length = reader.number("<Q", what)
        reader.require(length, what)
        if length > KEPT_BYTES:
            reader.skip(length, what)
            return {"type": _STRING, "count": length, "offset": at}
        return _text(reader, reader.take(length, what), at)
    if kind != _ARRAY:
        raise reader.refused(f"{what} has the unknown type {kind}", at - 4)
    inner = reader.number("<I", what)
    count = reader.number("<Q", what)
    if inner in _SCALARS:
        _require_count(reader, count, struct.calcsize(_SCALARS[inner]), what, at)
        reader.skip(count * struct.calcsize(_SCALARS[inner]), what)
    elif inner == _STRING:
        _require_count(reader, count, 8, what, at)
        _skip_texts(reader, count, what)
    elif inner == _ARRAY:
        if depth >= DEEPEST:
            raise reader.refused(f"{what}: arrays nested more than {DEEPEST} levels deep", at)
        _require_count(reader, count, 12, what, at)
        for _ in range(count):
            _value(reader, _ARRAY, what, depth + 1)
    else:
        raise reader.refused(f"{what} is an array of the unknown type {inner}", at)
    return {"type": inner, "count": count, "offset": at}


def _require_count(reader: _Reader, count: int, each: int, what: str, at: int) -> None:
    if count * each > reader.size - reader.at:
        raise reader.refused(
            f"{what}: {count:,} entries do not fit into the {reader.size - reader.at:,} bytes left", at
        )


def _skip_texts(reader: _Reader, count: int, what: str) -> None:
    """Walk over texts; written plainly, for vocabularies have hundreds of thousands."""
    read, size = reader.stream.read, reader.size
    at = reader.at
    for _ in range(count):
        length = int.from_bytes(read(8), "little")
        at += 8 + length
        if at > size:
            reader.at = at - length - 8
            raise reader.refused(
                f"{what}: a text of {length:,} bytes, and the file has {max(0, size - reader.at - 8):,} left"
            )
        if length <= 4096:
            read(length)
        else:
            reader.stream.seek(length, io.SEEK_CUR)
    reader.at = at


def _tensor(reader: _Reader, header: GgufHeader) -> tuple[int, int, str, int]:
    """One entry of the list of tensors: offset, bytes, name, and where the entry is."""
    at = reader.at
    name = _new_name(reader, "tensor", LONGEST_NAME, header.tensors)
    dimensions = reader.number("<I", f"the shape of {name!r}")
    if not 1 <= dimensions <= 4:
        raise reader.refused(f"the tensor {name!r} has {dimensions} dimensions", at)
    shape = tuple(reader.number("<Q", f"the shape of {name!r}") for _ in range(dimensions))
    kind = reader.number("<I", f"the type of {name!r}")
    offset = reader.number("<Q", f"the offset of {name!r}")
    if kind not in BLOCKS:
        raise reader.refused(f"the tensor {name!r} has the unknown type {kind}", at)
    count = 1
    for item in shape:
        count *= item
        if count >= 1 << 60:
            raise reader.refused(f"the size of the tensor {name!r} overflows", at)
    block, bytes_ = BLOCKS[kind]
    if shape[0] % block:
        raise reader.refused(f"the tensor {name!r} has rows of {shape[0]}, which blocks of {block} do not fill", at)
    size = count // block * bytes_
    header.tensors[name] = (shape, kind, size)
    header.offsets[name] = offset
    return offset, size, name, at


def _require_apart(reader: _Reader, start: int, alignment: int, spans: list[tuple[int, int, str, int]]) -> None:
    """Every tensor is aligned, inside the file, and shares no byte with another."""
    end = 0
    for offset, size, name, at in sorted(spans):
        if offset % alignment:
            raise reader.refused(f"the tensor {name!r} begins at {offset:,}, which is not aligned to {alignment}", at)
        if offset < end:
            raise reader.refused(f"the tensor {name!r} overlaps another one", at)
        end = offset + size
        if start + end > reader.size:
            raise reader.refused(
                f"the tensor {name!r} would end at byte {start + end:,}, behind the file's end at {reader.size:,}", at
            )
    if spans and reader.size - start - end > alignment:
        raise reader.refused(f"{reader.size - start - end:,} bytes are behind the last tensor", start + end)


def _text(reader: _Reader, data: bytes, at: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise reader.refused("a text that is not UTF-8", at + 8 + error.start) from None
