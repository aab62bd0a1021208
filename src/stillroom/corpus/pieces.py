"""The pieces of one split as they are stored: one after the other, without padding.

A file of version 2 takes 6 bytes per token, and holds what was counted once: address and targets of each piece, which pieces
share a row. It is mapped into memory, so that a process reads the rows that it works on and no others. Files of version 1 (9
bytes per token, nothing counted) are read the same way.

Legend: P pieces, T tokens of all pieces, D documents, R rows.
"""

from __future__ import annotations

import array
import functools
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stillroom.core.errors import CorpusError
from stillroom.corpus.columns import CHUNK, chunks, map_columns, save_columns
from stillroom.corpus.cutting import Piece
from stillroom.corpus.packing import packed_rows

FORMAT = "stillroom-pieces"
VERSION = 2
READ = (1, 2)
"""Versions that are read."""
PART = 1024
"""Pieces that are counted at a time."""
MANY_BYTES = 255
"""What a token of so many bytes or more has in its column; how many it has is in two columns of their own."""

Array = npt.NDArray[Any]


def piece_address(ids: Array, learned: Array) -> str:
    """SHA-256 of a piece: of its ids, uint32, and of whether each is to be learned, uint8. Its signal depends on no more."""
    return hashlib.sha256(
        np.ascontiguousarray(ids, dtype="<u4").tobytes() + np.ascontiguousarray(learned, dtype=np.uint8).tobytes()
    ).hexdigest()


@dataclass(frozen=True)
class Layout:
    """Which pieces share a row.

    Attributes:
        begins: Where each row begins in ``pieces``, and where the last one ends, [R + 1] int64.
        pieces: Indices of pieces, row by row, [P] int32.
    """

    begins: Array
    pieces: Array

    def __len__(self) -> int:
        return len(self.begins) - 1

    @classmethod
    def of(cls, rows: list[list[int]]) -> Layout:
        """From lists of indices."""
        begins = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)]).astype(np.int64)
        return cls(begins, np.fromiter((index for row in rows for index in row), np.int32, int(begins[-1])))

    def row(self, number: int) -> list[int]:
        """The pieces of a row."""
        found: list[int] = self.pieces[int(self.begins[number]) : int(self.begins[number + 1])].tolist()
        return found

    def rows(self) -> list[list[int]]:
        """The pieces of every row."""
        return [self.row(number) for number in range(len(self))]

    def sums(self, values: Array) -> Array:
        """The sum of what each row's pieces have, [R] int64."""
        summed = np.concatenate([[0], np.cumsum(values[self.pieces], dtype=np.int64)])
        found: Array = summed[self.begins[1:]] - summed[self.begins[:-1]]
        return found


