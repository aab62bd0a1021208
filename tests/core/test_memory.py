"""Freed memory is given back when a loop grows, and not at every step."""

from __future__ import annotations

import os

import pytest

from stillroom.core import memory
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
    assert len(given) == 1


def test_holes_never_add_up() -> None:
    """A loop that leaves 4 % of holes at every step, for however long it goes on."""
    held, most, times = 100, 0, 0

    def release() -> None:
        nonlocal held
        held = 100

    trim = Trimmer(lambda: held, release)
    for _ in range(500):
        held += 4
        times += trim()
        most = max(most, held)
    assert most <= 100 + 4 * (Trimmer.APART + 1)
    assert times <= 500 / Trimmer.APART


def test_products_are_kept_for_a_pass_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in memory.KERNELS:
        monkeypatch.setenv(name, "1")  # so that the old state comes back
        monkeypatch.delenv(name)
    memory.keep_few_kernels(1024)
    assert int(os.environ[memory.KERNELS[0]]) == memory.FEWEST_KERNELS
    monkeypatch.setenv(memory.KERNELS[0], "17")
    memory.keep_few_kernels(1 << 20)
    assert os.environ[memory.KERNELS[0]] == "17"
    assert memory.kernels_kept(1 << 20) == memory.MOST_KERNELS
