"""Columns in a safetensors file: written without holding them, and read where they are, by mapping the file into memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stillroom.core import files

Array = npt.NDArray[Any]

CHUNK = 1 << 20
"""Numbers that are converted and written at a time."""
_NAMES = {"uint8": "U8", "int32": "I32", "uint32": "U32", "int64": "I64"}
_TYPES = {name: np.dtype(f"<{kind[0]}{int(name[1:]) // 8}") for kind, name in _NAMES.items()}


def save_columns(
    path: Path, columns: dict[str, tuple[type, tuple[int, ...], Iterable[Array]]], about: dict[str, str]
) -> None:
    """Write columns as safetensors, atomically; memory holds one chunk of a column.

    Args:
        path: The file.
        columns: Of each its type, its shape, and its numbers in order, as arrays that are converted to the type.
        about: The file's metadata; give one entry at most, so that the same columns are the same bytes.

    Raises:
        ValueError: A column has more or fewer numbers than its shape says.
    """
    order = sorted(columns, key=lambda name: (-np.dtype(columns[name][0]).itemsize, name))
    header: dict[str, Any] = {"__metadata__": about}
    end = 0
    for name in order:
        kind, shape, _ = columns[name]
        begin, end = end, end + int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
        header[name] = {"dtype": _NAMES[np.dtype(kind).name], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with files.replacing(path) as beside, beside.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            kind, shape, parts = columns[name]
            written = 0
            for part in parts:
                data = np.ascontiguousarray(part, dtype=np.dtype(kind).newbyteorder("<"))
                file.write(data.data if data.size else b"")
                written += data.size
            if written != int(np.prod(shape, dtype=np.int64)):
                raise ValueError(f"the column {name} has {written} numbers, and its shape is {shape}")


def chunks(column: Array) -> Iterator[Array]:
    """A column, one stretch after the other."""
    for begin in range(0, len(column), CHUNK):
        yield column[begin : begin + CHUNK]


def map_columns(path: Path) -> dict[str, Array]:
    """The columns of a safetensors file, mapped: what is not looked at is not read.

    Raises:
        OSError: The file cannot be read.
        SafetensorError: It is none, or it is cut off.
        KeyError: A column is of a type that no such file has.
    """
    from safetensors import safe_open

    with safe_open(path, "np"):
        pass  # Its header is whole, and the file has as many bytes as that says.
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        kind, shape = _TYPES[entry["dtype"]], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        found[name] = np.memmap(path, kind, "r", 8 + size + begin, shape) if end > begin else np.zeros(shape, kind)
    return found
