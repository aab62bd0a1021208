"""Finds the shape of least predicted loss within limits."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise, product

from stillroom.core.errors import RecipeError
from stillroom.students.limits import Limits
from stillroom.students.shape import Anatomy, Shape

AXES = ("layers", "channels", "groups", "hidden")
WORDS = {"parameters": "parameters", "file_bytes": "bytes of file", "memory_bytes": "bytes of memory"}


@dataclass(frozen=True)
class LossModel:
    """Predicted KL to the teacher of a shape: the sum over axes of measured curves.

    Attributes:
        teacher: The uncut shape.
        curves: For each axis, (size, KL) as measured, ascending in size; the teacher's own size has KL 0.

    Between measured sizes the KL is taken to be linear; below the smallest, the last slope goes on.
    """

    teacher: Shape
    curves: dict[str, list[tuple[int, float]]]

    def predict(self, shape: Shape) -> float:
        """KL to the teacher in nats per token, before training."""
        return sum((self.of_axis(axis, getattr(shape, axis)) for axis in AXES), 0.0)

    def of_axis(self, axis: str, size: int) -> float:
        """What one axis adds."""
        whole = getattr(self.teacher, axis)
        if size >= whole:
            return 0.0
        points = self._monotone[axis]
        if len(points) == 1:
            # Nothing was measured: as bad as it is large.
            return float(10.0 * (1 - size / whole))
        for (left, high), (right, low) in pairwise(points):
            if size <= right:
                return max(0.0, low + (high - low) * (right - size) / (right - left))
        return 0.0

    @functools.cached_property
    def _monotone(self) -> dict[str, list[tuple[int, float]]]:
        return {axis: monotone([*self.curves.get(axis, []), (getattr(self.teacher, axis), 0.0)]) for axis in AXES}


def monotone(points: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    """Points ascending in size whose KL never rises with size: noise is taken out by the larger neighbour's value."""
    found: list[tuple[int, float]] = []
    floor = 0.0
    for size, value in sorted(dict(points).items(), reverse=True):
        floor = max(floor, value)
        found.append((size, floor))
    return found[::-1]


@dataclass(frozen=True)
class Choice:
    """A shape, what it takes, and its predicted loss."""

    shape: Shape
    measured: dict[str, float]
    loss: float


@dataclass(frozen=True)
class Solution:
    """The chosen shape, and the best others that were rejected, by what they would have pruned instead."""

    chosen: Choice
    alternatives: dict[str, Choice]


