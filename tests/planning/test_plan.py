"""The plan counts exactly, says what does not fit and what would, and is held against every stage."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from planning.test_stage_costs import PROFILE
from tiny_models import tiny_model
from typer.testing import CliRunner

from stillroom import pipeline
from stillroom.cli.app import app
from stillroom.core import files
from stillroom.core.errors import DiskFull, OutOfMemory, RecipeError, RunError
from stillroom.formats.stage_cost import ONNX_LAYER_SECONDS
from stillroom.planning import plan as planning
from stillroom.planning.plan import KEPT, make_plan, stage_costs
from stillroom.recipe.recipe import Recipe
from stillroom.runs.costs import Counts, Profile, StageCost
from stillroom.runs.run import Run


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "teacher", layers=4)


@pytest.mark.parametrize("sequences", [1, 4])
def test_text_of_a_few_sequences_is_planned(sequences: int, small_recipe: Any, teacher: Path, tmp_path: Path) -> None:
    settings = small_recipe(teacher)
    settings["corpus"] |= {"train_tokens": 64 * sequences}
    plan = make_plan(Recipe.model_validate(settings), tmp_path)
    assert 64 * sequences <= plan["tokens"]["train"] < 64 * (sequences + 1)
    assert plan["targets_without_context"] == {"train": 0, "validation": 0, "heldout": 0}
    assert 0 < plan["seconds"] < 600
    assert plan["memory_bytes"] < 4e9


@pytest.mark.parametrize(
    "student",
    [
        {"kind": "shrink", "layers": 2, "intermediate_size": 64, "kv_heads": 1, "vocabulary": {"keep": "all"}},
        {"kind": "shrink", "hidden_size": 32},
        {"kind": "fresh", "config": {"num_hidden_layers": 1, "intermediate_size": 48}},
    ],
    ids=["all axes", "width", "fresh"],
)
def test_every_kind_of_student(student: dict[str, Any], small_recipe: Any, teacher: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(small_recipe(teacher, student=student, export={"gguf": ["F16"]}))
    plan = make_plan(recipe, tmp_path)
    made = pipeline.run(recipe, tmp_path, quiet=True, until="export")
    assert plan["student_parameters"] == json.loads((made.path / "shrink" / "shrink.json").read_text())["parameters"]
    exported = json.loads((made.path / "export" / "export.json").read_text())["files"]
    assert plan["file_bytes"] == {entry["type"]: entry["bytes"] for entry in exported}


@pytest.mark.parametrize(("vocabulary", "merges"), [({"keep": "all"}, False), ({"size": 320}, True)])
def test_a_plan_knows_whether_the_teachers_entropy_is_measured_again(
    vocabulary: dict[str, Any],
    merges: bool,
    small_recipe: Any,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = []

    def costs(recipe: Recipe, counts: Counts, profile: Profile) -> dict[str, StageCost]:
        counted.append(counts.merges_ids)
        return stage_costs(recipe, counts, profile)

    monkeypatch.setattr(planning, "_profile", lambda *_: PROFILE)
    monkeypatch.setattr(planning, "stage_costs", costs)
    student = {"kind": "shrink", "layers": 2, "vocabulary": vocabulary}
    make_plan(Recipe.model_validate(small_recipe(teacher, student=student)), tmp_path)
    assert set(counted) == {merges}


def test_an_existing_student(small_recipe: Any, teacher: Path, tmp_path: Path) -> None:
    smaller = tiny_model("llama", tmp_path / "smaller", layers=2)
    recipe = Recipe.model_validate(small_recipe(teacher, student={"kind": "existing", "name": str(smaller)}))
    plan = make_plan(recipe, tmp_path)
    made = pipeline.run(recipe, tmp_path, quiet=True, until="shrink")
    assert plan["student_parameters"] == json.loads((made.path / "shrink" / "shrink.json").read_text())["parameters"]


def test_a_target_gives_the_most_that_fits(small_recipe: Any, teacher: Path, tmp_path: Path) -> None:
    whole = make_plan(Recipe.model_validate(small_recipe(teacher)), tmp_path)
    most = whole["teacher_parameters"] * 4 // 5
    recipe = Recipe.model_validate(
        small_recipe(teacher, student={"kind": "shrink", "target": {"parameters": most}}, baseline=False)
    )
    plan = make_plan(recipe, tmp_path)
    assert not plan["student_parameters_exact"]
    made = pipeline.run(recipe, tmp_path, quiet=True, until="shrink")
    assert json.loads((made.path / "shrink" / "shrink.json").read_text())["parameters"] <= plan["student_parameters"]
    assert plan["student_parameters"] <= most


@pytest.mark.parametrize(
    ("student", "words"),
    [
        ({}, "`student` names no size to prune to and no target"),
        ({"layers": 4}, "`student` names no size to prune to and no target"),
        (
            {"target": {"device": "phone-4gb"}},
            r"the teacher already fits `student\.target` \(.* of 800,000,000 bytes of file",
        ),
        (
            {"target": {"parameters": 10_000_000}},
            r"the teacher already fits `student\.target` \(.* of 10,000,000 parameters",
        ),
    ],
    ids=["nothing", "all layers", "a device", "parameters"],
)
def test_a_copy_of_the_teacher_is_refused_and_trimming_alone_is_said(
    student: dict[str, Any], words: str, small_recipe: Any, teacher: Path, tmp_path: Path
) -> None:
    def plan(vocabulary: dict[str, Any]) -> dict[str, Any]:
        settings = small_recipe(teacher, student={"kind": "shrink", "vocabulary": vocabulary} | student)
        return make_plan(Recipe.model_validate(settings), tmp_path)

    with pytest.raises(RecipeError, match=f"Nothing to prune: {words}") as caught:
        plan({"keep": "all"})
    assert "`student.layers: 2`" in caught.value.todo
    assert "kind: existing" in caught.value.todo
    note = plan({"size": 400})["student_note"]
    assert re.match(rf"Only the vocabulary is trimmed, from [\d,]+ to 384 ids: {words}", note)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"distill": {"objective": "reverse_kl"}}, "`reverse_kl` cannot take a sparse signal"),
        ({"capture": {"codec": {"kind": "top_k"}}}, "is biased"),
        ({"distill": {"temperature": 2.0}}, r"`capture\.temperature` is 1"),
    ],
    ids=["objective", "biased", "temperature"],
)
def test_an_objective_that_does_not_fit_its_signal_is_refused_before_anything_is_captured(
    sections: dict[str, Any], words: str, small_recipe: Any, teacher: Path, tmp_path: Path
) -> None:
    recipe = Recipe.model_validate(small_recipe(teacher) | sections)
    with pytest.raises(RecipeError, match=words):
        make_plan(recipe, tmp_path)
    with pytest.raises(RecipeError, match=words):
        pipeline.run(recipe, tmp_path, quiet=True)
    assert not (tmp_path / "small" / "corpus").exists()


def test_what_the_plan_says_of_everything(small_recipe: Any, teacher: Path, tmp_path: Path) -> None:
    plan = make_plan(Recipe.model_validate(small_recipe(teacher)), tmp_path)
    assert plan["verdict"] == "go"
    assert plan["broken"] == []
    assert set(plan["stages"]) == {"corpus", "capture", "shrink", "distill", "baseline", "export", "evaluate"}
    assert all(stage["seconds"] > 0 for stage in plan["stages"].values())
    assert all(stage["memory_bytes"] > 1 << 20 for stage in plan["stages"].values())
    assert plan["cache_bytes"] > 0
    assert plan["training_operations"] > 6 * plan["student_parameters"]
    assert plan["baseline_adds"]["seconds"] > 0
    without = make_plan(Recipe.model_validate(small_recipe(teacher, baseline=False)), tmp_path)
    assert "baseline" not in without["stages"]
    assert without["baseline_adds"]["seconds"] == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("epochs", "codec", "said"),
    [
        (4, {"kind": "threshold"}, True),
        (3, {"kind": "threshold"}, False),
        (4, {"kind": "threshold", "tau": 0.008}, False),
    ],
)
def test_many_passes_over_one_coarse_draw_are_said(
    epochs: int, codec: dict[str, Any], said: bool, small_recipe: Any, teacher: Path, tmp_path: Path
) -> None:
    settings = small_recipe(teacher)
    settings["distill"] |= {"epochs": epochs}
    settings["capture"] = {"codec": codec}
    plan = make_plan(Recipe.model_validate(settings), tmp_path)
    assert any("the same draw" in note for note in plan["notes"]) == said


def test_a_graph_is_planned_too(small_recipe: Any, teacher: Path, tmp_path: Path) -> None:
    def planned(onnx: bool, layers: int) -> tuple[dict[str, Any], dict[str, Any]]:
        export = {"gguf": ["F16"], "onnx": onnx}
        recipe = small_recipe(teacher, student={"kind": "shrink", "layers": layers}, export=export)
        plan = make_plan(Recipe.model_validate(recipe), tmp_path)
        return plan, plan["stages"]["export"]

    plan, without = planned(False, 1)
    _, graph = planned(True, 1)
    _, deeper = planned(True, 3)
    weights = 4 * plan["student_parameters"]
    assert graph["disk_bytes"] - without["disk_bytes"] > weights
    assert graph["seconds"] > without["seconds"] + ONNX_LAYER_SECONDS
    assert deeper["seconds"] > graph["seconds"] + ONNX_LAYER_SECONDS


def test_broken_limits_and_the_nearest_recipe(small_recipe: Any, teacher: Path, tmp_path: Path) -> None:
    settings = small_recipe(teacher)
    free = make_plan(Recipe.model_validate(settings), tmp_path)
    disk = free["disk_bytes"] - free["cache_bytes"] // 4
    plan = make_plan(Recipe.model_validate(settings | {"limits": {"disk_bytes": disk}}), tmp_path)
    assert plan["verdict"] == "stop"
    assert plan["broken"] == ["disk_bytes"]
    less = plan["nearest"]["corpus.train_tokens"]
    assert 0 < less < settings["corpus"]["train_tokens"]
    settings["corpus"]["train_tokens"] = less
    assert make_plan(Recipe.model_validate(settings | {"limits": {"disk_bytes": disk}}), tmp_path)["verdict"] == "go"


def test_the_command(small_recipe: Any, teacher: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(small_recipe(teacher)))
    runner = CliRunner()
    shown = runner.invoke(app, ["plan", str(recipe), "--runs", str(tmp_path)], catch_exceptions=False)
    assert shown.exit_code == 0
    assert "Plan of `small`" in shown.stderr
    assert "result    go" in shown.stderr
    recipe.write_text(yaml.safe_dump(small_recipe(teacher, limits={"seconds": 0.5})))
    shown = runner.invoke(app, ["plan", str(recipe), "--runs", str(tmp_path), "--json"], catch_exceptions=False)
    assert shown.exit_code == 1
    assert json.loads(shown.stdout)["broken"] == ["seconds"]


def test_the_plan_tells_what_is_left_of_the_text_before_anything_is_spent(
    small_recipe: Any, teacher: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    rows = [{"text": f"Valve {number} lets water pass. " * 9, "origin": "book"} for number in range(60)]
    (mixed / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0], {"text": ""}]))
    (mixed / "notes.md").write_text("words")
    settings = small_recipe(teacher)
    settings["corpus"]["sources"] = [{"kind": "jsonl", "path": str(mixed), "licence": "PSF-2.0"}]
    recipe = Recipe.model_validate(settings)
    wanted = [
        "dropped 1 duplicates and 1 empty documents",
        f"{mixed}: took 1 of 2 files; passed over 1 .md",
        f"{mixed}: keys that are in no text: 61 origin",
    ]
    found = make_plan(recipe, tmp_path)
    planning.show_plan(found)
    shown = capsys.readouterr().err
    assert [note for note in found["text_notes"] if note in wanted] == wanted
    assert all(f"            {note}\n" in shown for note in wanted)
    # A finished corpus tells the same; its stage has said it once.
    made = pipeline.run(recipe, tmp_path, until="capture")
    shown = capsys.readouterr().err
    assert all(shown.count(note) == 1 for note in wanted)
    assert (
        make_plan(recipe, tmp_path)["text_notes"]
        == files.read_json(made.path / KEPT)["text_notes"]
        == found["text_notes"]
    )


@pytest.mark.parametrize(
    ("limits", "error"),
    [({"memory_bytes": 1000}, OutOfMemory), ({"disk_bytes": 100_000}, DiskFull), ({"seconds": 0.1}, RunError)],
    ids=["memory", "disk", "time"],
)
def test_a_run_ends_before_anything_is_spent(
    limits: dict[str, Any], error: type[Exception], small_recipe: Any, teacher: Path, tmp_path: Path, capsys: Any
) -> None:
    recipe = Recipe.model_validate(small_recipe(teacher, limits=limits))
    with pytest.raises(error, match="limit"):
        pipeline.run(recipe, tmp_path)
    assert not (tmp_path / "small" / "capture" / "stage.json").exists()


def test_the_plan_is_shown_first_once_and_held_against_every_stage(
    small_recipe: Any, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe.model_validate(small_recipe(teacher))
    made = pipeline.run(recipe, tmp_path, until="capture")
    shown = capsys.readouterr().err
    assert shown.index("Plan of `small`") < shown.index("capture\n")
    plan = files.read_json(made.path / KEPT)
    pipeline.run(recipe, tmp_path, until="shrink")
    assert "Plan of" not in capsys.readouterr().err
    plan["stages"]["distill"]["memory_bytes"] = 1 << 50
    files.write_json(made.path / KEPT, plan)
    with pytest.raises(OutOfMemory, match="The stage `distill` needs about"):
        pipeline.run(recipe, tmp_path)
    assert not (made.path / "distill" / "stage.json").exists()
    plan["stages"]["distill"] |= {"memory_bytes": 1, "disk_bytes": 1 << 60}
    files.write_json(made.path / KEPT, plan)
    with pytest.raises(DiskFull, match="too little to begin the stage `distill`"):
        pipeline.run(recipe, tmp_path)
    plan["stages"]["distill"]["disk_bytes"] = 1
    files.write_json(made.path / KEPT, plan)
    pipeline.run(recipe, tmp_path, quiet=True)
    assert Run.open(made.path).stage("evaluate").record is not None
