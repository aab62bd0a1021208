"""Looks over an ONNX graph: is it one, and are its weights where a reader may look?

ONNX is a protobuf message. A tensor may be in another file: its entry ``location`` is a path, and a reader that follows any
path opens any file of the machine. Here it has to be a plain name beside the graph, and its bytes have to be there. Only
the messages on the way to tensors are entered (field numbers from ``onnx.proto``); everything else is stepped over.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from stillroom.core.errors import InspectionRefused

MOST_FIELDS = 5_000_000
"""Fields that are looked at: a graph of a hundred layers has some ten thousand."""
LONGEST = 1024
"""Bytes of a word that says where a tensor is stored."""
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_GRAPH = 7
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}")


def read_onnx(path: Path) -> None:
    """Refuse what is not an ONNX graph, or one whose weights are elsewhere than beside it.

    Raises:
        InspectionRefused: Says what, and the byte.
    """
    if path.stat().st_size == 0:
        raise InspectionRefused(f"{path}: empty, not an ONNX graph.", "Get the file again.")
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _Look(path, data).all()


def parse_bytes(data: bytes, path: Path = Path("model.onnx")) -> None:
    """The same for bytes in memory, as if they were the file at ``path``. Errors as in :func:`read_onnx`."""
    _Look(path, data).all()


class _Look:
    """One look over a graph; `data` is never held as a whole."""

    def __init__(self, path: Path, data: mmap.mmap | bytes) -> None:
        self.path = path
        self.data = data
        self.left = MOST_FIELDS

    def all(self) -> None:
        """Every message on the way to a tensor. A list in place of recursion: graphs are in graphs."""
        waiting = [("model", 0, len(self.data))]
        graphs = 0
        while waiting:
            kind, start, end = waiting.pop()
            external: dict[str, str] = {}
            for number, first, last in self._fields(start, end):
                inside = _INSIDE[kind].get(number)
                if inside == "entry":
                    self._entry(first, last, external)
                elif inside is not None:
                    waiting.append((inside, first, last))
                graphs += kind == "model" and number == _GRAPH
            if external:
                self._require_beside(external, start)
        if graphs != 1:
            raise self._refusal("not an ONNX graph", 0)

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Number, first and last byte (exclusive) of every length-delimited field of a message."""
        position = start
        while position < end:
            self.left -= 1
            if self.left < 0:
                raise self._refusal(f"more than {MOST_FIELDS:,} fields", position)
            key, after = self._varint(position, end)
            number, wire = key >> 3, key & 7
            if wire == 2:
                length, after = self._varint(after, end)
                if after + length > end:
                    raise self._refusal("a field that goes past its message's end", position)
                yield number, after, after + length
                position = after + length
            elif wire == 0:
                _, position = self._varint(after, end)
            elif wire in (1, 5):
                position = after + (8 if wire == 1 else 4)
            else:
                raise self._refusal("not an ONNX graph", position)
            if number == 0 or position > end:
                raise self._refusal("not an ONNX graph", position)

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while position < end and shift < 70:
            byte = self.data[position]
            value |= (byte & 127) << shift
            position, shift = position + 1, shift + 7
            if byte < 128:
                return value, position
        raise self._refusal("a number without an end", position)

    def _entry(self, start: int, end: int, found: dict[str, str]) -> None:
        """One key and its value of where a tensor is stored; readers differ on repeated ones."""
        words: dict[int, str] = {}
        for number, first, last in self._fields(start, end):
            if number in words or last - first > LONGEST:
                raise self._refusal("says twice, or endlessly, where a tensor is stored", first)
            words[number] = self.data[first:last].decode("utf-8", "replace")
        key = words.get(1, "")
        if key in found:
            raise self._refusal("says twice where a tensor is stored", start)
        found[key] = words.get(2, "")

    def _require_beside(self, external: dict[str, str], start: int) -> None:
        location = external.get("location", "")
        if not _PLAIN.fullmatch(location):
            raise self._refusal(f"its weights are at {location[:100]!r}, which is no plain name beside it", start)
        file = self.path.parent / location
        if file.is_symlink() or not file.is_file():
            raise self._refusal(f"its weights are in `{location[:100]}`, which is not beside it", start)
        numbers = [external.get(key, "0") for key in ("offset", "length")]
        if not all(re.fullmatch(r"[0-9]{1,18}", number) for number in numbers):
            raise self._refusal("a tensor's place is no number", start)
        if sum(int(number) for number in numbers) > file.stat().st_size:
            raise self._refusal(f"a tensor goes past the end of `{location[:100]}`", start)

    def _refusal(self, what: str, position: int) -> InspectionRefused:
        return InspectionRefused(f"{self.path}: {what} (byte {position:,}).", "Do not use this model.")
