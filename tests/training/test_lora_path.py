"""The whole path with LoRA: everything after training sees an ordinary model, and the records say how it was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_model

import stillroom
from stillroom.packages.provenance import statement
from stillroom.planning.plan import make_plan
from stillroom.recipe.recipe import Recipe
from stillroom.runs.run import Run


@pytest.fixture(scope="module")
def settings_of(small_recipe: Any) -> Any:
    def make(teacher: Path, **distill: Any) -> dict[str, Any]:
        made: dict[str, Any] = small_recipe(
            teacher,
            student={"kind": "shrink", "layers": 2, "vocabulary": {"size": 400}},
            distill={"batch_tokens": 256, "learning_rate": 1e-2, **distill},
            export={"gguf": ["F16"], "check_tokens": 64},
        )
        return made

    return make


@pytest.fixture(scope="module")
def finished(settings_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("lora")
    teacher = tiny_model("llama", folder / "teacher", layers=3, tied=True)
    settings = settings_of(
        teacher, precision="bfloat16", lora={"rank": 4, "alpha": 8, "targets": ["q_proj", "up_proj"]}
    )
    return stillroom.run(Recipe.model_validate(settings), folder, quiet=True)


def weights(run: Run, stage: str) -> dict[str, torch.Tensor]:
    return load_file(run.stage(stage).path / "model" / "model.safetensors")


@pytest.mark.parametrize("stage", ["distill", "baseline"])
def test_the_start_changed_in_the_targets_alone_by_a_matrix_of_that_rank(finished: Run, stage: str) -> None:
    start, end = weights(finished, "shrink"), weights(finished, stage)
    assert start.keys() == end.keys()
    changed = {name for name, tensor in end.items() if not torch.equal(tensor, start[name])}
    assert changed == {
        f"model.layers.{layer}.{name}.weight" for layer in (0, 1) for name in ("self_attn.q_proj", "mlp.up_proj")
    }
    for name in changed:
        values = torch.linalg.svdvals((end[name] - start[name]).double())
        assert values[4] < 1e-4 * values[0], "the change has the rank of the adapters"


def test_the_student_came_closer_to_its_teacher(finished: Run) -> None:
    history = json.loads((finished.stage("distill").path / "history.json").read_text())
    kls = [entry["kl"] for entry in history["validations"]]
    assert min(kls) < kls[0]
    summary = json.loads((finished.path / "summary.json").read_text())
    assert summary["student"]["gguf"]["bytes"] > 0
    assert summary["student"]["parameters"] == sum(
        tensor.numel() for name, tensor in weights(finished, "distill").items() if name != "lm_head.weight"
    )


def test_summary_report_and_provenance_say_so(finished: Run, tmp_path: Path) -> None:
    summary = json.loads((finished.path / "summary.json").read_text())
    trained = 2 * (4 * (64 + 64) + 4 * (128 + 64))
    for stage in ("distill", "baseline"):
        lora = summary["training"][stage]["lora"]
        assert lora["trained_parameters"] == trained
        assert lora["frozen_parameters"] == summary["student"]["parameters"]
        assert (lora["rank"], lora["alpha"], lora["dropout"], lora["rslora"]) == (4, 8.0, 0.0, False)
        assert lora["targets"] == ["q_proj", "up_proj"]
        assert lora["modules"] == 4
        assert lora["without_gradient"] == []
        assert "mlp.down_proj.weight" in lora["matrices_without"]
    assert "Trained by LoRA: adapters of rank 4 in 4 layers" in (finished.path / "report.html").read_text()
    assert f", trained by LoRA (adapters of rank 4, {trained:,} parameters" in (finished.path / "report.md").read_text()
    build = statement(finished, summary, tmp_path)["predicate"]["buildDefinition"]
    assert build["internalParameters"]["lora"]["trained_parameters"] == trained
    assert build["externalParameters"]["recipe"]["distill"]["lora"]["rank"] == 4
    operations = build["internalParameters"]["operations"]
    expected = (4 * summary["student"]["parameters"] + 6 * trained) * operations["training_tokens"]
    assert operations["student_training"] == expected
    assert "4 for frozen" in operations["estimate"]


def test_a_finished_run_is_not_done_again(finished: Run) -> None:
    before = (finished.stage("distill").path / "stage.json").stat().st_mtime_ns
    stillroom.run(finished.recipe, finished.path.parent, quiet=True)
    assert (finished.stage("distill").path / "stage.json").stat().st_mtime_ns == before


def test_the_rate_is_that_of_adapters_and_a_mixture_says_what_stays(
    settings_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = tiny_model("olmoe", tmp_path / "teacher", layers=2)
    settings = settings_of(teacher, lora={"rank": 2}, precision="float32")
    settings["distill"]["learning_rate"] = "auto"
    settings["student"] = {"kind": "existing", "name": str(tiny_model("olmoe", tmp_path / "other", layers=2, seed=4))}
    settings["export"]["gguf"] = []
    run = stillroom.run(Recipe.model_validate(settings), tmp_path, until="distill")
    assert "without adapters: " in capsys.readouterr().err
    record = run.stage("distill").record
    notes = record["notes"]
    assert 0 < notes["training_seconds"] < record["seconds"]
    assert any("experts" in name for name in notes["lora"]["matrices_without"])
    from stillroom.training.adapters import faster
    from stillroom.training.sweep import HIGHEST, table_rate

    distance = json.loads((run.stage("distill").path / "history.json").read_text())["validations"][0]["kl"]
    assert notes["learning_rate_from"] == "table"
    assert notes["learning_rate"] == pytest.approx(
        min(faster(64, run.recipe.distill.lora) * table_rate(64, distance), HIGHEST / 3)
    )


def test_adapters_larger_than_the_student_are_named(settings_of: Any, tmp_path: Path) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher", layers=3, tied=True)
    said = {
        rank: make_plan(Recipe.model_validate(settings_of(teacher, lora={"rank": rank})), tmp_path)["notes"]
        for rank in (4, 4096)
    }
    assert not any("without it" in note for note in said[4])
    assert any(note.startswith("`distill.lora` trains") and "without it" in note for note in said[4096])
