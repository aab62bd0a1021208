"""Tokens of documents to packed sequences, without waste.

Legend: S sequences, L tokens a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stillroom.corpus.sequences import Sequences
from stillroom.corpus.tokens import Tokens

SHORTEST_PIECE = 2
"""A piece of one token has nothing to predict inside its sequence."""


Row = dict[str, npt.NDArray[Any]]


@dataclass
class Packer:
    """Fills sequences of ``length`` tokens one after the other; a document that does not fit goes on in the next.

    Attributes:
        length: Tokens a sequence.
        cross_documents: Whether a sequence is one segment, whatever it holds.
        limit: Most sequences, or None.
    """

    length: int
    cross_documents: bool
    limit: int | None = None
    rows: list[Row] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    _open: Row | None = None
    _used: int = 0
    _segment: int = 0

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self.limit is not None and len(self.rows) >= self.limit

    def add(self, tokens: Tokens, source: int) -> None:
        """Pack a document as far as the limit allows."""
        number = len(self.sources)
        self.sources.append(source)
        at = 0
        while at < len(tokens.ids) and not self.full:
            row = self._open or self._begin()
            room = self.length - self._used
            left = len(tokens.ids) - at
            if room < SHORTEST_PIECE and not self.cross_documents and left >= SHORTEST_PIECE:
                self._close()
                continue
            count = min(room, left)
            here = slice(self._used, self._used + count)
            there = slice(at, at + count)
            row["ids"][here] = tokens.ids[there]
            row["learned"][here] = tokens.learned[there]
            row["bytes"][here] = tokens.bytes[there]
            row["documents"][here] = number
            row["segments"][here] = 0 if self.cross_documents else self._segment
            self._segment += 1
            self._used += count
            at += count
            if self._used == self.length:
                self._close()

    def finish(self, keep_tail: bool) -> Sequences:
        """The packed sequences; the packer is empty afterwards.

        Args:
            keep_tail: Keep a last sequence that is less than half full. It is kept too when it is all there is.
        """
        if self._open is not None and not self.full and (keep_tail or not self.rows or 2 * self._used >= self.length):
            self._close()
        rows, self.rows, self._open = self.rows, [], None

        def stack(key: str, dtype: torch.dtype) -> torch.Tensor:
            stacked = torch.zeros(len(rows), self.length, dtype=dtype)
            for index, row in enumerate(rows):
                # A row's part is freed as soon as it is copied.
                stacked[index] = torch.from_numpy(row.pop(key))
            return stacked

        return Sequences(
            stack("ids", torch.int64),
            stack("segments", torch.int32),
            stack("learned", torch.bool),
            stack("documents", torch.int32),
            stack("bytes", torch.int32),
            torch.tensor(self.sources, dtype=torch.int32),
        )

    def _begin(self) -> Row:
        self._open = {
            "ids": np.zeros(self.length, np.uint32),
            "segments": np.full(self.length, -1, np.int32),
            "learned": np.zeros(self.length, bool),
            "documents": np.full(self.length, -1, np.int32),
            "bytes": np.zeros(self.length, np.int32),
        }
        self._used = 0
        self._segment = 0
        return self._open

    def _close(self) -> None:
        if self._open is not None and self._used:
            self.rows.append(self._open)
        self._open = None
        self._used = 0
