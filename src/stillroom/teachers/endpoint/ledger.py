"""What requests to an endpoint cost: a hard cap, and a file that survives kills.

Every request is written down before it is sent and again when it ended. What was sent and never ended counts as spent, at its
worst case: the server may have charged for it. Where the disk is full when a request ended, its answer is handed on all the
same, and that it ended is written with what is written next.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.core import files
from stillroom.core.errors import TeacherError

NAME = "spending.jsonl"
"""In a run's folder."""
MILLION = 1_000_000
SPARE = 4096
"""Tokens that a server may put around a text, such as a system message of its own, or think besides: what it charges for them
has to be booked."""
MOST = 1 << 40
"""No request has as many tokens, and no run as many requests."""


@dataclass(frozen=True)
class Price:
    """Prices per million tokens, and the most that may be spent, all in one currency.

    Attributes:
        input: Of a million prompt tokens.
        output: Of a million generated tokens.
        cap: The most that all requests of a run may cost together; None: no limit.
    """

    input: float = 0.0
    output: float = 0.0
    cap: float | None = None

    def of(self, tokens_in: int, tokens_out: int) -> float:
        """What a request costs."""
        return (tokens_in * self.input + tokens_out * self.output) / MILLION


@dataclass
class Totals:
    """What was spent so far."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    unknown: int = 0
    """Requests that ended in no one knows what: they count at their worst case."""


class Ledger:
    """Reserves before a request, books after it. Safe for threads.

    Args:
        path: The file; None keeps nothing (a probe outside any run).
        price: Prices and cap.
        earlier: Files of the same run, of teachers that its recipe calls otherwise now: what they spent counts too.
    """

    def __init__(self, path: Path | None, price: Price, earlier: Sequence[Path] = ()) -> None:
        self.path = path
        self.price = price
        self.totals = Totals()
        self._lock = threading.Lock()
        self._reserved: dict[int, tuple[int, int]] = {}
        self._next = 0
        self._told = False
        self._unwritten: list[dict[str, Any]] = []
        for other in earlier:
            self._read(other)
        if path is not None:
            self._read(path)

    @property
    def spent(self) -> float:
        """Cost of what ended, and the worst case of what is under way."""
        return self.totals.cost + sum(self.price.of(*tokens) for tokens in self._reserved.values())

    def reserve(self, tokens_in: int, tokens_out: int, what: str) -> int:
        """Write down a request that is about to be sent; returns its number.

        Args:
            tokens_in: Prompt tokens at most.
            tokens_out: Generated tokens at most.
            what: What is asked for, such as a piece's address.

        Raises:
            TeacherError: It might cost more than is left.
            OSError: The file cannot be written; nothing may be sent.
        """
        with self._lock:
            cost = self.price.of(tokens_in, tokens_out)
            if self.price.cap is not None and self.spent + cost > self.price.cap:
                raise CapReached(
                    f"The spend cap is reached: {self.spent:.6g} of `teacher.price.cap: {self.price.cap:g}` is spent, and the "
                    f"next request may cost {cost:.6g}. It was not sent.",
                    "Everything that was received is kept. Raise the cap, or take less text, and give the same command again.",
                )
            number = self._next
            self._next += 1
            self._write({"request": number, "state": "sent", "in": tokens_in, "out": tokens_out, "what": what})
            self._reserved[number] = (tokens_in, tokens_out)
            return number

    def book(self, number: int, status: str, tokens_in: int, tokens_out: int, seconds: float = 0.0) -> None:
        """Write down how a request ended; where the file cannot be written, with the next line or :meth:`settle`: the answer
        is paid for, and is not to be lost with the line.

        Args:
            number: What :meth:`reserve` returned.
            status: In a word: an HTTP status, or ``unknown`` where the server may have charged.
            tokens_in: Prompt tokens that are paid for; where they are far more than were reserved, the reservation counts.
            tokens_out: Generated tokens that are paid for; the same.
            seconds: What it took.
        """
        with self._lock:
            tokens_in, tokens_out = self._possible((tokens_in, tokens_out), self._reserved[number])
            entry = {"request": number, "state": "ended", "in": tokens_in, "out": tokens_out, "status": status}
            with contextlib.suppress(OSError):
                self._write({**entry, "seconds": round(seconds, 3)}, late=True)
            del self._reserved[number]
            self._add(tokens_in, tokens_out, unknown=status == "unknown")

    def settle(self) -> None:
        """Write what could not be written when its request ended.

        Raises:
            OSError: It still cannot be written: those requests count at their worst case from then on.
        """
        with self._lock:
            self._write()

    def fail(self, number: int) -> None:
        """A request of which no one knows whether it was charged."""
        self.book(number, "unknown", *self._reserved[number])

    def _possible(self, said: tuple[int, int], reserved: tuple[int, int]) -> tuple[int, int]:
        """What a request may have cost, out of what the server said of it; what was reserved where that cannot be."""
        tokens_in = said[0] if 0 <= said[0] <= reserved[0] + SPARE else reserved[0]
        tokens_out = said[1] if 0 <= said[1] <= reserved[1] + SPARE else reserved[1]
        if (tokens_in, tokens_out) != said and not self._told:
            self._told = True
            logging.getLogger("stillroom.teachers").warning(
                "The endpoint counted more tokens for a request than it can have had (%d in, %d out at most). "
                "What was reserved is booked instead, here and wherever it does so again.",
                *reserved,
            )
        return tokens_in, tokens_out

    def _add(self, tokens_in: int, tokens_out: int, *, unknown: bool) -> None:
        self.totals.requests += 1
        self.totals.tokens_in += tokens_in
        self.totals.tokens_out += tokens_out
        self.totals.cost += self.price.of(tokens_in, tokens_out)
        self.totals.unknown += unknown

    def _write(self, *new: dict[str, Any], late: bool = False) -> None:
        """Write lines behind those that could not be written before.

        Args:
            new: The lines.
            late: Write them with the next ones where they cannot be written now.
        """
        lines = [*self._unwritten, *new]
        if self.path is None or not lines:
            return
        if late:
            self._unwritten = lines
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.append(self.path, "".join(json.dumps(line) + "\n" for line in lines).encode())
        self._unwritten = []

    def _read(self, path: Path) -> None:
        """What an earlier process spent.

        Raises:
            TeacherError: A line of the file cannot be.
        """
        sent: dict[int, tuple[int, int]] = {}
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return
        if data and not data.endswith(b"\n"):
            # A kill cut the last line off: nothing after it may be lost with it.
            with path.open("ab") as file:
                file.write(b"\n")
        for place, line in enumerate(data.splitlines(), 1):
            try:
                entry = json.loads(line)
                number, tokens = int(entry["request"]), (int(entry["in"]), int(entry["out"]))
                ended, status = entry["state"] == "ended", str(entry.get("status"))
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            except OverflowError:
                raise _damaged(path, place) from None
            if ended and number in sent:
                tokens = self._possible(tokens, sent[number])
            if not all(0 <= count < MOST for count in (number, *tokens)):
                raise _damaged(path, place)
            self._next = max(self._next, number + 1)
            if ended:
                sent.pop(number, None)
                self._add(*tokens, unknown=status == "unknown")
            else:
                sent[number] = tokens
        for tokens in sent.values():
            self._add(*tokens, unknown=True)


def _damaged(path: Path, line: int) -> TeacherError:
    return TeacherError(
        f"{path}, line {line}: a request cannot have had so many tokens or such a number.",
        "The file was changed. Correct that line: what it has counts towards `teacher.price.cap`.",
    )


class CapReached(TeacherError):
    """The next request might cost more than the owner allows."""
