"""Best fit: every piece in one row and whole, little room left, the same rows each time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.corpus.packing import best_fit

SIZES = st.lists(st.integers(1, 40), max_size=60)


def by_hand(sizes: list[int], length: int) -> int:
    """Rows that best fit decreasing needs, written as plainly as it can be."""
    rooms: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [index for index, room in enumerate(rooms) if room >= size]
        if fitting:
            rooms[min(fitting, key=lambda index: rooms[index])] -= size
        else:
            rooms.append(length - size)
    return len(rooms)


@settings(max_examples=300)
@given(sizes=SIZES, extra=st.integers(0, 60))
def test_every_piece_whole_and_once(sizes: list[int], extra: int) -> None:
    length = max(sizes, default=1) + extra
    rows = best_fit(sizes, length)
    assert sorted(index for row in rows for index in row) == list(range(len(sizes)))
    assert all(sum(sizes[index] for index in row) <= length for row in rows)
    assert all(sizes[row[0]] == max(sizes[index] for index in row) for row in rows)
    assert len(rows) == by_hand(sizes, length)
    assert rows == best_fit(sizes, length)
    # Rows come in the order of their longest piece, which is no order of lengths.
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


def test_short_pieces_leave_no_room() -> None:
    rows = best_fit([1 + index * 7 % 13 for index in range(500)], 64)
    used = sum(1 + index * 7 % 13 for index in range(500))
    assert 64 * len(rows) - used < 64


def test_a_piece_that_is_too_long() -> None:
    with pytest.raises(ValueError, match="a document's piece of 9 tokens does not fit into a row of 8"):
        best_fit([9], 8)


def test_nothing_to_pack() -> None:
    assert best_fit([], 8) == []
