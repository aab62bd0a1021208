"""A Ray whose workers die, hang and fail as a test says."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace
from typing import Any

from stillroom.core.errors import SignalError


class RayError(Exception):
    pass


class ActorDied(RayError):
    pass


class TaskFailed(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class MadeUpRay:
    """Ray as the queue sees it: references come true in an order of chance; actors die of chance or by name.

    Where it is ``real``, actors do what they do, in this process, and else they give back what workers of a capture do.
    """

    def __init__(
        self, seed: int, deaths: int = 0, spare: int = 1000, fails: dict[str, int] | None = None, *, real: bool = False
    ) -> None:
        self.random = random.Random(seed)
        self.deaths = deaths
        self.spare = spare
        self.real = real
        self.fails = dict(fails or {})
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=TaskFailed)
        self.numbers = itertools.count()
        self.pending: dict[int, tuple[Any, str | None]] = {}
        self.results: dict[int, Any] = {}
        self.made: list[str] = []
        self.alive: set[int] = set()
        self.stuck: set[str] = set()

    def remote(self, **_: Any) -> Any:
        world = self

        class Actor:
            def __init__(self, own: Any) -> None:
                self.number = next(world.numbers)
                self.own = own
                self.ready = SimpleNamespace(remote=lambda: world.ask(self, None))
                self.make = SimpleNamespace(remote=lambda name: world.ask(self, name))

        return lambda kind: SimpleNamespace(remote=lambda *given: Actor(kind(*given) if world.real else None))

    def ask(self, actor: Any, name: str | None) -> int:
        reference = next(self.numbers)
        self.pending[reference] = (actor, name)
        return reference

    def wait(self, references: list[int], **_: Any) -> tuple[list[int], list[int]]:
        there = [one for one in references if one in self.results]
        if not there:
            able = [one for one in references if one in self.pending and self._can(*self.pending[one])]
            if able:
                there = [self._do(self.random.choice(able))]
        return there[:1], []

    def _can(self, actor: Any, name: str | None) -> bool:
        # An actor waits for a place on a node for ever where nothing is spare.
        if name is None:
            return len(self.alive) < self.spare
        return name not in self.stuck or (self.stuck.discard(name) is not None)

    def _do(self, reference: int) -> int:
        actor, name = self.pending.pop(reference)
        if name is None:
            self.alive.add(actor.number)
            self.results[reference] = actor.number
        elif self.deaths and self.random.random() < 0.3:
            self.deaths -= 1
            self.spare -= self.random.random() < 0.5 and self.spare > 1
            self.alive.discard(actor.number)
            for other, (owner, _) in list(self.pending.items()):
                if owner is actor:
                    del self.pending[other]
                    self.results[other] = ActorDied()
            self.results[reference] = ActorDied()
        elif self.fails.get(name, 0):
            self.fails[name] -= 1
            self.results[reference] = TaskFailed(SignalError("the teacher is broken", "mend it"))
        else:
            first = name not in self.made
            self.made.append(name)
            self.results[reference] = actor.own.make(name) if self.real else (actor.number, first)
        return reference

    def get(self, reference: int) -> Any:
        found = self.results.pop(reference)
        if isinstance(found, Exception):
            raise found
        return found

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}
