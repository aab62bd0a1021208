"""lm-evaluation-harness end to end: a run whose recipe names a task of its own folder. Needs the extra `tasks`; no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_model
from typer.testing import CliRunner

pytest.importorskip("lm_eval", reason="the extra tasks (lm-evaluation-harness) is not installed")

from stillroom.cli.app import app
from stillroom.core import files
from stillroom.core.errors import RecipeError
from stillroom.evaluation.tasks.harness import require_names
from stillroom.pipeline import run
from stillroom.recipe.recipe import Recipe

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}} The answer is"
doc_to_choice: "{{{{options}}}}"
doc_to_target: right
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
WRITTEN = """
task: written
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}} The answer is"
doc_to_target: "{{{{options[right]}}}}"
generation_kwargs: {{until: ["\n"], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
GRADED = CHOICE.replace("metric: acc,", "metric: brier_score,").replace("aggregation: mean", "aggregation: brier_score")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks in the harness's form, and one of them in our own."""
    made = tmp_path_factory.mktemp("harness")
    (made / "tasks").mkdir()
    rows = [
        {"question": f"Is {number} even or odd?", "options": ["even", "odd", "neither one"], "right": number % 2}
        for number in range(9)
    ]
    data = made / "numbers.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made / "tasks" / "doors.yaml").write_text(CHOICE.format(name="doors", data=data))
    (made / "tasks" / "written.yaml").write_text(WRITTEN.format(data=data))
    (made / "tasks" / "graded.yaml").write_text(GRADED.format(name="graded", data=data))
    (made / "own.yaml").write_text(CHOICE.format(name="own", data=data))
    return made


def test_a_run_names_tasks_of_the_harness(
    folder: Path, tmp_path: Path, small_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    settings = small_recipe(tiny_model("llama", tmp_path / "teacher", layers=3))
    settings["evaluate"] |= {
        "measures": ["fidelity", "cost", "tasks"],
        "tasks": {
            "names": ["doors", "written"],
            "files": [str(folder / "own.yaml")],
            "include_path": str(folder / "tasks"),
            "items": 7,
        },
    }
    path = run(Recipe.model_validate(settings), tmp_path / "runs", quiet=True).path
    found = files.read_json(path / "measures" / "tasks.json")["result"]["tasks"]
    # The same items in the harness's hands and in ours: the same choices by every model.
    assert found["doors"]["right"] == found["own"]["right"]
    assert found["doors"]["models"]["student"]["items"] == 7
    assert found["written"]["kind"] == "exact_match"
    summary = files.read_json(path / "summary.json")["measures"]["tasks"]["tasks"]
    assert summary["doors"]["source"] == "lm-evaluation-harness"
    assert "doors (7)" in (path / "report.html").read_text(encoding="utf-8")
    done = CliRunner().invoke(app, ["evaluate", str(path), "--only", "tasks", "--json"])
    assert done.exit_code == 0, done.output
    assert "measured before" in done.stderr
    assert json.loads(done.stdout)["tasks"]["tasks"]["doors"]["right"] == found["doors"]["right"]


def test_what_the_harness_cannot_do_is_said(folder: Path) -> None:
    from stillroom.evaluation.tasks.harness import run_task

    with pytest.raises(RecipeError, match="no_such_task: no such task"):
        require_names(["doors", "no_such_task"], folder / "tasks")
    with pytest.raises(RecipeError, match="no folder"):
        require_names(["doors"], folder / "nowhere")
    with pytest.raises(RecipeError, match="no number that says of each item"):
        run_task("graded", _Silent(), 2, 0, folder / "tasks")  # type: ignore[arg-type]


class _Silent:
    """A speaker that finds every continuation equally likely."""

    cut: tuple[bool, ...] = ()

    def log_likelihoods(self, pairs: list[Any]) -> list[tuple[float, bool]]:
        return [(-1.0, False) for _ in pairs]
