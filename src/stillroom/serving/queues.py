"""Waiting for what there is little of, so that no client waits for all requests of another."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from stillroom.core.errors import UsageError

_MOST_REMEMBERED = 1024


class QueueFull(UsageError):
    """As many requests wait as may."""


@dataclass(eq=False)
class _Waiter:
    """A request that waits."""

    owner: str


class FairQueue:
    """A queue in which every client has one of its own: the next is, of the clients who may have one more, the one who has the
    fewest, and of those the one who was served longest ago.

    Args:
        held: How many each client has.
        may_have: Whether a client may have one more now.
        most: How many requests of one client may wait.
        full: What one more is told, a sentence.
    """

    def __init__(self, held: Callable[[], Counter[str]], may_have: Callable[[str], bool], most: int, full: str) -> None:
        self._held, self._may_have, self._most, self._full = held, may_have, most, full
        self._waiting: list[_Waiter] = []
        self._served: dict[str, float] = {}
        self._changed = asyncio.Condition()

    def __len__(self) -> int:
        return len(self._waiting)

    @contextlib.asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """Begins when it is a request's turn; what it takes is to be in ``held`` when this ends.

        Raises:
            QueueFull: As many requests of this client wait as may.
        """
        async with self._changed:
            if self._waiting or not self._may_have(owner):
                if sum(each.owner == owner for each in self._waiting) >= self._most:
                    raise QueueFull(self._full, "Ask again in a moment.")
                mine = _Waiter(owner)
                self._waiting.append(mine)
                try:
                    await self._changed.wait_for(lambda: self._next() is mine)
                finally:
                    # Also one that goes away: the next may be waiting for that alone.
                    self._waiting.remove(mine)
                    self._changed.notify_all()
            if len(self._served) > _MOST_REMEMBERED:
                self._served.clear()
            self._served[owner] = time.monotonic()
            yield

    async def given_back(self) -> None:
        """Say that something is free again."""
        async with self._changed:
            self._changed.notify_all()

    def _next(self) -> _Waiter | None:
        held = self._held()
        able = [each for each in self._waiting if self._may_have(each.owner)]
        return min(able, key=lambda each: (held[each.owner], self._served.get(each.owner, 0.0)), default=None)
