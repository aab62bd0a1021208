"""Which pieces share a row: best fit decreasing (Ding et al. 2024, arXiv 2404.10830), which splits no piece."""

from __future__ import annotations

from collections.abc import Sequence


def best_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Rows of pieces: the longest piece first, each into the row with the least free space that it fits into.

    The same sizes give the same rows. Rows come in the order of their longest piece, so that the first ones are as mixed as all
    of them.

    Args:
        sizes: Tokens of each piece.
        length: Tokens of a row.

    Returns:
        Indices of pieces, row by row, the longest first.
    """
    rows: list[list[int]] = []
    # Of each size of free space, the rows that have it; `open_` has a bit for each size that some row has.
    left: dict[int, list[int]] = {}
    open_ = 0
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        size = sizes[index]
        if size > length:
            raise ValueError(f"a document's piece of {size} tokens does not fit into a row of {length}")
        fitting = open_ >> size
        if size and fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = left[room].pop()
            if not left[room]:
                open_ ^= 1 << room
            rows[row].append(index)
        else:
            room, row = length, len(rows)
            rows.append([index])
        if room > size:
            left.setdefault(room - size, []).append(row)
            open_ |= 1 << (room - size)
    return sorted(rows, key=lambda row: row[0])
