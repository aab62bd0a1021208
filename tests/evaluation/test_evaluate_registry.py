"""Metrics by name: those of Stillroom, those of other packages, and what is wrong with either."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom import pipeline
from stillroom.core.errors import EnvironmentProblem, RecipeError, RunError, UsageError
from stillroom.evaluation import registry
from stillroom.evaluation.floors import require_measurable
from stillroom.evaluation.metric import Beside, Metric, Result, beside
from stillroom.evaluation.metrics import fidelity
from stillroom.evaluation.sections import Section
from stillroom.recipe.reading import recipe_of
from stillroom.reporting.report import sections, weaknesses
from stillroom.reporting.summary import brief

ORDER = ["fidelity", "languages", "memorisation", "samples", "cost", "tasks", "safeguards", "behaviour", "drafter"]
Plug = Callable[..., None]


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plug]:
    """Installs things as metrics: ``plug(name=thing)``; an exception is raised when it is imported."""

    class Point:
        def __init__(self, name: str, thing: Any) -> None:
            self.name, self.value, self.thing = name, f"{name}_package:METRIC", thing

        def load(self) -> Any:
            if isinstance(self.thing, Exception):
                raise self.thing
            return self.thing

    def install(**things: Any) -> None:
        points = [Point(name, thing) for name, thing in things.items()]
        monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "stillroom.metrics" else [])
        registry._sources.cache_clear()
        registry.metric.cache_clear()

    yield install
    monkeypatch.undo()
    registry._sources.cache_clear()
    registry.metric.cache_clear()


def toy(name: str = "toy", result: Any = None, **declared: Any) -> Metric:
    return Metric(name=name, function=lambda _: result, what="a toy", **declared)


def test_the_order_of_metrics_is_theirs_and_not_the_recipe_s(plug: Plug) -> None:
    plug(zebra=toy("zebra"), aardvark=toy("aardvark"))
    wanted = ["zebra", "aardvark", *reversed(ORDER)]
    assert [spec.name for spec in registry.require_metrics(wanted)] == [*ORDER, "aardvark", "zebra"]
    assert registry.names() == sorted(wanted)
    assert list(registry.in_order({name: {} for name in ("gone", *wanted)})) == [*ORDER, "aardvark", "zebra", "gone"]


def test_unknown_names_say_what_is_known_and_meant(plug: Plug) -> None:
    plug(toy=toy())
    registry.check_names([*ORDER, "toy"])
    with pytest.raises(RecipeError, match="no metric `fidelty`") as raised:
        registry.check_names(["fidelty"])
    assert "Did you mean `fidelity`?" in str(raised.value)
    assert all(name in str(raised.value) for name in [*ORDER, "toy"])


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (
            ModuleNotFoundError("No module named 'x'"),
            "cannot be imported from the entry point `toy = toy_package:METRIC`",
        ),
        (RuntimeError("broken"), "broken"),
        (print, "which is no metric"),
        (toy("other"), "a metric called `other`"),
    ],
)
def test_what_is_no_metric_is_named_when_it_is_needed(thing: Any, words: str, plug: Plug) -> None:
    plug(toy=thing)
    # The others are there all the same.
    assert registry.metric("fidelity") is fidelity.METRIC
    registry.check_names(["toy"])
    with pytest.raises(EnvironmentProblem, match="toy") as raised:
        registry.metric("toy")
    assert words in str(raised.value)


def test_two_metrics_of_one_name_are_refused(plug: Plug) -> None:
    plug(fidelity=toy("fidelity"))
    with pytest.raises(EnvironmentProblem, match="Two metrics are called `fidelity`"):
        registry.names()


@pytest.mark.parametrize("name", ["", "Toy", "a.b", "../toy", "1toy", "to y", "toy\n"])
def test_a_name_is_a_file_s_and_a_bound_s(name: str) -> None:
    with pytest.raises(ValueError, match="small letters"):
        toy(name)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (None, "without `bounds`"),
        ({}, "without `bounds`"),
        ({"bounds": {"x": 1.0}}, "without `bounds`"),
        ({"bounds": {"x": [1.0, None]}}, "without `bounds`"),
        ({"bounds": {}, "models": {1j}}, "JSON cannot hold"),
    ],
)
def test_a_result_of_another_form_is_refused(result: Any, words: str) -> None:
    with pytest.raises(EnvironmentProblem, match="`toy`") as raised:
        toy(result=result).measure(None)  # type: ignore[arg-type]
    assert words in str(raised.value)


@given(st.dictionaries(st.sampled_from(["teacher", "baseline", "student"]), st.floats(allow_nan=False)))
def test_numbers_beside_are_those_of_the_other_models(values: dict[str, float]) -> None:
    expected = Beside(values.get("teacher"), values.get("baseline"))
    assert beside({"models": {name: {"x": value} for name, value in values.items()}}, "x") == expected
    assert beside({"models": {name: {"x": {"value": value}} for name, value in values.items()}}, "x") == expected


def test_the_report_and_the_summary_show_what_a_metric_declares(plug: Plug) -> None:
    def shown(result: Result) -> list[Section]:
        return [Section("late", "Late", order=99), Section("early", f"Early {result['x']}", order=1)]

    first = toy("first", sections=shown, weaknesses=lambda result: [f"weak {result['x']}"], summary=lambda _: {"y": 2})
    plug(first=first, second=toy("second"))
    results = {
        "first": {"x": 1, "bounds": {}, "warnings": ["careful"]},
        "second": {"z": 3, "bounds": {}},
        "gone": {"w": 4, "bounds": {}},
    }
    assert [section.key for section in sections(results)] == ["early", "gone", "late"]
    assert sections(results)[0].title == "Early 1"
    assert "measures/gone.json" in str(sections(results)[1].parts)
    assert weaknesses(results) == ["weak 1", "careful"]
    assert brief(results) == {"first": {"y": 2}, "second": {"z": 3}, "gone": {"w": 4}}


def test_two_sections_with_one_anchor_are_refused(plug: Plug) -> None:
    plug(toy=toy(sections=lambda _: [Section("lineage", "Mine")]))
    with pytest.raises(EnvironmentProblem, match="`lineage`"):
        sections({"toy": {"bounds": {}}})


def test_the_registry_needs_no_heavy_library() -> None:
    import subprocess
    import sys

    program = (
        "import sys; from stillroom.evaluation.registry import check_names; check_names(['fidelity', 'tasks']); "
        "print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_bound_that_will_not_be_measured_is_refused_before_anything_is_sent(
    small_recipe: Any, tmp_path: Path
) -> None:
    teacher = {
        "kind": "endpoint",
        "base_url": "http://127.0.0.1:9",
        "model": "m",
        "tokenizer": "nowhere",
        "sends_text": True,
    }
    bound = {"floors": {"languages.en.retention": 0.5}, "ceilings": {"fidelity.kl_to_teacher": 1.0}}
    for kind, words in (
        ("floors", r"`languages\.en\.retention` will not be measured"),
        ("ceilings", "is a lower bound"),
    ):
        recipe = recipe_of(small_recipe("nowhere", teacher=teacher, evaluate={kind: bound[kind]}))
        with pytest.raises(RecipeError, match=words):
            pipeline.run(recipe, tmp_path, quiet=True)
    assert not list(tmp_path.iterdir())
    # Of a teacher that is here everything is measured.
    require_measurable(recipe_of(small_recipe("nowhere", evaluate=bound)))


@pytest.mark.parametrize(
    "name", ["fidelity.nope", "fidelity.top1_agrement", "languages.de.kept", "cost.size", "fidelity"]
)
def test_a_bound_on_a_number_that_no_metric_has_is_refused_before_anything_is_spent(
    name: str, small_recipe: Any, tmp_path: Path
) -> None:
    measures = ["fidelity", "cost", "languages"]
    recipe = recipe_of(small_recipe("nowhere", evaluate={"measures": measures, "floors": {name: 1.0}}))
    with pytest.raises(RecipeError, match=f"`{name}` is not a number that is measured"):
        pipeline.run(recipe, tmp_path, quiet=True)
    assert not list(tmp_path.iterdir())


def test_numbers_are_those_that_a_metric_names() -> None:
    metric = Metric(name="one", function=lambda _: {"bounds": {"b": [1, None, None]}}, what="", numbers=("a", "*.c"))
    assert [metric.has(number) for number in ("a", "x.c", "b", "")] == [True, True, False, False]
    with pytest.raises(EnvironmentProblem, match="measured `b`, which is not among its `numbers`"):
        metric.measure(None)  # type: ignore[arg-type]


def test_single_metrics_of_what_is_no_run_leave_nothing(small_recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the student is not trained yet"):
        pipeline.measure_only(small_recipe("nowhere"), ["fidelity"], tmp_path, quiet=True)
    own = {"kind": "existing", "name": "nowhere", "tokenizer": "own"}
    with pytest.raises(UsageError, match="`drafter` needs a student with the teacher's tokenizer"):
        pipeline.measure_only(small_recipe("nowhere", student=own), ["fidelity", "drafter"], tmp_path, quiet=True)
    assert not list(tmp_path.iterdir())