def sizes(whole: int, step: int, least: int) -> list[int]:
    """Sizes of an axis to consider: multiples of ``step`` from ``least`` on, and the whole."""
    return sorted({*range(max(step, -(-least // step) * step), whole, step), whole})


def grid(teacher: Shape, fixed: dict[str, int], axes: Iterable[str], vocabulary: int) -> list[Shape]:
    """Shapes to consider.

    Widths are multiples of 256 where the teacher's width has at least four of them, which GGUF's K-types pack without
    rest; else of a sixteenth of the width, rounded to whole blocks of 32 where it is that large.

    Args:
        teacher: The uncut shape.
        fixed: Sizes that are given.
        axes: Axes that may be pruned; the others stay whole.
        vocabulary: Rows of the student's embedding.
    """
    free = set(axes)
    options = []
    for axis in AXES:
        whole = getattr(teacher, axis)
        if axis in fixed:
            options.append([fixed[axis]])
        elif axis not in free:
            options.append([whole])
        elif axis in ("channels", "hidden"):
            step = 256 * -(-whole // (256 * 16)) if whole >= 1024 else max(1, whole // 16 if whole < 512 else 32)
            options.append(sizes(whole, step, max(1, whole // 8)))
        else:
            options.append(list(range(1, whole + 1)))
    return [Shape(a, b, c, d, vocabulary) for a, b, c, d in product(*options)]


def solve(anatomy: Anatomy, limits: Limits, model: LossModel, shapes: list[Shape]) -> Solution:
    """The shape of least predicted loss that fits; of equals the one with more parameters.

    Raises:
        RecipeError: Nothing fits; names the limit that binds and the nearest value that could be met. Or the given sizes
            do not go together.
    """
    possible = [shape for shape in shapes if anatomy.possible(shape)]
    if not possible:
        anatomy.require_possible(shapes[-1])
    choices = [Choice(shape, limits.measure(anatomy, shape), model.predict(shape)) for shape in possible]
    fitting = [choice for choice in choices if not limits.broken(choice.measured)]
    if not fitting:
        raise _infeasible(limits, choices)

    def rank(choice: Choice) -> tuple[float, float]:
        return (choice.loss, -choice.measured["parameters"])

    chosen = min(fitting, key=rank)
    others = [choice for choice in fitting if choice is not chosen]
    alternatives = {}
    for axis in AXES:
        only = [choice for choice in others if _cuts_only(axis, choice.shape, anatomy.teacher)]
        if only:
            alternatives[f"{axis} only"] = min(only, key=rank)
    if others:
        alternatives["next best"] = min(others, key=rank)
    return Solution(chosen, alternatives)


def require_pruned(teacher: Shape, choice: Choice, limits: Limits | None = None) -> str:
    """Refuse a student that would be the teacher itself, copied for the price of a whole run.

    Args:
        teacher: The unpruned shape.
        choice: What was chosen: the given sizes, or the solver's choice of least predicted loss within a target, which is the
            unpruned shape wherever that fits.
        limits: The target; None where there is none.

    Returns:
        Where only the vocabulary is trimmed, a sentence that says so; otherwise an empty string.

    Raises:
        RecipeError: Nothing would be pruned.
    """
    # More than the teacher has is refused elsewhere.
    if any(getattr(choice.shape, axis) != getattr(teacher, axis) for axis in (*AXES, "experts")):
        return ""
    why = "`student` names no size to prune to and no target"
    if limits is not None:
        asked = [name for name in choice.measured if getattr(limits, name) is not None]
        takes = (f"{choice.measured[name]:,.0f} of {getattr(limits, name):,.0f} {_words(name)}" for name in asked)
        why = f"the teacher already fits `student.target` ({', '.join(takes)})"
    if choice.shape.vocabulary < teacher.vocabulary:
        return (
            f"Only the vocabulary is trimmed, from {teacher.vocabulary:,} to {choice.shape.vocabulary:,} ids: {why}, so "
            "no layer and no width is pruned."
        )
    size = f"`student.layers: {max(1, teacher.layers // 2)}`"
    raise RecipeError(
        f"Nothing to prune: {why}, and every id of the vocabulary stays. The student would be the teacher itself.",
        f"Give {'a tighter target' if limits else 'a target'}, or a size such as {size}. To train a copy of the teacher all "
        "the same, name it: `student: {kind: existing, name: …}`.",
    )


def _words(name: str) -> str:
    return WORDS.get(name, "tokens per second")


def shortlist(solution: Solution, count: int) -> list[Choice]:
    """The chosen one and the best turned-down ones, each shape once."""
    found = [solution.chosen]
    for choice in sorted(solution.alternatives.values(), key=lambda choice: choice.loss):
        if all(choice.shape != other.shape for other in found):
            found.append(choice)
    return found[:count]


def _cuts_only(axis: str, shape: Shape, teacher: Shape) -> bool:
    return all(getattr(shape, other) >= getattr(teacher, other) for other in AXES if other != axis)


def _infeasible(limits: Limits, choices: list[Choice]) -> RecipeError:
    """Names the limit that binds, and the nearest values with which there would be a student."""

    def distance(choice: Choice) -> tuple[int, float]:
        misses = [_miss(name, choice.measured[name], limits) for name in limits.broken(choice.measured)]
        return len(misses), max(misses)

    nearest = min(choices, key=distance)
    broken = limits.broken(nearest.measured)
    binding = max(broken, key=lambda name: _miss(name, nearest.measured[name], limits))
    asked, value = getattr(limits, binding), nearest.measured[binding]
    if binding == "decode_tokens_per_second":
        what = f"`student.target.{binding}` is {asked:g}; the nearest student reaches {value:.4g}"
    else:
        what = f"`student.target.{binding}` is {asked:,}; the nearest student has {value:,.0f} {WORDS[binding]}"
    values = ", ".join(f"`{name}: {_round(name, nearest.measured[name])}`" for name in broken)
    return RecipeError(
        f"{what} ({nearest.shape.words()}).",
        f"The nearest target that can be met has {values}; or allow more axes, or fewer ids.",
    )


def _round(name: str, value: float) -> str:
    """A value that the same student still meets."""
    return f"{math.floor(value * 1000) / 1000}" if name == "decode_tokens_per_second" else str(math.ceil(value))


def _miss(name: str, value: float, limits: Limits) -> float:
    """By how much, as a factor, a limit is missed."""
    asked = float(getattr(limits, name))
    return asked / value if name == "decode_tokens_per_second" else value / asked
