"""Metrics by name: the files of `stillroom.evaluation.metrics`, and what other packages name under ``stillroom.metrics``.

Which names there are is known without importing any; each is imported when it is first needed.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from stillroom.core.errors import EnvironmentProblem, RecipeError, StillroomError, UsageError
from stillroom.evaluation.metric import Metric, Result

if TYPE_CHECKING:
    from stillroom.recipe.recipe import Recipe

GROUP = "stillroom.metrics"
PACKAGE = "stillroom.evaluation.metrics"


@functools.cache
def _sources() -> dict[str, tuple[str, Callable[[], Any]]]:
    """By name: where a metric comes from, in words, and what imports it.

    Raises:
        EnvironmentProblem: Two have the same name.
    """
    found: dict[str, tuple[str, Callable[[], Any]]] = {}
    for module in pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__):
        found[module.name] = f"the module {PACKAGE}.{module.name}", functools.partial(_declared, module.name)
    for point in entry_points(group=GROUP):
        where = f"the entry point `{point.name} = {point.value}` in the group `{GROUP}`"
        if point.name in found:
            raise EnvironmentProblem(
                f"Two metrics are called `{point.name}`: {found[point.name][0]} and {where}.",
                "Uninstall one of the two packages, or rename its entry point and its metric.",
            )
        found[point.name] = where, point.load
    return found


def _declared(name: str) -> Any:
    return getattr(importlib.import_module(f"{PACKAGE}.{name}"), "METRIC", None)


def names() -> list[str]:
    """Names of all metrics, sorted; imports none."""
    return sorted(_sources())


@functools.cache
def metric(name: str) -> Metric:
    """The metric of a name.

    Raises:
        UsageError: There is none; names those there are.
        EnvironmentProblem: What should be a metric cannot be imported, or is none.
    """
    if name not in _sources():
        raise UsageError(*_unknown(name, ""))
    where, load = _sources()[name]
    try:
        found = load()
    except StillroomError:
        raise
    except Exception as error:
        raise EnvironmentProblem(
            f"The metric `{name}` cannot be imported from {where}: {error}.", "Repair or uninstall its package."
        ) from error
    if not isinstance(found, Metric) or found.name != name:
        called = f"a metric called `{found.name}`" if isinstance(found, Metric) else "no metric"
        raise EnvironmentProblem(
            f"The metric `{name}` comes from {where}, which is {called}.",
            f"It has to name a stillroom.evaluation.metric.Metric whose `name` is {name!r}.",
        )
    return found


def find(name: str) -> Metric | None:
    """The metric of a name, or None where the package that had it is not installed any more."""
    return metric(name) if name in _sources() else None


def require_metrics(wanted: Iterable[str]) -> list[Metric]:
    """The metrics of these names, in the order in which they are done. Errors as in :func:`metric`."""
    return sorted((metric(name) for name in dict.fromkeys(wanted)), key=lambda found: (found.order, found.name))


def in_order(results: dict[str, Result]) -> dict[str, Result]:
    """Results by name in the order of metrics; those that no installed package knows are last."""
    known = [spec.name for spec in require_metrics(name for name in results if name in _sources())]
    return {name: results[name] for name in (*known, *(name for name in results if name not in known))}


def check_names(wanted: Iterable[str]) -> None:
    """Refuse a recipe that names a metric which there is not; imports none.

    Raises:
        RecipeError: There is no metric of a name; names those there are.
    """
    for name in wanted:
        if name not in _sources():
            raise RecipeError(*_unknown(name, "`evaluate.measures`: "))


def require_askable(recipe: Recipe) -> None:
    """Refuse, before anything is spent, what a recipe asks of its metrics and is not there.

    Raises:
        StillroomError: What the metric would raise: a file is missing or wrong, or a name is not known.
    """
    for spec in require_metrics(recipe.evaluate.measures):
        spec.require(recipe)


def _unknown(name: str, where: str) -> tuple[str, str]:
    """What is said of a name that no metric has, and what to do."""
    close = difflib.get_close_matches(name, names(), n=1)
    meant = f"Did you mean `{close[0]}`? " if close else ""
    message = f"{where}there is no metric `{name}`."
    return (
        message if where else message[0].upper() + message[1:],
        f"{meant}Known: {', '.join(names())}. Other packages add metrics by the entry point `{GROUP}`.",
    )
