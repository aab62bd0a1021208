"""Lower bounds are told as such wherever a number of a summary is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stillroom.core.bounded import least
from stillroom.evaluation.compare import print_comparison
from stillroom.packages.bom import _metrics
from stillroom.packages.pack import _cell
from stillroom.recipe.recipe import Recipe
from stillroom.runs.run import Run

BOUND = {"kl_to_teacher": 0.5, "kl_is": "at least", "bits_per_byte": 1.5, "parameters": 7_000_000}
EXACT = {"kl_to_teacher": 0.5, "bits_per_byte": 1.5, "bits_are": "at least", "parameters": 7_000_000}


def test_a_bound_is_told_and_an_exact_number_is_not() -> None:
    assert least(BOUND, "kl_to_teacher") == least(EXACT, "bits_per_byte") == "≥ "
    assert least(BOUND, "bits_per_byte") == least(EXACT, "kl_to_teacher") == least(BOUND, "parameters") == ""


def test_in_packages() -> None:
    assert _cell(BOUND, "kl_to_teacher") == "≥ 0.5"
    assert _cell(BOUND, "bits_per_byte") == "1.5"
    assert [metric["type"] for metric in _metrics(BOUND)] == ["bits_per_byte", "kl_to_teacher, at least", "parameters"]


def test_in_comparisons(capsys: Any) -> None:
    runs = [{"name": "a", "student": EXACT, "retention": {}}, {"name": "b", "student": BOUND, "retention": {}}]
    print_comparison({"runs": runs, "compared": []})
    assert "≥ 0.500" in capsys.readouterr().out


def test_in_notebooks(tmp_path: Path, small_recipe: Any) -> None:
    import json

    made = Run.create(Recipe.model_validate(small_recipe("teacher")), tmp_path)
    (made.path / "summary.json").write_text(json.dumps({"student": BOUND}))
    assert "<td>≥ 0.5</td>" in made._repr_html_()