@dataclass(frozen=True)
class Pieces:
    """One split of a corpus.

    Attributes:
        ids: Token ids, [T] uint32.
        learned: Whether a token is to be learned, [T] bool.
        bytes: UTF-8 bytes of text that a token stands for, [T] int32; 0 for what is repeated.
        offsets: Where each piece begins, and where the last one ends, [P + 1] int64.
        repeated: Tokens at the beginning of a piece that are repeated from before it, [P] int32.
        begins: Whether a piece holds all of its document up to its own tokens, [P] bool.
        documents: Index of each piece's document, [P] int32.
        document_sources: Index of the source of each document, [D] int32.
        length: Tokens of the rows that they were made for.
        overlap: Tokens that pieces repeat at least.
        cross_documents: Whether attention and targets of a row cross from piece to piece.
    """

    ids: Array
    learned: Array
    bytes: Array
    offsets: Array
    repeated: Array
    begins: Array
    documents: Array
    document_sources: Array
    length: int
    overlap: int
    cross_documents: bool = False

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> list[int]:
        """Tokens of each piece."""
        found: list[int] = np.diff(self.offsets).tolist()
        return found

    @property
    def tokens(self) -> int:
        """Tokens of text: every token of a document once."""
        return len(self.ids) - int(self.repeated.sum())

    @functools.cached_property
    def targets(self) -> Array:
        """Targets of each piece, [P] int64: what is to be learned but for a piece's first token."""
        found = np.zeros(len(self), np.int64)
        some = np.flatnonzero(np.diff(self.offsets) > 0)
        for first in range(0, len(some), PART):
            part = some[first : first + PART]
            begin, end = self.offsets[part[0]], self.offsets[part[-1] + 1]
            learned = np.asarray(self.learned[begin:end], dtype=np.int64)
            begins = self.offsets[part] - begin
            found[part] = np.add.reduceat(learned, begins) - learned[begins]
        return found

    @functools.cached_property
    def layout(self) -> Layout:
        """Which pieces share a row."""
        return Layout(*packed_rows(np.diff(self.offsets), self.length))

    @property
    def row_targets(self) -> int:
        """Targets of all rows: of all pieces, and where a row crosses from piece to piece of every first token but its own."""
        if not self.cross_documents:
            return int(self.targets.sum())
        firsts = self.offsets[self.layout.pieces[self.layout.begins[:-1]]]
        learned = sum(int(np.count_nonzero(part)) for part in chunks(self.learned))
        return learned - int(np.count_nonzero(self.learned[firsts]))

    @property
    def targets_without_context(self) -> int:
        """Targets with neither their document's beginning nor ``overlap`` tokens before their piece's own in sight."""
        return int(self.targets[~self.begins & (self.repeated < self.overlap)].sum())

    @functools.cached_property
    def address_bytes(self) -> Array:
        """The address of each piece, [P, 32] uint8: :func:`piece_address`."""
        found = np.empty((len(self), 32), np.uint8)
        for number in range(len(self)):
            there = slice(int(self.offsets[number]), int(self.offsets[number + 1]))
            address = piece_address(self.ids[there], self.learned[there])
            found[number] = np.frombuffer(bytes.fromhex(address), np.uint8)
        return found

    @functools.cached_property
    def addresses(self) -> list[str]:
        """The address of each piece, in hex."""
        return [row.tobytes().hex() for row in self.address_bytes]

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of :attr:`addresses`, of which only a part is in memory."""
        found = hashlib.sha256(b"[")
        for begin in range(0, len(self), PART):
            part = (f'"{row.tobytes().hex()}"' for row in self.address_bytes[begin : begin + PART])
            found.update((("," if begin else "") + ",".join(part)).encode())
        found.update(b"]")
        return found.hexdigest()

    def row_addresses(self) -> Iterator[Array]:
        """The address of each row where rows cross from piece to piece, [32] uint8: as of a sequence that has one address
        (:attr:`stillroom.corpus.sequences.Sequences.addresses`).
        """
        for number in range(len(self.layout)):
            ids, segments = np.zeros(self.length, "<i8"), np.full(self.length, -1, "<i4")
            learned = np.zeros(self.length, np.uint8)
            end = 0
            for piece in self.layout.row(number):
                there = slice(int(self.offsets[piece]), int(self.offsets[piece + 1]))
                begin, end = end, end + there.stop - there.start
                ids[begin:end], learned[begin:end] = self.ids[there], self.learned[there]
            segments[:end] = 0
            found = hashlib.sha256(ids.tobytes() + segments.tobytes() + learned.tobytes())
            yield np.frombuffer(found.digest(), np.uint8)

    def save(self, path: Path) -> None:
        """Write as safetensors, atomically; memory does not grow with the tokens."""
        about = {
            "version": VERSION,
            "length": self.length,
            "overlap": self.overlap,
            "cross_documents": self.cross_documents,
        }
        tokens, pieces, rows = len(self.ids), len(self), len(self.layout)
        many = np.concatenate(
            [np.zeros(0, np.int64)]
            + [number * CHUNK + np.flatnonzero(part >= MANY_BYTES) for number, part in enumerate(chunks(self.bytes))]
        )
        columns: dict[str, tuple[type, tuple[int, ...], Iterable[Array]]] = {
            "ids": (np.uint32, (tokens,), chunks(self.ids)),
            "learned": (np.uint8, (tokens,), chunks(self.learned)),
            "bytes": (np.uint8, (tokens,), (np.minimum(part, MANY_BYTES) for part in chunks(self.bytes))),
            "many_at": (np.int64, (len(many),), [many]),
            "many_bytes": (np.int32, (len(many),), [self.bytes[many]]),
            "offsets": (np.int64, (pieces + 1,), [self.offsets]),
            "repeated": (np.int32, (pieces,), [self.repeated]),
            "begins": (np.uint8, (pieces,), [self.begins]),
            "documents": (np.int32, (pieces,), [self.documents]),
            "targets": (np.int32, (pieces,), [self.targets]),
            "addresses": (np.uint8, (pieces, 32), [self.address_bytes]),
            "row_begins": (np.int64, (rows + 1,), [self.layout.begins]),
            "row_pieces": (np.int32, (pieces,), [self.layout.pieces]),
            "document_sources": (np.int32, (len(self.document_sources),), [self.document_sources]),
        }
        if self.cross_documents:
            # Without them every process would read the whole text to know which rows are its own.
            columns["row_addresses"] = (np.uint8, (rows, 32), self.row_addresses())
        save_columns(path, columns, {FORMAT: json.dumps(about)})

    @classmethod
    def load(cls, path: Path) -> Pieces:
        """Read what :meth:`save` wrote.

        Raises:
            CorpusError: The file is missing, damaged, or of a version that this program does not know.
        """
        return PieceFile(path).read()


class PieceFile:
    """A file of pieces, mapped into memory and read a few at a time.

    Args:
        path: What :meth:`Pieces.save` wrote.

    Raises:
        CorpusError: The file is missing, damaged, or of a version that this program does not know.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            with safe_open(path, "np") as file:
                about = json.loads((file.metadata() or {}).get(FORMAT, "{}"))
            self.version = about.get("version")
            if self.version not in READ:
                raise CorpusError(
                    f"{path} is no file of pieces of version {' or '.join(map(str, READ))}.",
                    "Use the version of Stillroom that wrote it, or remove its folder and run again.",
                )
            self.length = int(about["length"])
            self.overlap = int(about["overlap"])
            self.cross_documents = bool(about["cross_documents"])
            columns = map_columns(path)
            self.offsets = np.asarray(columns["offsets"])
            self.repeated = np.asarray(columns["repeated"])
            self.begins = np.asarray(columns["begins"]).astype(bool)
            self.documents = np.asarray(columns["documents"])
            self.document_sources = np.asarray(columns["document_sources"])
            self._columns = {name: columns[name] for name in ("ids", "learned", "bytes")}
            if self.version > 1:
                self._many = np.asarray(columns["many_at"]), np.asarray(columns["many_bytes"])
                self._counted = {name: columns[name] for name in ("targets", "addresses", "row_begins", "row_pieces")}
                if "row_addresses" in columns:
                    self._counted["row_addresses"] = columns["row_addresses"]
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise _unreadable(path, error) from None
        pieces = len(self.documents)
        tokens = len(self._columns["ids"])
        whole = (
            len(self.offsets) == pieces + 1
            and len(self.repeated) == len(self.begins) == pieces
            and len(self._columns["learned"]) == len(self._columns["bytes"]) == tokens
            and self.offsets[0] == 0
            and self.offsets[-1] == tokens
            and bool((np.diff(self.offsets) > 0).all())
            and bool((np.diff(self.offsets) <= self.length).all())
            and (self.version == 1 or self._counts_fit())
        )
        if not whole:
            raise _unreadable(path, "its parts do not fit together")

    def __len__(self) -> int:
        return len(self.documents)

    def _counts_fit(self) -> bool:
        """Whether every piece has an address and a count, and is in one row that has space for it."""
        pieces, counted = len(self), self._counted
        begins, order = counted["row_begins"], counted["row_pieces"]
        if (
            counted["addresses"].shape != (pieces, 32)
            or len(counted["targets"]) != pieces
            or len(order) != pieces
            or len(begins) == 0
            or begins[0] != 0
            or begins[-1] != pieces
            or not bool((np.diff(begins) > 0).all())
            or len(self._many[0]) != len(self._many[1])
            or ("row_addresses" in counted and counted["row_addresses"].shape != (len(begins) - 1, 32))
        ):
            return False
        if pieces and (int(order.min()) < 0 or int(order.max()) >= pieces):
            return False
        once = bool((np.bincount(order, minlength=pieces) == 1).all())
        return once and bool((self.layout.sums(self.sizes) <= self.length).all())

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether a safetensors file is one of pieces; False for any other, and for none."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np") as file:
                return FORMAT in (file.metadata() or {})
        except (SafetensorError, OSError):
            return False

    @functools.cached_property
    def sizes(self) -> Array:
        """Tokens of each piece, [P] int64."""
        found: Array = np.diff(self.offsets)
        return found

    @functools.cached_property
    def layout(self) -> Layout:
        """Which pieces share a row."""
        if self.version == 1:
            return Layout(*packed_rows(self.sizes, self.length))
        return Layout(np.asarray(self._counted["row_begins"]), np.asarray(self._counted["row_pieces"]))

    @functools.cached_property
    def targets(self) -> Array:
        """Targets of each piece, [P]: what is to be learned but for a piece's first token."""
        return self.read().targets if self.version == 1 else np.asarray(self._counted["targets"])

    @functools.cached_property
    def _addresses(self) -> list[str]:
        return self.read().addresses

    def address(self, index: int) -> str:
        """The address of a piece."""
        return self._addresses[index] if self.version == 1 else self._counted["addresses"][index].tobytes().hex()

    def row_address(self, number: int) -> str | None:
        """The address of a row that crosses from piece to piece; None where the file does not have it."""
        stored = self._counted.get("row_addresses") if self.version > 1 else None
        return None if stored is None else stored[number].tobytes().hex()

    def read(self, chosen: list[int] | None = None) -> Pieces:
        """Some pieces, in this order, or all."""
        index = slice(None) if chosen is None else np.asarray(chosen, dtype=np.int64)
        sizes = self.sizes[index]
        return Pieces(
            self._column("ids", chosen),
            self._column("learned", chosen).astype(bool),
            self._bytes(chosen),
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            self.repeated[index],
            self.begins[index],
            self.documents[index],
            self.document_sources,
            self.length,
            self.overlap,
            self.cross_documents,
        )

    def _column(self, name: str, chosen: list[int] | None) -> Array:
        column = self._columns[name]
        if chosen is None:
            return np.array(column)
        parts = [column[int(self.offsets[index]) : int(self.offsets[index + 1])] for index in chosen]
        return np.concatenate(parts) if parts else np.zeros(0, column.dtype)

    def _bytes(self, chosen: list[int] | None) -> Array:
        found = self._column("bytes", chosen).astype(np.int32)
        if self.version == 1 or not len(self._many[0]):
            return found
        at, counts = self._many
        end = 0
        for index in range(len(self)) if chosen is None else chosen:
            begin, end = end, end + int(self.sizes[index])
            first, last = np.searchsorted(at, self.offsets[index : index + 2])
            found[begin + at[first:last] - self.offsets[index]] = counts[first:last]
        return found


