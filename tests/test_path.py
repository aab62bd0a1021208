"""The whole path, from a teacher's folder to a student that answers, in every family."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_models import FAMILIES, WINDOWED, tiny_model
from typer.testing import CliRunner

from stillroom.pipeline import finish, run
from stillroom.planning.plan import make_plan
from stillroom.recipe.recipe import Recipe
from stillroom.runs.run import Run
from stillroom.serving.ask import answer


def require_whole(summary: dict[str, Any]) -> None:
    """Everything that the summary promises is there and is not contradictory."""
    for name in ("teacher", "shrunk", "student", "baseline"):
        model = summary[name]
        assert model["parameters"] > 0
        assert model["bytes"] > 0
        for measure in ("kl_to_teacher", "top1_agreement", "cross_entropy", "bits_per_byte"):
            low, high = model[f"{measure}_interval"]
            assert low <= model[measure] <= high
    assert summary["teacher"]["kl_to_teacher"] == 0
    assert summary["teacher"]["top1_agreement"] == 1
    assert summary["shrunk"]["parameters"] == summary["student"]["parameters"] == summary["baseline"]["parameters"]
    assert summary["tokens"]["train"] > 0
    assert summary["tokens"]["heldout"] > 0
    assert summary["cache"]["bytes_per_position"] > 0
    assert set(summary["stages"]) == {"corpus", "capture", "shrink", "distill", "baseline", "export", "evaluate"}
    assert all(stage["peak_memory_bytes"] > 0 for stage in summary["stages"].values())
    assert len(summary["recipe_digest"]) == 64


def require_planned(plan: dict[str, Any], made: Run) -> None:
    """Parameters, bytes of files and tokens were planned exactly."""
    assert plan["student_parameters_exact"]
    facts = json.loads((made.path / "shrink" / "shrink.json").read_text())
    assert plan["student_parameters"] == facts["parameters"]
    assert plan["teacher_parameters"] == facts["teacher_parameters"]
    exported = json.loads((made.path / "export" / "export.json").read_text())["files"]
    assert plan["file_bytes"] == {entry["type"]: entry["bytes"] for entry in exported}
    ledger = json.loads((made.path / "corpus" / "ledger.json").read_text())
    assert plan["tokens"] == {name: split["tokens"] for name, split in ledger["splits"].items()}


BRIEF = ("llama", "qwen3", "phi3", "gemma3_text")
"""Those of `make test`: plain, with norms in attention, with joined matrices, with windows; `make test-all` takes all."""
QUICK = {"measures": ["fidelity", "cost"], "speed_tokens": 0, "bootstrap_samples": 100}
"""Of the stage `evaluate`, where another family of `make test` has every measure."""


@pytest.mark.parametrize(
    ("family", "evaluate"),
    [pytest.param(name, {}, id=name, marks=[] if name == BRIEF[0] else pytest.mark.longer) for name in FAMILIES]
    + [pytest.param(name, QUICK, id=f"{name}-quick") for name in BRIEF[1:]],
)
def test_every_family_goes_the_whole_path(
    family: str, evaluate: dict[str, Any], small_recipe: Any, tmp_path: Path
) -> None:
    teacher = tiny_model(family, tmp_path / "teacher", layers=4, padding_rows=3)
    # llama.cpp takes the order of unlike layers for granted, so that those students are cut in width.
    student = {"intermediate_size": 64} if family in (*WINDOWED, "smollm3") else {"layers": 2}
    settings = small_recipe(
        teacher, student={"kind": "shrink", **student}, export={"gguf": ["F16", "Q8_0"], "check_tokens": 64}
    )
    settings["evaluate"] |= evaluate
    plan = make_plan(Recipe.model_validate(settings), tmp_path)
    made = run(Recipe.model_validate(settings), tmp_path, quiet=True)
    summary = json.loads((made.path / "summary.json").read_text())
    require_whole(summary)
    require_planned(plan, made)
    # Once the text is cut into pieces, the plan takes it from there and comes to the same.
    assert make_plan(Recipe.model_validate(settings), tmp_path)["student_parameters"] == plan["student_parameters"]
    assert summary["student"]["parameters"] < summary["teacher"]["parameters"]
    history = json.loads((made.path / "distill" / "history.json").read_text())
    assert min(entry["kl"] for entry in history["validations"]) <= history["validations"][0]["kl"]
    gguf = summary["student"]["gguf"]
    assert (made.path / gguf["path"]).stat().st_size == gguf["bytes"]
    assert gguf["kl_to_pytorch"] < 2e-2
    assert isinstance(answer(made.path, "What is a list?", 8), str)
    page = (made.path / "report.html").read_text(encoding="utf-8")
    assert f"{summary['student']['parameters']:,}" in page
    assert not re.search(r"(src|href)=[\"']?https?:", page)
    # A finished run is not done again, and its files come out the same.
    before = {name: made.stage(name).record for name in summary["stages"]}
    again = run(Recipe.model_validate(settings), tmp_path, quiet=True)
    assert {name: again.stage(name).record for name in summary["stages"]} == before
    assert finish(Run.open(made.path))["student"] == summary["student"]


def test_a_windowed_family_pruned_out_of_order_is_exported_as_it_is(small_recipe: Any, tmp_path: Path) -> None:
    teacher = tiny_model("gemma2", tmp_path / "teacher", layers=4)
    settings = small_recipe(teacher, student={"kind": "shrink", "layers": 3}, baseline=False)
    settings["corpus"]["sequence_length"] = 32
    # Which layers go is measured; llama.cpp is told which of those that stay have a window.
    made = run(Recipe.model_validate(settings), tmp_path, quiet=True, until="shrink")
    record = run(Recipe.model_validate(settings), tmp_path, quiet=True, until="export").stage("export").record
    assert record is not None
    exported = json.loads((made.path / "export" / "export.json").read_text())
    assert all(entry["kl_to_pytorch"] < 2e-2 for entry in exported["files"])


def test_commands_say_the_same_as_the_library(small_recipe: Any, tmp_path: Path) -> None:
    import yaml

    from stillroom.cli.app import app

    teacher = tiny_model("llama", tmp_path / "teacher", layers=3)
    settings = small_recipe(teacher, chat={"prompt": "Say it."}, evaluate=QUICK)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings))
    runner = CliRunner()
    shown = runner.invoke(app, ["run", str(tmp_path / "small.yaml"), "--runs", str(tmp_path)], catch_exceptions=False)
    assert shown.exit_code == 0
    assert "Asked: Say it." in shown.stdout
    assert "Chat:" in shown.stdout
    for name in ("teacher", "shrunk", "baseline", "student"):
        assert name in shown.stdout
    summary = json.loads((tmp_path / "small" / "summary.json").read_text())
    report = runner.invoke(app, ["report", str(tmp_path / "small"), "--json"], catch_exceptions=False)
    assert json.loads(report.stdout)["student"] == summary["student"]
    verified = runner.invoke(
        app, ["cache", "verify", str(tmp_path / "small" / "capture" / "cache")], catch_exceptions=False
    )
    assert verified.exit_code == 0
    plan = runner.invoke(app, ["plan", str(tmp_path / "small.yaml"), "--json"], catch_exceptions=False)
    assert json.loads(plan.stdout)["teacher_parameters"] == summary["teacher"]["parameters"]
    once = runner.invoke(app, ["chat", str(tmp_path / "small"), "-p", "Hello", "--max-tokens", "4"])
    assert once.exit_code == 0
