"""A split that stays on disk: rows are made when they are asked for, and memory holds what was counted of each piece."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stillroom.corpus.packing import best_fit
from stillroom.corpus.pieces import Layout, PieceFile
from stillroom.corpus.sequences import Sequences


class MappedSequences:
    """Rows of the pieces of a file: what capture and training need of :class:`stillroom.corpus.sequences.Sequences`.

    Args:
        file: The pieces.
        layout: Which of them share a row; None takes the file's.
        numbers: Of each row its number in the file, where its pieces share a row there; None where they do not.
    """

    def __init__(self, file: PieceFile, layout: Layout | None = None, numbers: list[int] | None = None) -> None:
        self.file = file
        self.layout = file.layout if layout is None else layout
        self.by_piece = not file.cross_documents
        self._numbers: Sequence[int] | None = range(len(self.layout)) if layout is None else numbers

    def __len__(self) -> int:
        return len(self.layout)

    @property
    def length(self) -> int:
        """Tokens per sequence."""
        return self.file.length

    @property
    def tokens(self) -> int:
        """Tokens of text: without padding and without what is repeated."""
        there = self.layout.pieces
        return int(self.file.sizes[there].sum()) - int(self.file.repeated[there].sum(dtype=np.int64))

    @property
    def row_tokens(self) -> list[int]:
        """Tokens of each sequence without padding."""
        found: list[int] = self.layout.sums(self.file.sizes).tolist()
        return found

    def addresses_of(self, index: int) -> list[str]:
        """The addresses of one sequence's signal."""
        if not self.by_piece:
            stored = None if self._numbers is None else self.file.row_address(self._numbers[index])
            return self.part([index]).addresses[0] if stored is None else [stored]
        return [self.file.address(piece) for piece in self.layout.row(index)]

    @functools.cached_property
    def addresses(self) -> list[list[str]]:
        """The addresses of each sequence's signal, in the order of its targets."""
        return [self.addresses_of(index) for index in range(len(self))]

    @property
    def digests(self) -> list[str]:
        """The addresses of all sequences, one after the other."""
        return [address for row in self.addresses for address in row]

    def part(self, chosen: slice | list[int], width: int | None = None) -> Sequences:
        """Some sequences, in memory; with ``width`` only their first tokens."""
        rows = [self.layout.row(index) for index in (range(len(self))[chosen] if isinstance(chosen, slice) else chosen)]
        numbers = iter(range(sum(map(len, rows))))
        pieces = self.file.read([piece for row in rows for piece in row])
        made = Sequences.pack(pieces, [[next(numbers) for _ in row] for row in rows])
        return made if width is None else made.part(slice(None), width)

    def take(self, count: int) -> Sequences:
        """The first ``count`` sequences, in memory."""
        return self.part(slice(count))

    def only(self, wanted: set[str]) -> MappedSequences:
        """What has these addresses, each once: pieces are packed anew, and sequences with one address stay as they are."""
        left = set(wanted)
        found: list[int] = []
        rows: list[list[int]] = []
        numbers: list[int] = []
        for index, row in enumerate(self.addresses):
            if not self.by_piece:
                if row[0] in left:
                    left.remove(row[0])
                    rows.append(self.layout.row(index))
                    numbers.append(index if self._numbers is None else self._numbers[index])
                continue
            for piece, address in zip(self.layout.row(index), row, strict=True):
                if address in left:
                    left.remove(address)
                    found.append(piece)
        if self.by_piece:
            packed = best_fit(self.file.sizes[found].tolist() if found else [], self.length)
            rows = [[found[number] for number in row] for row in packed]
        return MappedSequences(self.file, Layout.of(rows), None if self.by_piece or self._numbers is None else numbers)


def open_split(path: Path) -> Sequences | MappedSequences:
    """A split of a corpus: pieces on disk, or in memory the rows of release 0.1.0.

    Raises:
        CorpusError: The file is missing or damaged.
    """
    return MappedSequences(PieceFile(path)) if PieceFile.is_one(path) else Sequences.load(path)
