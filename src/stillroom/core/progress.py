"""Progress on stderr: bars with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress

PLAIN_EVERY_SECONDS = 10.0
UNTOLD_SECONDS = 3.0
"""So long no time left is shown: the first moments say little about the rest."""
SMOOTH_SECONDS = 10.0
"""About so long it takes until what is shown follows a new estimate of the time left."""
HALF_SECONDS = 20.0
"""Work that is so old weighs half in the rate; in long tasks, work that is a quarter of their age."""

_ASKED: ContextVar[Callable[[], None] | None] = ContextVar("asked", default=None)


def ask() -> None:
    """Ask what the ``Progress`` at work asks, such as the switch: for work that is no task. What it raises ends the work."""
    if (asked := _ASKED.get()) is not None:
        asked()


@dataclass
class Task:
    """One piece of work of known length.

    The time left is told from the recent rate and moves slowly: recent work weighs more than old (exponentially), what is
    shown counts down with the clock, and a new estimate is approached over some seconds. Work of another kind that is done
    in between, such as validations, is announced as ``beside``, so that the estimate does not stumble over it.

    Attributes:
        title: What it is called.
        total: Units of work in all.
        unit: What the units are, such as ``tokens``.
        beside: Work in between that is not counted as units but takes time, as so many units' worth.
        done: Units that are done.
        now: The clock, in seconds.
        ask: Called whenever work is reported; what it raises ends the work there.
    """

    title: str
    total: float
    unit: str
    beside: float = 0.0
    done: float = 0.0
    note: str = ""
    quiet: bool = False
    begun_at: float = 0.0
    now: Callable[[], float] = lambda: time.monotonic()
    ask: Callable[[], None] | None = None
    started: float = field(init=False)
    _beside_done: float = 0.0
    _bar: tuple[rich.progress.Progress, rich.progress.TaskID] | None = None
    _said: float = field(init=False)
    _moved: float = field(init=False)
    """When work was last reported."""
    _work: float = 0.0
    _spent: float = 0.0
    """Recent work and the seconds it took, both fading."""
    _shown: tuple[float, float] | None = None
    """The time left that was last shown, and when."""

    def __post_init__(self) -> None:
        self.started = self._said = self._moved = self.now()

    def advance(self, amount: float, note: str = "") -> None:
        """Say that more is done."""
        if self.ask is not None:
            self.ask()
        self.done += amount
        self._record(amount)
        if note:
            self.note = note
        if self._bar is not None:
            bar, number = self._bar
            bar.update(number, advance=amount, note=self.note, rate=self.rate)
        elif not self.quiet and self.now() - self._said >= PLAIN_EVERY_SECONDS and self.done < self.total:
            self._said = self.now()
            say(f"  {self.title}: {self.line()}")

    def did_beside(self, amount: float) -> None:
        """Say that some of the work in between is done, in units' worth."""
        self._beside_done += amount
        self._record(amount)

    def skip(self, amount: float) -> None:
        """Count what an earlier process did already; it does not count into the rate."""
        self.begun_at += amount
        self.done += amount
        if self._bar is not None:
            bar, number = self._bar
            bar.update(number, advance=amount)

    @property
    def rate(self) -> str:
        """Units per second so far."""
        elapsed = self.now() - self.started
        rate = (self.done - self.begun_at) / elapsed if elapsed > 0 else 0.0
        return f"{rate:,.0f} {self.unit}/s" if rate >= 10 else f"{rate:.1f} {self.unit}/s"

    @property
    def seconds_left(self) -> float | None:
        """Seconds left as they are to be shown, or None while it is too early to tell."""
        now = self.now()
        if self._work <= 0 or self._spent <= 0 or now - self.started < UNTOLD_SECONDS:
            return None
        work = max(0.0, self.total - self.done) + max(0.0, self.beside - self._beside_done)
        # Since work was last reported, some more was done that will be reported later; but not all of it.
        whole = work * self._spent / self._work
        estimate = max(whole - (now - self._moved), 0.5 * whole)
        if self._shown is not None:
            shown, at = self._shown
            due = max(0.0, shown - (now - at))
            estimate = due + (1 - math.exp(-(now - at) / SMOOTH_SECONDS)) * (estimate - due)
        self._shown = estimate, now
        return estimate

    def line(self) -> str:
        """Share done, rate and time left in words."""
        share = self.done / self.total if self.total else 1.0
        seconds = self.seconds_left
        left = "" if seconds is None else f", {clock(seconds)} left"
        note = f", {self.note}" if self.note else ""
        return f"{share:4.0%}, {self.rate}{left}{note}"

    def _record(self, amount: float) -> None:
        now = self.now()
        seconds, self._moved = now - self._moved, now
        fading = 0.5 ** (seconds / max(HALF_SECONDS, (now - self.started) / 4))
        self._work = self._work * fading + amount
        self._spent = self._spent * fading + seconds


class Progress:
    """Draws tasks one after the other. ``quiet`` draws nothing. ``ask`` is every task's, where that does not ask itself."""

    def __init__(self, quiet: bool = False, ask: Callable[[], None] | None = None) -> None:
        self.quiet = quiet
        self.ask = ask

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Let :func:`ask` ask what this asks while the body runs."""
        before = _ASKED.set(self.ask)
        try:
            yield
        finally:
            _ASKED.reset(before)

    @contextlib.contextmanager
    def task(
        self, title: str, total: float, unit: str = "tokens", beside: float = 0.0, *, asks_itself: bool = False
    ) -> Iterator[Task]:
        """A task that is drawn while the body runs; a closing line says how long it took. Arguments as of ``Task``."""
        task = Task(title, total, unit, beside, quiet=self.quiet, ask=None if asks_itself else self.ask)
        if self.quiet:
            yield task
            return
        if not sys.stderr.isatty():
            yield task
        else:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
            from rich.text import Text

            from stillroom.core.plain import guard_tables

            guard_tables()

            class Left(ProgressColumn):
                """The time left, drawn again as the clock moves."""

                def render(self, _: rich.progress.Task) -> Text:
                    seconds = task.seconds_left
                    return Text("-:--" if seconds is None else clock(seconds), style="progress.remaining")

            bar = Progress(
                TextColumn("  {task.description:<22}"),
                BarColumn(bar_width=28),
                TextColumn("{task.percentage:>3.0f}%  {task.fields[rate]:>14}"),
                Left(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=True,
            )
            with bar:
                task._bar = bar, bar.add_task(title, total=total, rate="", note="")
                yield task
        elapsed = task.now() - task.started
        if elapsed >= 1.0:
            say(
                f"  {title}: {task.done:,.0f} {unit} in {clock(elapsed)}, {task.rate}"
                + (f", {task.note}" if task.note else "")
            )

    def say(self, text: str) -> None:
        """A line on stderr, unless quiet."""
        if not self.quiet:
            say(text)

    def say_each(self, sentences: Iterable[str]) -> None:
        """A line on stderr for each, indented as what belongs to a stage, unless quiet."""
        for sentence in sentences:
            self.say(f"  {sentence}")


def say(text: str) -> None:
    """A line on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def clock(seconds: float) -> str:
    """Seconds as ``0:42``, ``3:05`` or ``1:02:03``."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
