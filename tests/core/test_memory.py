"""Freed memory is given back when a loop grows, and not at every step."""

from __future__ import annotations

from stillroom.core.memory import Trimmer


def test_memory_is_given_back_when_a_loop_has_grown() -> None:
    held = iter([100, 110, 105, 112, 126, 127, 100, 112, 128])
    released = []
    trim = Trimmer(lambda: next(held), lambda: released.append(1))
    assert [trim() for _ in range(6)] == [False, False, False, False, False, True]
    assert [trim(), trim()] == [False, False]


def test_a_loop_that_needs_more_gets_more() -> None:
    """What is needed at every step is not given back at every step."""
    given = []
    trim = Trimmer(iter([100] * 3 + [140] * 100).__next__, lambda: given.append(1))
    for _ in range(103):
        trim()
    assert len(given) == 3
