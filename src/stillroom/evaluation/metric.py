"""What a metric declares of itself: how it is measured, what its numbers depend on, and what is shown of them."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillroom.core.errors import EnvironmentProblem
from stillroom.evaluation.sections import CardResult, Section

if TYPE_CHECKING:
    from stillroom.evaluation.bench import Bench
    from stillroom.recipe.recipe import Recipe

Result = dict[str, Any]
"""What a metric returns: JSON. Two keys mean the same in every metric: ``bounds`` (required) holds by name ``[value, low,
high]`` of every number of the student that a recipe may bound, ``low`` and ``high`` being None without an interval;
``warnings`` (optional) holds sentences that the terminal and the report show."""
NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Beside:
    """What is beside a number of the student in the terminal.

    Attributes:
        teacher: The teacher's.
        baseline: The baseline's.
        p_value: McNemar's test of the student against its teacher on the same items.
    """

    teacher: float | None = None
    baseline: float | None = None
    p_value: float | None = None


def without_bounds(result: Result) -> Result:
    """A result as the summary shows it by default."""
    return {key: value for key, value in result.items() if key != "bounds"}


def beside(result: Result, key: str) -> Beside:
    """Looks where most results have it: ``models.NAME.KEY`` (a number or its ``value``), ``compared`` for the test."""
    found = {}
    for name in ("teacher", "baseline"):
        value = result.get("models", {}).get(name, {}).get(key)
        found[name] = value.get("value") if isinstance(value, dict) else value
    return Beside(found["teacher"], found["baseline"], p_value(result, key))


def p_value(result: Result, key: str) -> float | None:
    """The p-value of a paired test of student and teacher, where there was one."""
    test = result.get("compared", {}).get("student_minus_teacher", {}).get(key, {})
    found: float | None = test.get("p_value") if isinstance(test, dict) else None
    return found


@dataclass(frozen=True)
class Metric:
    """A metric. A file of `stillroom.evaluation.metrics` (or an entry point of the group ``stillroom.metrics``) has one.

    Attributes:
        name: Its name: that of its file or entry point, of its result's file, and in recipes and bounds.
        function: Measures.
        what: What it measures, for the progress display.
        settings: Keys of the recipe's section `evaluate` that it reads, besides those of intervals.
        version: Raised when its numbers come to mean something else; finished results of another are measured again.
        order: Metrics are done and shown in this order, then by name.
        require: Refuses what a recipe asks of it and is not there (a missing file, an unknown name), before anything is spent.
        extra_inputs: Digests, as JSON, of what else its numbers depend on, such as the files that its settings name.
        summary: What ``summary.json`` has of a result.
        sections: What the report shows of it.
        weaknesses: Where the student is weaker than its teacher, in sentences.
        card: Results in the head of the model card.
        beside: What the terminal shows beside a number.
        details: Beginnings of the names of numbers that the terminal leaves out.
        numbers: Names of ``bounds``, or patterns of them (``*.retention``), so that a bound on another is refused before
            anything is spent; none where they are not known before.
        with_endpoint: Whether it can be measured where the teacher is behind an endpoint: all that is known of it then is
            ``bench.listed``.
    """

    name: str
    function: Callable[[Bench], Result]
    what: str
    settings: tuple[str, ...] = ()
    version: int = 1
    order: int = 100
    require: Callable[[Recipe], None] = lambda _: None
    extra_inputs: Callable[[Bench], dict[str, Any]] = lambda _: {}
    summary: Callable[[Result], Result] = without_bounds
    sections: Callable[[Result], list[Section]] = lambda _: []
    weaknesses: Callable[[Result], list[str]] = lambda _: []
    card: Callable[[Result], list[CardResult]] = lambda _: []
    beside: Callable[[Result, str], Beside] = beside
    details: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    with_endpoint: bool = False

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"a metric's name has small letters, digits and _, and begins with a letter: {self.name!r}"
            )

    def has(self, number: str) -> bool:
        """Whether it may measure a number of this name."""
        return not self.numbers or any(fnmatch.fnmatchcase(number, pattern) for pattern in self.numbers)

    def measure(self, bench: Bench) -> Result:
        """Measure.

        Raises:
            EnvironmentProblem: It returns something else than a metric has to.
        """
        result = self.function(bench)
        bounds = result.get("bounds") if isinstance(result, dict) else None
        if not isinstance(bounds, dict) or not all(
            isinstance(entry, (list, tuple)) and len(entry) == 3 for entry in bounds.values()
        ):
            raise EnvironmentProblem(
                f"The metric `{self.name}` returned a result without `bounds`.",
                "It has to return a dict whose `bounds` has a list [value, low, high] by name (docs/contributing/metric.md).",
            )
        strange = [name for name in bounds if not self.has(name)]
        if strange:
            raise EnvironmentProblem(
                f"The metric `{self.name}` measured `{strange[0]}`, which is not among its `numbers`.",
                "Add it to `numbers` (docs/contributing/metric.md).",
            )
        try:
            json.dumps(result)
        except (TypeError, ValueError) as error:
            raise EnvironmentProblem(
                f"The metric `{self.name}` returned what JSON cannot hold: {error}.",
                "It has to return dicts, lists, texts and Python's own numbers: float(x) of a tensor or array.",
            ) from error
        return result