def _unreadable(path: Path, error: object) -> CorpusError:
    return CorpusError(f"{path}: cannot be read: {error}.", "Remove its folder and run again.")


@dataclass
class PieceList:
    """Gathers the pieces of a split: their tokens in files without a name, so that memory does not grow with them.

    Args:
        length: Tokens of the rows that they are made for.
        overlap: Tokens that pieces repeat at least.
        cross_documents: Whether attention and targets of a row cross from piece to piece.
        limit: Tokens of text after which no more is taken, or None.
        folder: Where the files are; None takes the system's folder for temporary files.
    """

    length: int
    overlap: int
    cross_documents: bool = False
    limit: int | None = None
    folder: Path | None = None
    tokens: int = 0
    """Tokens of text so far."""
    unlearned: int = 0
    """Tokens of text of pieces that were left out, because nothing in them is learned."""

    def __post_init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._columns = {name: _Column(kind, self.folder) for name, kind in _GATHERED.items()}
        self._offsets = array.array("q", [0])
        self._repeated, self._documents = array.array("i"), array.array("i")
        self._begins = array.array("b")
        self._sources = array.array("i")

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self.limit is not None and self.tokens >= self.limit

    def add(self, pieces: list[Piece], source: int) -> None:
        """Take a document's pieces as far as the limit allows; those without a target are left out and counted."""
        number = len(self._sources)
        self._sources.append(source)
        for piece in pieces:
            if self.full:
                break
            if piece.targets or (self.cross_documents and piece.learned.any()):
                for name, column in self._columns.items():
                    column.add(getattr(piece, name))
                self._offsets.append(self._offsets[-1] + len(piece.ids))
                self._repeated.append(piece.repeated)
                self._begins.append(piece.begins)
                self._documents.append(number)
                self.tokens += piece.own
            else:
                self.unlearned += piece.own

    def finish(self) -> Pieces:
        """All pieces, their tokens mapped from the files; the list is empty afterwards."""
        found = Pieces(
            self._columns["ids"].mapped(),
            self._columns["learned"].mapped().view(bool),
            self._columns["bytes"].mapped(),
            np.asarray(self._offsets, dtype=np.int64),
            np.asarray(self._repeated, dtype=np.int32),
            np.asarray(self._begins, dtype=bool),
            np.asarray(self._documents, dtype=np.int32),
            np.asarray(self._sources, dtype=np.int32),
            self.length,
            self.overlap,
            self.cross_documents,
        )
        self._begin()
        return found


_GATHERED = {"ids": np.uint32, "learned": np.uint8, "bytes": np.int32}


class _Column:
    """Numbers in a file without a name: it is gone when nothing maps it any more, even after a kill.

    Args:
        kind: Their type.
        folder: Where the file is stored; None takes the system's folder for temporary files.
    """

    def __init__(self, kind: type, folder: Path | None) -> None:
        self._kind = kind
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._count = 0

    def add(self, numbers: Array) -> None:
        """Put numbers behind all others."""
        self._file.write(np.ascontiguousarray(numbers, dtype=self._kind).tobytes())
        self._count += len(numbers)

    def mapped(self) -> Array:
        """All numbers; the file is closed."""
        with self._file:
            self._file.flush()
            if not self._count:
                return np.zeros(0, self._kind)
            return np.memmap(self._file, self._kind, "r", shape=(self._count,))
