"""Which teachers a recipe's sources are learned from: one for each source, or a mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OWN = "teacher"
"""The name of the recipe's section `teacher` among the others."""


@dataclass(frozen=True)
class Route:
    """Sources that are learned from the same teachers.

    Attributes:
        weights: Names of the teachers, sorted, with their weights, which sum to 1. The signal is the weighted mean of their
            distributions.
        sources: Indices of the sources, ascending.
    """

    weights: tuple[tuple[str, float], ...]
    sources: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The teachers."""
        return tuple(name for name, _ in self.weights)

    @property
    def label(self) -> str:
        """As people read it: a name, or names with weights."""
        if len(self.weights) == 1:
            return self.names[0]
        return " + ".join(f"{weight:.3g} {name}" for name, weight in self.weights)


def routes_of(asked: Sequence[str | Mapping[str, float] | None]) -> tuple[Route, ...]:
    """The routes of sources, in the order in which they first occur.

    Args:
        asked: What each source says as its ``teacher``.
    """
    found: dict[tuple[tuple[str, float], ...], list[int]] = {}
    for index, value in enumerate(asked):
        given = {OWN if value is None else value: 1.0} if value is None or isinstance(value, str) else dict(value)
        total = sum(given.values())
        found.setdefault(tuple((name, given[name] / total) for name in sorted(given)), []).append(index)
    return tuple(Route(weights, tuple(sources)) for weights, sources in found.items())
