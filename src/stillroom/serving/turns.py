"""Whose work an engine does next: what is long to read is read in pieces, and each piece waits for those who have used less.

An engine takes a step for all requests at once: one token of each answer, and with them as many tokens of prompts as fit its
batch. So a long prompt of one key makes every step of the others' answers as long as its batch. Where a server has several
keys, a prompt that is longer than a batch is therefore read ahead (the engine keeps what it has read): batch by batch, and as
long as somebody else is being answered a few tokens at a time, one such piece of all at once, and the next of the key that has
used the engine least of late. With one key nothing of this happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator

PIECE = 32
"""Tokens of a prompt that are read at a time while others are answered: about what two steps of an answer cost."""
HALF_SECONDS = 20.0
"""After this time half of what a key has used is forgotten."""
MOST_SECONDS = 2.0
"""A piece waits no longer than this for others."""
_LOOK_SECONDS = 0.005


class Turns:
    """The use that each key makes of one engine."""

    def __init__(self) -> None:
        self._used: defaultdict[str, float] = defaultdict(float)
        self._at: dict[str, float] = {}
        self._active: dict[object, tuple[str, float]] = {}
        self._waiting: dict[object, str] = {}
        self._answered: Counter[str] = Counter()
        self._taken = False

    @contextlib.contextmanager
    def working(self, owner: str) -> Iterator[None]:
        """While the engine works for somebody, it is being used."""
        mine = object()
        self._active[mine] = (owner, time.monotonic())
        self._at.setdefault(owner, time.monotonic())
        try:
            yield
        finally:
            _, begun = self._active.pop(mine)
            self._charge(owner, time.monotonic() - begun)

    @contextlib.contextmanager
    def answering(self, owner: str) -> Iterator[None]:
        """While somebody's answer is written: a long prompt is read meanwhile in small pieces."""
        self._answered[owner] += 1
        try:
            yield
        finally:
            self._answered[owner] -= 1

    def contested(self, owner: str) -> bool:
        """Whether somebody else is being answered."""
        return any(count for other, count in self._answered.items() if other != owner)

    def weight(self, owner: str) -> float:
        """How much somebody has used of late, in seconds; work that is under way counts."""
        now = time.monotonic()
        used = self._used.get(owner, 0.0) * math.pow(0.5, (now - self._at.get(owner, now)) / HALF_SECONDS)
        return used + sum(now - begun for other, begun in self._active.values() if other == owner)

    def _charge(self, owner: str, seconds: float) -> None:
        now = time.monotonic()
        self._used[owner] = self._used[owner] * math.pow(0.5, (now - self._at[owner]) / HALF_SECONDS) + seconds
        self._at[owner] = now
        if len(self._at) > 1024:
            for other in sorted(self._at, key=lambda each: self._at[each])[:512]:
                self._at.pop(other)
                self._used.pop(other, None)

    def is_next(self, owner: str) -> bool:
        """Whether no one who uses the engine or waits for it has used less."""
        others = {other for other, _ in self._active.values()} | set(self._waiting.values())
        mine = self.weight(owner)
        return all(self.weight(other) >= mine for other in others - {owner})

    @contextlib.asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """One piece of work, when it is its turn; one at a time."""
        until, mine = time.monotonic() + MOST_SECONDS, object()
        self._waiting[mine] = owner
        try:
            while self._taken or not (self.is_next(owner) or time.monotonic() > until):
                await asyncio.sleep(_LOOK_SECONDS)
            self._taken = True
        finally:
            del self._waiting[mine]
        try:
            yield
        finally:
            self._taken = False
