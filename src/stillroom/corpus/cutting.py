"""Documents to pieces: a whole document where it fits into a sequence, otherwise stretches of it.

A piece depends on its document alone, so that a corpus that grows keeps every piece that it had. A piece that does not begin
its document repeats tokens from before it: they are seen and not learned. So every token that is learned is learned once,
with its document's beginning or at least ``overlap`` tokens in sight.

Legend: T tokens of a document, L tokens of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stillroom.corpus.tokens import Tokens

OVERLAP = 512
"""Tokens that a piece repeats from before it, in sequences of four times as many or more."""

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """A stretch of one document: first what it repeats, then what is its own.

    Attributes:
        ids: Token ids, integers [T].
        learned: Whether a token is to be learned, bool [T]; never what is repeated.
        bytes: UTF-8 bytes of text that each token adds, int32 [T]; 0 for what is repeated.
        repeated: How many tokens at the beginning are repeated.
        begins: Whether the piece holds everything of its document up to its own tokens.
    """

    ids: Array
    learned: Array
    bytes: Array
    repeated: int
    begins: bool

    @property
    def own(self) -> int:
        """Tokens that no other piece has as its own."""
        return len(self.ids) - self.repeated

    @property
    def targets(self) -> int:
        """Tokens that are learned: all that are to be learned but the first, which nothing predicts."""
        return int(self.learned[1:].sum())


def overlap_of(length: int) -> int:
    """Tokens that pieces repeat in sequences of a length: a quarter of it, 512 at most."""
    return min(OVERLAP, length // 4)


def cut(tokens: Tokens, length: int, overlap: int | None = None) -> list[Piece]:
    """The pieces of a document.

    A chat is split where a user's turn begins, if there is such a place within reach. Its pieces repeat its head (system
    message and tools), and whole turns where they fit. A piece that begins inside an answer repeats the question too, and
    the last tokens of the answer. Other documents are split where a sequence is full.

    Args:
        tokens: The document, [T].
        length: Most tokens of a piece, at least 8.
        overlap: Fewest tokens that are repeated, at most half of ``length``; None for :func:`overlap_of`.
    """
    overlap = overlap_of(length) if overlap is None else overlap
    total = len(tokens.ids)
    if total <= length:
        return [Piece(tokens.ids, tokens.learned, tokens.bytes, 0, begins=True)]
    starts = np.asarray([start for start, _ in tokens.turns if start > 0], dtype=np.int64)
    pieces = []
    at = 0
    while at < total:
        before, begins = _context(tokens, at, length, overlap)
        end = min(at + length - len(before), total)
        if end < total:
            turns = starts[(starts > at) & (starts <= end)]
            end = int(turns[-1]) if len(turns) else end
        chosen = np.concatenate([before, np.arange(at, end)])
        new = np.arange(len(chosen)) >= len(before)
        pieces.append(
            Piece(
                tokens.ids[chosen],
                tokens.learned[chosen] & new,
                np.where(new, tokens.bytes[chosen], 0).astype(np.int32),
                len(before),
                begins,
            )
        )
        at = end
    return pieces


def _context(tokens: Tokens, at: int, length: int, overlap: int) -> tuple[Indices, bool]:
    """Tokens that a piece repeats whose own tokens begin at ``at``, and whether they are all that are before it.

    They are at most three quarters of a sequence: at most half of it for whole turns with the head, or for head and question
    beside the overlap.
    """
    budget = min(length // 2, 3 * length // 4 - overlap)
    head = tokens.head if tokens.head <= budget else tokens.bos
    if at - overlap <= head:
        return np.arange(at), True
    begin = at - overlap
    question: Indices = np.arange(0)
    turn, answer = next(((max(s, head), a) for s, a in reversed(tokens.turns) if s <= at), (head, 0))
    if turn == at:
        # The shortest whole turns that reach far enough, unless the turn that begins here then has too little space.
        here = next((start for start, _ in tokens.turns if start > at), len(tokens.ids)) - at
        room = min(budget + overlap, max(length - here, 0)) - head
        begin = max((start for start, _ in tokens.turns if start <= begin and at - start <= room), default=begin)
    elif answer and turn <= begin and at - turn <= budget - head + overlap:
        begin = turn
    elif turn < answer < begin and answer - turn <= budget - head:
        question = np.arange(turn, answer)
    if begin <= head:
        return np.arange(at), True
    return np.concatenate([np.arange(head), question, np.arange(begin, at)]), False


def capped(pieces: list[Piece], most: int) -> tuple[list[Piece], int]:
    """The beginning of a document with at most ``most`` targets, and how many targets the rest has."""
    kept: list[Piece] = []
    room, dropped = most, 0
    for piece in pieces:
        targets = piece.targets
        if targets <= room:
            kept.append(piece)
            room -= targets
            continue
        dropped += targets - room
        if room > 0:
            # Up to the last target that there is space for.
            end = 1 + int(np.flatnonzero(piece.learned[1:])[room - 1]) + 1
            kept.append(
                Piece(piece.ids[:end], piece.learned[:end], piece.bytes[:end], piece.repeated, begins=piece.begins)
            )
            room = 0
    return kept, dropped
