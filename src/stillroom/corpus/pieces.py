"""The pieces of one split as they are stored: one after the other, without padding.

Legend: P pieces, T tokens of all pieces, D documents.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stillroom.core import files
from stillroom.core.errors import CorpusError
from stillroom.corpus.cutting import Piece

FORMAT = "stillroom-pieces"
VERSION = 1

Array = npt.NDArray[Any]


def piece_address(ids: Array, learned: Array) -> str:
    """SHA-256 of a piece: of its ids, uint32, and of whether each is to be learned, uint8. Its signal depends on no more."""
    return hashlib.sha256(
        np.ascontiguousarray(ids, dtype="<u4").tobytes() + np.ascontiguousarray(learned, dtype=np.uint8).tobytes()
    ).hexdigest()


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
        length: Tokens of the rows that they were cut for.
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
        counted = self.learned.astype(np.int64)
        counted[self.offsets[:-1][np.diff(self.offsets) > 0]] = 0
        sums = np.concatenate([[0], np.cumsum(counted)])
        found: Array = sums[self.offsets[1:]] - sums[self.offsets[:-1]]
        return found

    @property
    def targets_without_context(self) -> int:
        """Targets with neither their document's beginning nor ``overlap`` tokens before their piece's own in sight."""
        return int(self.targets[~self.begins & (self.repeated < self.overlap)].sum())

    @functools.cached_property
    def addresses(self) -> list[str]:
        """The address of each piece: :func:`piece_address`."""
        bounds = zip(self.offsets[:-1], self.offsets[1:], strict=True)
        return [piece_address(self.ids[begin:end], self.learned[begin:end]) for begin, end in bounds]

    def save(self, path: Path) -> None:
        """Write as safetensors, atomically."""
        from safetensors.numpy import save_file

        about = {
            "version": VERSION,
            "length": self.length,
            "overlap": self.overlap,
            "cross_documents": self.cross_documents,
        }
        tensors: dict[str, Array] = {
            "ids": self.ids.astype(np.uint32),
            "learned": self.learned.astype(np.uint8),
            "bytes": self.bytes.astype(np.int32),
            "offsets": self.offsets.astype(np.int64),
            "repeated": self.repeated.astype(np.int32),
            "begins": self.begins.astype(np.uint8),
            "documents": self.documents.astype(np.int32),
            "document_sources": self.document_sources.astype(np.int32),
        }
        with files.replacing(path) as beside:
            # One entry: the order of several is left to chance, and the same corpus is the same file.
            save_file(tensors, beside, metadata={FORMAT: json.dumps(about)})

    @classmethod
    def load(cls, path: Path) -> Pieces:
        """Read what :meth:`save` wrote.

        Raises:
            CorpusError: The file is missing, damaged, or of a version that this program does not know.
        """
        return PieceFile(path).read()


class PieceFile:
    """A file of pieces, read a few at a time.

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
                if about.get("version") != VERSION:
                    raise CorpusError(
                        f"{path} is no file of pieces of version {VERSION}.",
                        "Use the version of Stillroom that wrote it, or remove its folder and run again.",
                    )
                self.length = int(about["length"])
                self.overlap = int(about["overlap"])
                self.cross_documents = bool(about["cross_documents"])
                self.offsets = file.get_tensor("offsets")
                self.repeated = file.get_tensor("repeated")
                self.begins = file.get_tensor("begins").astype(bool)
                self.documents = file.get_tensor("documents")
                self.document_sources = file.get_tensor("document_sources")
                tokens = file.get_slice("ids").get_shape()[0]
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise _unreadable(path, error) from None
        pieces = len(self.documents)
        whole = (
            len(self.offsets) == pieces + 1
            and len(self.repeated) == len(self.begins) == pieces
            and self.offsets[0] == 0
            and self.offsets[-1] == tokens
            and bool((np.diff(self.offsets) > 0).all())
            and bool((np.diff(self.offsets) <= self.length).all())
        )
        if not whole:
            raise _unreadable(path, "its parts do not fit together")

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether a safetensors file is one of pieces; False for any other, and for none."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np") as file:
                return FORMAT in (file.metadata() or {})
        except (SafetensorError, OSError):
            return False

    def read(self, chosen: list[int] | None = None) -> Pieces:
        """Some pieces, in this order, or all."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "np") as file:
                columns = {name: self._column(file, name, chosen) for name in ("ids", "learned", "bytes")}
        except (SafetensorError, KeyError, OSError) as error:
            raise _unreadable(self.path, error) from None
        index = slice(None) if chosen is None else np.asarray(chosen, dtype=np.int64)
        sizes = np.diff(self.offsets)[index]
        return Pieces(
            columns["ids"],
            columns["learned"].astype(bool),
            columns["bytes"],
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            self.repeated[index],
            self.begins[index],
            self.documents[index],
            self.document_sources,
            self.length,
            self.overlap,
            self.cross_documents,
        )

    def _column(self, file: Any, name: str, chosen: list[int] | None) -> Array:
        if chosen is None:
            whole: Array = file.get_tensor(name)
            return whole
        stored = file.get_slice(name)
        parts = [stored[int(self.offsets[index]) : int(self.offsets[index + 1])] for index in chosen]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _unreadable(path: Path, error: object) -> CorpusError:
    return CorpusError(f"{path}: cannot be read: {error}.", "Remove its folder and run again.")


@dataclass
class PieceList:
    """Gathers the pieces of a split.

    Args:
        length: Tokens of the rows that they are cut for.
        overlap: Tokens that pieces repeat at least.
        cross_documents: Whether attention and targets of a row cross from piece to piece.
        limit: Tokens of text after which no more is taken, or None.
    """

    length: int
    overlap: int
    cross_documents: bool = False
    limit: int | None = None
    tokens: int = 0
    """Tokens of text so far."""
    unlearned: int = 0
    """Tokens of text of pieces that were left out, because nothing in them is learned."""
    _pieces: list[tuple[Piece, int]] = field(default_factory=list)
    _sources: list[int] = field(default_factory=list)

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
                self._pieces.append((_small(piece), number))
                self.tokens += piece.own
            else:
                self.unlearned += piece.own

    def finish(self) -> Pieces:
        """All pieces; the list is empty afterwards."""
        pieces, self._pieces = self._pieces, []
        offsets = np.concatenate([[0], np.cumsum([len(piece.ids) for piece, _ in pieces], dtype=np.int64)])

        def joined(name: str, dtype: type) -> Array:
            whole: Array = np.zeros(int(offsets[-1]), dtype)
            for index, (piece, _) in enumerate(pieces):
                whole[offsets[index] : offsets[index + 1]] = getattr(piece, name)
            return whole

        return Pieces(
            joined("ids", np.uint32),
            joined("learned", bool),
            joined("bytes", np.int32),
            offsets.astype(np.int64),
            np.asarray([piece.repeated for piece, _ in pieces], dtype=np.int32),
            np.asarray([piece.begins for piece, _ in pieces], dtype=bool),
            np.asarray([number for _, number in pieces], dtype=np.int32),
            np.asarray(self._sources, dtype=np.int32),
            self.length,
            self.overlap,
            self.cross_documents,
        )


def _small(piece: Piece) -> Piece:
    """The same piece in as few bytes as its numbers need, and apart from its document's arrays."""
    return Piece(
        piece.ids.astype(np.uint32),
        piece.learned.copy(),
        piece.bytes.astype(np.int32),
        piece.repeated,
        piece.begins,
    )
