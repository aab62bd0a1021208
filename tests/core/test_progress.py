"""Progress says what it should, and nothing at all when it is quiet."""

from __future__ import annotations

import pytest

from stillroom.core import progress
from stillroom.core.progress import Progress, clock


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


def test_what_was_done_before_does_not_count_into_the_rate() -> None:
    with Progress(quiet=True).task("work", total=100) as task:
        task.skip(90)
        task.started -= 10
        task.advance(5)
    assert task.rate == "0.5 tokens/s"
    assert "10" in task.line()


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0.4, 42, 185, 3723)] == ["0:00", "0:42", "3:05", "1:02:03"]
