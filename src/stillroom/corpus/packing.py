"""Which pieces share a row: best fit decreasing (Ding et al. 2024, arXiv 2404.10830), which splits no piece."""

from __future__ import annotations

import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
PART = 1 << 12
"""Pieces that are Python numbers at the same time."""


def best_fit(sizes: Sequence[int] | Array, length: int) -> list[list[int]]:
    """Rows of pieces as lists; see :func:`packed_rows`.

    Args:
        sizes: Tokens of each piece.
        length: Tokens of a row.

    Returns:
        Indices of pieces, row by row, the longest first.
    """
    begins, pieces = packed_rows(np.asarray(sizes, dtype=np.int64), length)
    bounds = zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True)
    return [pieces[begin:end].tolist() for begin, end in bounds]


def packed_rows(sizes: Array, length: int) -> tuple[Array, Array]:
    """Rows of pieces: the longest piece first, each into the row with the least free space that it fits into.

    The same sizes give the same rows. Rows come in the order of their longest piece, so that the first ones are as mixed as all
    of them. Memory is about 50 bytes per piece.

    Args:
        sizes: Tokens of each piece, [P].
        length: Tokens of a row.

    Returns:
        Where each row begins among the pieces and where the last one ends, [R + 1] int64; and indices of pieces row by row,
        the longest first, [P] int32.
    """
    order = np.argsort(-sizes, kind="stable").astype(np.int32)
    # Of each row its first piece, which is its longest, and of each piece in the order the number of its row.
    firsts, rows = array.array("i"), array.array("i")
    # Of each size of free space, the rows that have it; `open_` has a bit for each size that some row has.
    left: dict[int, array.array[int]] = {}
    open_ = 0
    for index, size in _by_size(order, sizes):
        if size > length:
            raise ValueError(f"a document's piece of {size} tokens does not fit into a row of {length}")
        fitting = open_ >> size
        if size and fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = left[room].pop()
            if not left[room]:
                open_ ^= 1 << room
        else:
            room, row = length, len(firsts)
            firsts.append(index)
        rows.append(row)
        if room > size:
            left.setdefault(room - size, array.array("i")).append(row)
            open_ |= 1 << (room - size)
    rank = np.empty(len(firsts), np.int32)
    rank[np.argsort(np.asarray(firsts), kind="stable")] = np.arange(len(firsts), dtype=np.int32)
    row_of = rank[np.asarray(rows, dtype=np.int32)]
    begins = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=len(firsts)))]).astype(np.int64)
    return begins, order[np.argsort(row_of, kind="stable")]


def _by_size(order: Array, sizes: Array) -> Iterator[tuple[int, int]]:
    """Index and tokens of each piece in an order."""
    for begin in range(0, len(order), PART):
        part = order[begin : begin + PART]
        yield from zip(part.tolist(), sizes[part].tolist(), strict=True)
