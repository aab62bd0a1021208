"""A strict reader of safetensors headers.

The common library refuses overlaps, holes and overflows, and takes a header with duplicate keys; another reader may then see
another tensor under the same name. This one refuses both, and names the byte.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from stillroom.core.errors import InspectionRefused
from stillroom.core.strict_json import parse_json

LARGEST_HEADER = 100_000_000
"""Bytes, as in the format's own library."""
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits of every type that the format knows."""


@dataclass(frozen=True)
class SafetensorsHeader:
    """What a header says: type and shape of every tensor, its free metadata, and where in the file each tensor begins."""

    tensors: dict[str, tuple[str, tuple[int, ...]]]
    metadata: dict[str, str]
    offsets: dict[str, int]


def read_safetensors(path: Path) -> SafetensorsHeader:
    """Check a whole file's header. Errors as in :func:`parse_safetensors`."""
    with open(path, "rb") as stream:
        return parse_safetensors(stream, path.stat().st_size, str(path))


def parse_safetensors(stream: BinaryIO, size: int, name: str) -> SafetensorsHeader:
    """Check a header.

    Args:
        stream: The file from its beginning.
        size: Its bytes.
        name: What messages call it.

    Raises:
        InspectionRefused: Says what is wrong and at which byte.
    """
    start = stream.read(8)
    if len(start) < 8:
        raise _refused(name, "too short for a safetensors file", 0)
    length = int.from_bytes(start, "little")
    if length > LARGEST_HEADER:
        raise _refused(name, f"the header would have {length:,} bytes, more than {LARGEST_HEADER:,}", 0)
    if 8 + length > size:
        raise _refused(name, f"the header would end at byte {8 + length:,}, behind the file's end at {size:,}", 0)
    data = stream.read(length)
    if not data.startswith(b"{"):
        raise _refused(name, "the header does not begin with a brace", 8)
    header = parse_json(data, name, 8)
    if not isinstance(header, dict):
        raise _refused(name, "the header is not a mapping", 8)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _refused(name, "`__metadata__` is not a mapping of texts", 8)
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for key, entry in header.items():
        dtype, shape, begin, end = _entry(name, key, entry)
        spans.append((begin, end, key))
        tensors[key] = (dtype, shape)
    _require_exact(name, spans, 8 + length, size)
    return SafetensorsHeader(tensors, metadata, {key: 8 + length + begin for begin, _, key in spans})


def _entry(name: str, key: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    shown = repr(key[:80])
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _refused(name, f"tensor {shown} needs exactly dtype, shape and data_offsets", 8)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _refused(name, f"tensor {shown} has the unknown type {str(dtype)[:40]!r}", 8)
    if not isinstance(shape, list) or len(shape) > 64 or not all(_is_size(item) for item in shape):
        raise _refused(name, f"tensor {shown} has a shape that is none", 8)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(item) for item in offsets):
        raise _refused(name, f"tensor {shown} has offsets that are none", 8)
    bits = BITS[dtype]
    for item in shape:
        bits *= item
        if bits >= 1 << 66:
            raise _refused(name, f"the size of tensor {shown} overflows", 8)
    begin, end = offsets
    if bits % 8 or end - begin != bits // 8:
        raise _refused(name, f"tensor {shown} takes {bits / 8:g} bytes and its offsets span {end - begin}", 8)
    return dtype, tuple(shape), begin, end


def _require_exact(name: str, spans: list[tuple[int, int, str]], start: int, size: int) -> None:
    """The tensors are one behind the other, from the header's end to the file's end."""
    at = 0
    for begin, end, key in sorted(spans):
        if begin != at:
            what = "overlaps another one" if begin < at else "leaves a hole before it"
            raise _refused(name, f"tensor {key[:80]!r} {what}", start + begin)
        at = end
    if start + at != size:
        what = (
            "the tensors end behind the file's end" if start + at > size else "there are bytes behind the last tensor"
        )
        raise _refused(name, what, min(start + at, size))


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _refused(name: str, what: str, offset: int) -> InspectionRefused:
    return InspectionRefused(f"{name}: {what} (byte {offset:,}).", "Get the whole file from its owner again.")


def parse_bytes(data: bytes, name: str = "safetensors") -> SafetensorsHeader:
    """Check a file in memory."""
    return parse_safetensors(io.BytesIO(data), len(data), name)
