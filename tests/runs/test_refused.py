"""What must fail fails in the plan, with and without `--quiet`, and a refused command leaves no folder behind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import tiny_model

import stillroom
from stillroom import pipeline
from stillroom.core.errors import DiskFull, OutOfMemory, RunError, StillroomError
from stillroom.planning import plan as planning
from stillroom.planning.plan import KEPT, make_plan
from stillroom.recipe.recipe import Recipe
from stillroom.runs.run import Run


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "teacher", layers=2)


@pytest.fixture
def recipe(teacher: Path, small_recipe: Any, tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small_recipe(teacher, student={"kind": "shrink", "layers": 1})))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"student.layers": 99}, r"`student\.layers` is 99, and the teacher has 2"),
        ({"student.intermediate_size": 9999}, r"`student\.intermediate_size` is 9999, and the teacher has 128"),
        ({"student.kv_heads": 7}, r"`student\.kv_heads` is 7, and the teacher has 2"),
        ({"student.hidden_size": 33}, r"`student\.hidden_size` is 33"),
        ({"student.remove_layers": [2]}, r"`student\.remove_layers` names layer 2, and the teacher has 2"),
        (
            {"student": {"kind": "fresh", "config": {"layers": 1}}},
            r"`student\.config\.layers` is not a key of the family",
        ),
        ({"student": {"kind": "fresh", "config": {"hidden_size": -3}}}, r"`student\.config\.hidden_size` is -3"),
        ({"student.experts": 3}, r"`student\.experts` is 3, and the teacher is no mixture"),
        ({"student.target": {"parameters": 1000}, "student.layers": 99}, r"`student\.layers` is 99"),
        ({"distill.learning_rate": 3.0}, r"`distill\.learning_rate` is 3"),
        ({"teacher.name": "nowhere"}, "nowhere: no such model folder"),
        ({"evaluate.measures": ["fideliti"]}, "fideliti"),
        ({"distill.objective": "hope"}, "hope"),
        ({"compute.device": "cuda"}, "`compute.device` is cuda"),
        ({"corpus.sources": [{"kind": "text", "path": "nowhere"}]}, "no such file or folder"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run", "capture"])
def test_a_refusal_reads_no_text_and_leaves_nothing(
    command: str, change: Mapping[str, Any], words: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import stillroom.corpus.stage as corpus

    if command == "capture" and "distill.learning_rate" in change:
        pytest.skip("a capture alone trains nothing")

    def read(*_args: object) -> None:
        raise AssertionError("text was read")

    if "sources" not in str(change):
        monkeypatch.setattr(corpus, "run_stage", read)
    with pytest.raises(StillroomError, match=words):
        if command == "plan":
            stillroom.plan(recipe, overrides=change, quiet=True)
        elif command == "capture":
            pipeline.run_stage(recipe, "capture", overrides=change, quiet=True)
        else:
            pipeline.run(recipe, overrides=change, quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.yaml"]


def test_a_section_that_the_recipe_leaves_out_can_be_set(recipe: Path) -> None:
    made, _ = pipeline.recipe_and_root(recipe, overrides={"student.target.parameters": "60K", "student.layers": None})
    assert made.student.target.parameters == 60_000


@pytest.mark.parametrize(
    ("limits", "raised"),
    [({"seconds": 0.001}, RunError), ({"memory_bytes": 1000}, OutOfMemory), ({"disk_bytes": 1}, DiskFull)],
)
def test_a_quiet_run_holds_limits_against_the_plan(
    limits: dict[str, float], raised: type[Exception], recipe: Path, tmp_path: Path
) -> None:
    overrides = {f"limits.{key}": value for key, value in limits.items()}
    with pytest.raises(raised, match=r"limits\.|too little to begin"):
        pipeline.run(recipe, overrides=overrides, until="capture", quiet=True)
    assert not (tmp_path / "runs" / "small" / "capture").exists()


def test_a_quiet_run_has_the_plan_that_a_loud_one_has(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "TINY_PARAMETERS", 0)
    made = pipeline.run(recipe, until="capture", quiet=True)
    assert (made.path / KEPT).is_file()


def test_what_was_there_is_never_removed(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(StillroomError):
        pipeline.run(recipe, overrides={"student.layers": 99}, quiet=True)
    assert (folder / "mine.txt").read_text() == "mine"
    assert folder.joinpath("recipe.yaml").is_file()


def test_a_run_that_another_process_works_on_is_not_removed(recipe: Path, tmp_path: Path) -> None:
    made = pipeline.opened(recipe)
    assert made.is_new
    other = Run.open(made.path)
    with other.locked(), pytest.raises(RunError, match="another process"):
        pipeline.run(made, until="corpus", quiet=True)
    assert (tmp_path / "runs" / "small" / "recipe.yaml").is_file()
    with other.locked(), pytest.raises(RunError, match="corpus is not finished"):
        pipeline.capture_part(made, "1/2", quiet=True)
    assert (tmp_path / "runs" / "small" / "recipe.yaml").is_file()


def test_a_finished_stage_is_kept_when_a_later_one_is_refused(recipe: Path, tmp_path: Path) -> None:
    pipeline.run(recipe, until="corpus", quiet=True)
    with pytest.raises(StillroomError):
        pipeline.run(recipe, overrides={"student.layers": 99}, quiet=True)
    assert Run.open(tmp_path / "runs" / "small").stage("corpus").record is not None


def test_batches_of_less_than_a_sequence_and_high_learning_rates_are_named(
    teacher: Path, small_recipe: Any, tmp_path: Path
) -> None:
    settings = small_recipe(teacher, student={"kind": "shrink", "layers": 1})
    settings["distill"] |= {"batch_tokens": 8, "learning_rate": 0.5}
    plan = make_plan(Recipe.model_validate(settings), tmp_path)
    assert plan["step_tokens"] == 64
    assert "`distill.batch_tokens` is 8, and one sequence has 64" in plan["notes"][0]
    assert "`distill.learning_rate` is 0.5" in plan["notes"][1]
