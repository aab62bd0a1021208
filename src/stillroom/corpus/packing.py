"""Tokens of documents to packed sequences, without waste. Knows nothing of sources or splits.

Legend: S sequences, L tokens a sequence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch

from stillroom.corpus.sequences import Sequences
from stillroom.corpus.tokens import Tokens

SHORTEST_PIECE = 2
"""A piece of one token has nothing to predict inside its sequence."""


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
    rows: list[dict[str, np.ndarray]] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    _open: dict[str, np.ndarray] | None = None
    _used: int = 0
    _segment: int = 0

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self.limit is not None and len(self.rows) >= self.limit

    @property
    def tokens(self) -> int:
        """Tokens packed so far."""
        return len(self.rows) * self.length + self._used

    def add(self, tokens: Tokens, source: int) -> int:
        """Pack a document; returns how many of its tokens were taken."""
        number = len(self.sources)
        self.sources.append(source)
        at = taken = 0
        while at < len(tokens.ids) and not self.full:
            if self._open is None:
                self._begin()
            row = self._open
            assert row is not None
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
            taken += count
            if self._used == self.length:
                self._close()
        return taken

    def finish(self, keep_tail: bool) -> Sequences:
        """The packed sequences; a tail that is not full is kept when asked for, or when it is all there is."""
        if self._open is not None and not self.full and (keep_tail or not self.rows or self._used >= self.length // 2):
            self._close()
        rows = self.rows

        def stack(key: str, dtype: torch.dtype) -> torch.Tensor:
            if not rows:
                return torch.zeros(0, self.length, dtype=dtype)
            return torch.from_numpy(np.stack([row[key] for row in rows])).to(dtype)

        return Sequences(
            stack("ids", torch.int64),
            stack("segments", torch.int32),
            stack("learned", torch.bool),
            stack("documents", torch.int32),
            stack("bytes", torch.int32),
            torch.tensor(self.sources, dtype=torch.int32),
        )

    def _begin(self) -> None:
        self._open = {
            "ids": np.zeros(self.length, np.int64),
            "segments": np.full(self.length, -1, np.int32),
            "learned": np.zeros(self.length, bool),
            "documents": np.full(self.length, -1, np.int32),
            "bytes": np.zeros(self.length, np.int32),
        }
        self._used = 0
        self._segment = 0

    def _close(self) -> None:
        if self._open is not None and self._used:
            self.rows.append(self._open)
        self._open = None
        self._used = 0


def pack(
    documents: Iterable[tuple[Tokens, int]], length: int, cross_documents: bool, limit: int | None, keep_tail: bool
) -> Sequences:
    """Pack documents with the index of their source; see :class:`Packer`."""
    packer = Packer(length, cross_documents, limit)
    for tokens, source in documents:
        if packer.full:
            break
        packer.add(tokens, source)
    return packer.finish(keep_tail)
