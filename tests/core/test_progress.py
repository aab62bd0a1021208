"""Progress says what it should, and nothing at all when it is quiet."""

from __future__ import annotations

import itertools

import pytest

from stillroom.core import progress
from stillroom.core.progress import Progress, Task, clock


@pytest.mark.parametrize("quiet", [True, False])
def test_lines_on_no_terminal(quiet: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY_SECONDS", 0.0)
    with Progress(quiet).task("work", total=4, unit="pieces") as task:
        task.advance(1, note="first")
        task.advance(3)
    shown = capsys.readouterr().err
    assert ("work:  25%" in shown) == (not quiet)
    assert ("first" in shown) == (not quiet)
    assert task.done == 4


class Clock:
    """A clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_what_was_done_before_does_not_count_into_the_rate() -> None:
    clock_ = Clock()
    task = Task("work", 100, "tokens", now=clock_)
    task.skip(90)
    clock_.time += 10
    task.advance(5)
    assert task.rate == "0.5 tokens/s"
    assert task.seconds_left == pytest.approx(10)
    assert "0:10 left" in task.line()


def test_no_time_left_in_the_first_seconds() -> None:
    clock_ = Clock()
    task = Task("work", 100, "tokens", now=clock_)
    assert task.seconds_left is None
    clock_.time += 0.5
    task.advance(1)
    assert task.seconds_left is None
    assert "left" not in task.line()
    clock_.time += progress.UNTOLD_SECONDS
    task.advance(1)
    assert task.seconds_left is not None


def _training(beside: bool, stalls: dict[int, float] | None = None) -> list[tuple[float, float]]:
    """A training of 200 steps of 2 to 3 s and a validation of 30 s after every 20: what was shown, and the truth."""
    clock_, shown = Clock(), []
    task = Task("train", 200 * 512, "tokens", 10 * 12 * 512 if beside else 0.0, now=clock_)

    def work(seconds: float) -> None:
        whole = round(seconds)
        for _ in range(whole):
            clock_.time += seconds / whole
            left = task.seconds_left
            if left is not None:
                shown.append((clock_.time, left))

    for step in range(1, 201):
        work(2.0 + step % 2 + (stalls or {}).get(step, 0.0))
        task.advance(512)
        if step % 20 == 0:
            work(30.0)
            if beside:
                task.did_beside(12 * 512)
    return [(left, clock_.time - at) for at, left in shown]


def test_the_time_left_of_a_training_does_not_jump() -> None:
    told = _training(beside=True)
    assert len(told) > 700
    # It goes down by about a second each second, with validations in between, and is right within a tenth soon.
    moves = [(later - before, before) for (before, _), (later, _) in itertools.pairwise(told)]
    assert max(move for move, _ in moves) <= 1.0
    assert min(move for move, _ in moves[30:]) >= -4.0
    assert all(-move <= 0.02 * before + 1 for move, before in moves[:30])
    for shown, truth in told[30:]:
        assert shown == pytest.approx(truth, rel=0.1, abs=10)


def test_validations_that_nobody_announced_are_what_it_would_miss() -> None:
    worst = max(abs(shown - truth) for shown, truth in _training(beside=False)[10:])
    assert worst > 2 * max(abs(shown - truth) for shown, truth in _training(beside=True)[10:])


def test_a_stall_is_taken_in_slowly() -> None:
    told = [shown for shown, _ in _training(beside=True, stalls={100: 60.0})]
    moves = [later - before for before, later in itertools.pairwise(told)]
    # A minute in which nothing moves puts the time left up by a few seconds at a time, never at once.
    assert max(moves) < 0.06 * max(told)
    assert all(shown >= 0 for shown in told)


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0.4, 42, 185, 3723)] == ["0:00", "0:42", "3:05", "1:02:03"]
