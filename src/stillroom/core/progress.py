"""Progress on stderr: bars with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress

PLAIN_EVERY_SECONDS = 10.0


@dataclass
class Task:
    """One piece of work of known length."""

    title: str
    total: float
    unit: str
    done: float = 0.0
    note: str = ""
    quiet: bool = False
    begun_at: float = 0.0
    started: float = field(default_factory=time.monotonic)
    _bar: tuple[rich.progress.Progress, rich.progress.TaskID] | None = None
    _said: float = field(default_factory=time.monotonic)

    def advance(self, amount: float, note: str = "") -> None:
        """Say that more is done."""
        self.done += amount
        if note:
            self.note = note
        if self._bar is not None:
            bar, number = self._bar
            bar.update(number, advance=amount, note=self.note, rate=self.rate)
        elif not self.quiet and time.monotonic() - self._said >= PLAIN_EVERY_SECONDS and self.done < self.total:
            self._said = time.monotonic()
            say(f"  {self.title}: {self.line()}")

    def skip(self, amount: float) -> None:
        """Count what an earlier process did already; it does not count into the rate."""
        self.begun_at += amount
        self.done += amount
        if self._bar is not None:
            bar, number = self._bar
            bar.update(number, advance=amount)

    @property
    def rate(self) -> str:
        """Units a second so far."""
        elapsed = time.monotonic() - self.started
        rate = (self.done - self.begun_at) / elapsed if elapsed > 0 else 0.0
        return f"{rate:,.0f} {self.unit}/s" if rate >= 10 else f"{rate:.1f} {self.unit}/s"

    def line(self) -> str:
        """Share done, rate and time left in words."""
        share = self.done / self.total if self.total else 1.0
        elapsed = time.monotonic() - self.started
        new = self.done - self.begun_at
        left = (self.total - self.done) * elapsed / new if new > 0 else 0.0
        note = f", {self.note}" if self.note else ""
        return f"{share:4.0%}, {self.rate}, {clock(left)} left{note}"


class Progress:
    """Draws tasks one after the other. ``quiet`` draws nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    @contextlib.contextmanager
    def task(self, title: str, total: float, unit: str = "tokens") -> Iterator[Task]:
        """A task that is drawn while the body runs; a closing line says how long it took."""
        task = Task(title, total, unit, quiet=self.quiet)
        if self.quiet:
            yield task
            return
        if not sys.stderr.isatty():
            yield task
        else:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            bar = Progress(
                TextColumn("  {task.description:<22}"),
                BarColumn(bar_width=28),
                TextColumn("{task.percentage:>3.0f}%  {task.fields[rate]:>14}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=True,
            )
            with bar:
                task._bar = bar, bar.add_task(title, total=total, rate="", note="")
                yield task
        elapsed = time.monotonic() - task.started
        if elapsed >= 1.0:
            say(
                f"  {title}: {task.done:,.0f} {unit} in {clock(elapsed)}, {task.rate}"
                + (f", {task.note}" if task.note else "")
            )

    def say(self, text: str) -> None:
        """A line on stderr, unless quiet."""
        if not self.quiet:
            say(text)


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
