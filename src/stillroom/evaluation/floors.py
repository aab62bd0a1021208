"""Quality gates of a recipe (``floors``: minimums, ``ceilings``: maximums): which a student misses."""

from __future__ import annotations

import difflib
from typing import Any, TypedDict

from stillroom.core.errors import FloorMissed, RecipeError
from stillroom.evaluation.metric import Result
from stillroom.evaluation.registry import require_metrics
from stillroom.recipe.evaluation import EvaluateConfig
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.teacher import EndpointTeacher
from stillroom.teachers.several import any_endpoint


class Bound(TypedDict):
    """A bound of a recipe and what was found."""

    name: str
    """Metric and number, such as ``languages.de.retention``."""
    kind: str
    """``floor`` or ``ceiling``."""
    bound: float
    value: float
    """The student's."""
    interval: list[float] | None
    met: bool
    certain: bool | None
    """Whether the whole interval is on the same side of the bound; None without an interval."""


def check_bounds(config: EvaluateConfig, results: dict[str, Result]) -> list[Bound]:
    """Every bound of a recipe with what was found. The value itself decides, not its interval.

    Raises:
        RecipeError: A bound's name is not a number that was measured.
    """
    found: list[Bound] = []
    for kind, bounds in (("floor", config.floors), ("ceiling", config.ceilings)):
        for name, bound in bounds.items():
            value, low, high = _look_up(name, results)
            above = kind == "floor"
            met = value >= bound if above else value <= bound
            certain = None
            if low is not None and high is not None:
                certain = low >= bound or high < bound if above else high <= bound or low > bound
            found.append(
                {
                    "name": name,
                    "kind": kind,
                    "bound": bound,
                    "value": value,
                    "interval": None if low is None or high is None else [low, high],
                    "met": met,
                    "certain": certain,
                }
            )
    return found


def require_measurable(recipe: Recipe) -> None:
    """Refuse, before anything is spent, a bound on a number that will not be measured.

    Raises:
        RecipeError: The metric has no number of this name, or needs the teacher itself, which is behind an endpoint; or the
            number is a lower bound, and its maximum is asked for.
    """
    why = None
    if recipe.student_with_own_tokenizer is not None:
        why = "the student has another tokenizer"
    elif any_endpoint(recipe):
        why = "an endpoint lists only a teacher's most probable tokens"
    bounded = [name for name in recipe.evaluate.ceilings if name.rpartition(".")[2] == "kl_to_teacher"]
    if why is not None and bounded:
        raise RecipeError(
            f"`evaluate.ceilings`: `{bounded[0]}` is a lower bound where {why}: no run could tell that the KL is below it.",
            "Leave it out, or set a minimum of the same next token: `evaluate.floors: {fidelity.top1_agreement: …}`.",
        )
    for name in (*recipe.evaluate.floors, *recipe.evaluate.ceilings):
        kind, _, number = name.partition(".")
        (metric,) = require_metrics([kind])
        if not metric.has(number):
            close = difflib.get_close_matches(number, metric.numbers, n=5, cutoff=0.3) or metric.numbers
            raise RecipeError(
                f"`evaluate.floors` or `ceilings`: `{name}` is not a number that is measured.",
                f"Such as: {', '.join(f'{kind}.{key}' for key in close)}.",
            )
    if not isinstance(recipe.teacher, EndpointTeacher):
        return
    for name in (*recipe.evaluate.floors, *recipe.evaluate.ceilings):
        (metric,) = require_metrics([name.partition(".")[0]])
        if not metric.with_endpoint:
            raise RecipeError(
                f"`evaluate.floors` or `ceilings`: `{name}` will not be measured: `{metric.name}` needs the teacher itself, "
                "and that is behind an endpoint.",
                "Leave the bound out, or take one of `fidelity` or `cost`.",
            )


def require_bounds(summary: dict[str, Any], where: str) -> None:
    """Refuse a student that misses a bound.

    Raises:
        FloorMissed: Names every bound that was missed, what was found and where the report is.
    """
    missed = [entry for entry in summary.get("bounds", ()) if not entry["met"]]
    if missed:
        words = "; ".join(sentence(entry) for entry in missed)
        sections = " and ".join(sorted({f"`evaluate.{entry['kind']}s`" for entry in missed}))
        raise FloorMissed(
            f"The student misses {len(missed)} of {len(summary['bounds'])} bounds of its recipe: {words}.",
            f"Everything was written: see {where}. Train longer, prune less, or change {sections} knowingly.",
        )


def sentence(entry: Bound) -> str:
    """A bound in words: ``languages.de.retention is 0.81, its minimum 0.9``."""
    kind = "minimum" if entry["kind"] == "floor" else "maximum"
    return f"{entry['name']} is {entry['value']:.4g}, its {kind} {entry['bound']:.4g}"


def _look_up(name: str, results: dict[str, Result]) -> tuple[float, float | None, float | None]:
    measure, _, rest = name.partition(".")
    bounds = results.get(measure, {}).get("bounds", {})
    if rest not in bounds or bounds[rest][0] is None:
        close = difflib.get_close_matches(rest, bounds, n=5, cutoff=0.3) or sorted(bounds)[:8]
        listed = ", ".join(f"{measure}.{key}" for key in close)
        raise RecipeError(
            f"`evaluate.floors` or `ceilings`: `{name}` is not a number that was measured.",
            f"Such as: {listed}." if listed else "",
        )
    value, low, high = bounds[rest]
    return value, low, high
