"""The stage and the ladder on a small run: chosen types, resuming, ONNX, and refusals."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tiny_models import tiny_model
from typer.testing import CliRunner

import stillroom as st
from stillroom import pipeline
from stillroom.cli.app import app
from stillroom.core.errors import ExportMismatch, TeacherError, TrainingDiverged, VocabularyMismatch
from stillroom.core.progress import Progress
from stillroom.formats import exporter, recover
from stillroom.formats.exporter import Exporter
from stillroom.formats.ladder import ladder
from stillroom.recipe.recipe import Recipe
from stillroom.runs.run import Run, Stage


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_recipe: Any) -> Path:
    """A run whose student is trained."""
    root = tmp_path_factory.mktemp("run")
    teacher = tiny_model("llama", root / "teacher", layers=3, hidden=256)
    settings = small_recipe(teacher, baseline=False)
    return pipeline.run(Recipe.model_validate(settings), root, until="distill", quiet=True).path


def exported(finished: Path, **export: Any) -> dict[str, Any]:
    """Export again with another section."""
    content = yaml.safe_load((finished / "recipe.yaml").read_text())
    content["export"] = {"check_tokens": 16, "importance_tokens": 256, **export}
    (finished / "recipe.yaml").write_text(yaml.safe_dump(content))
    st.export(finished, quiet=True)
    found: dict[str, Any] = json.loads((finished / "export" / "export.json").read_text())
    return found


def test_types_and_a_choice_by_bytes(finished: Path) -> None:
    first = exported(finished, gguf=["F16", "Q4_K_M"])
    sizes = {entry["type"]: entry["bytes"] for entry in first["files"]}
    assert sizes["Q4_K_M"] < 0.5 * sizes["F16"]
    assert [entry["importance_tokens"] for entry in first["files"]] == [0, 256]
    assert (finished / first["safetensors"]["path"] / "model.safetensors").is_file()
    chosen = exported(finished, gguf=[], choose={"file_bytes": sizes["F16"] - 1})
    assert chosen["chosen"]["type"] == "Q8_0"
    assert [entry["type"] for entry in chosen["files"]] == ["Q8_0"]
    assert {file.name for file in (finished / "export").glob("*.gguf")} == {"small-Q8_0.gguf"}


def test_a_choice_by_kl_takes_the_smallest_that_is_close_enough(finished: Path) -> None:
    found = exported(finished, gguf=[], choose={"max_kl": 1e-3, "among": ["F16", "Q8_0", "Q4_0"]})
    tried = found["chosen"]["tried"]
    assert tried[0]["type"] == "Q4_0"
    assert all(entry["kl_to_pytorch"] > 1e-3 for entry in tried[:-1])
    assert tried[-1]["kl_to_pytorch"] <= 1e-3
    assert found["chosen"]["type"] == tried[-1]["type"]
    assert {file.stem for file in (finished / "export").glob("*.gguf")} == {f"small-{found['chosen']['type']}"}


def test_a_target_that_nothing_meets_is_refused(finished: Path) -> None:
    with pytest.raises(ExportMismatch, match="No type fits"):
        exported(finished, gguf=[], choose={"file_bytes": 1000})
    with pytest.raises(ExportMismatch, match="Tried: Q4_0"):
        exported(finished, gguf=[], choose={"max_kl": 1e-9, "among": ["Q4_0"]})


def test_a_file_beyond_its_limit_is_refused_and_the_type_is_named(finished: Path) -> None:
    with pytest.raises(ExportMismatch, match=r"Q4_0.*mean KL") as caught:
        exported(finished, gguf=["Q4_0"], max_kl={"Q4_0": 1e-9})
    assert "export.max_kl.Q4_0" in caught.value.todo
    assert not (finished / "export" / "stage.json").exists()
    assert not list((finished / "export").glob("*.gguf"))


def test_accepted_files_are_kept_when_the_stage_goes_on(finished: Path) -> None:
    with pytest.raises(ExportMismatch):
        exported(finished, gguf=["F16", "Q4_0"], max_kl={"Q4_0": 1e-9})
    file = finished / "export" / "small-F16.gguf"
    before = file.stat().st_mtime_ns
    with pytest.raises(ExportMismatch):
        st.export(finished, quiet=True)
    assert file.stat().st_mtime_ns == before


def test_the_ladder(finished: Path) -> None:
    exported(finished, gguf=[])
    command = ["ladder", str(finished), "--types", "F16,Q4_0", "--plain", "--quiet"]
    shown = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
    result = json.loads(shown.stdout)
    assert [(rung["type"], rung["importance"]) for rung in result["rungs"]] == [
        ("PyTorch", False),
        ("F16", False),
        ("Q4_0", True),
        ("Q4_0", False),
    ]
    by_type = {rung["type"]: rung for rung in result["rungs"][:3]}
    assert by_type["F16"]["kl_to_student"] < 1e-4
    assert by_type["F16"]["kl_to_teacher"] == pytest.approx(by_type["PyTorch"]["kl_to_teacher"], abs=1e-3)
    assert by_type["Q4_0"]["kl_to_student"] > by_type["F16"]["kl_to_student"]
    assert by_type["Q4_0"]["decode_tokens_per_second"] > 0
    assert json.loads((finished / "ladder" / "ladder.json").read_text()) == result
    assert not list((finished / "ladder").rglob("*.gguf"))
    table = CliRunner().invoke(app, [*command[:2], "--types", "Q8_0", "--no-speed", "-q"], catch_exceptions=False)
    assert [line.split()[0] for line in table.stdout.splitlines()] == ["type", "PyTorch", "Q8_0", "On"]
    assert f"On {result['positions']} held-out positions, " in table.stdout
    wrong = CliRunner().invoke(app, ["ladder", str(finished), "--types", "Q3_K"])
    assert "Q3_K" in str(wrong.exception)
    # Measuring does not undo what was finished.
    assert Run.open(finished).stage("export").record is not None


def test_an_importance_matrix_of_another_student_is_not_used(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(finished, gguf=["Q4_0"])
    measured: list[int] = []
    monkeypatch.setattr(exporter, "measure_importance", lambda *_args: measured.append(1) or {})
    run = Run.open(finished)

    def times(name: str, run: Run = run) -> int:
        (tmp_path / name).mkdir()
        _ = Exporter(run, tmp_path / name, Progress(quiet=True)).importance
        return len(measured)

    assert times("same") == 0
    run.recipe.export.__dict__["importance_tokens"] = 128
    assert times("fewer tokens") == 1
    run.recipe.export.__dict__["importance_tokens"] = 256
    monkeypatch.setattr(Stage, "output_digest", property(lambda _stage: "another"))
    assert times("another student") == 2


def test_a_ladder_that_cannot_be_is_refused_at_once(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = finished / "ladder"
    shutil.rmtree(kept, ignore_errors=True)
    with monkeypatch.context() as patched:
        patched.setattr(Recipe, "student_with_own_tokenizer", finished)
        with pytest.raises(VocabularyMismatch, match="tokenizer of its own"):
            ladder(finished, quiet=True)
    # A teacher without weights is known only when it is opened; nothing is left then, either.
    monkeypatch.setattr(
        "stillroom.formats.ladder.open_teacher", lambda *_: SimpleNamespace(capabilities=(), name="far away")
    )
    with pytest.raises(TeacherError):
        ladder(finished, quiet=True)
    assert not kept.exists()


def test_recovery_is_kept_only_where_it_helps(finished: Path) -> None:
    section = {"steps": 4, "batch_tokens": 128, "learning_rate": 1e-4}
    entry = exported(finished, gguf=["Q4_0"], recover=section)["files"][0]
    recovery = entry["recovery"]
    assert recovery["kept"] == (recovery["kl_after"] < recovery["kl_before"])
    assert entry["kl_to_pytorch"] == min(recovery["kl_before"], recovery["kl_after"])
    # A learning rate that ruins the student is not kept, and the file is the one from before.
    ruined = exported(finished, gguf=["Q4_0"], recover=section | {"learning_rate": 0.9})["files"][0]
    assert ruined["recovery"]["kept"] is False
    plain = exported(finished, gguf=["Q4_0"])["files"][0]
    assert ruined["sha256"] == plain["sha256"]
    assert not list((finished / "export").glob("*.partial"))


def _diverged(*_: Any) -> Any:
    raise TrainingDiverged("the loss is not finite.", "Try a smaller rate.")


def _without_numbers(student: Any, *_: Any) -> Any:
    model = copy.deepcopy(student)
    model.model.norm.weight.data.fill_(1e30)
    return model


@pytest.mark.parametrize(
    ("ruin", "words", "steps"), [(_diverged, "not finite", 5), (_without_numbers, "logits are not finite", 6)]
)
def test_a_recovery_that_diverges_is_named_and_the_file_from_before_stays(
    ruin: Any, words: str, steps: int, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = exported(finished, gguf=["Q4_0"])["files"][0]
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda self, text: said.append(text))
    monkeypatch.setattr(recover, "recover", ruin)
    # Steps of no other test: a finished export is not made again.
    section = {"steps": steps, "batch_tokens": 128, "learning_rate": 1e-4}
    entry = exported(finished, gguf=["Q4_0"], recover=section)["files"][0]
    assert entry["recovery"] == {"kl_before": plain["kl_to_pytorch"], "kl_after": None, "kept": False}
    assert entry["sha256"] == plain["sha256"]
    assert any("recovery of Q4_0, not kept" in line and words in line for line in said)
    assert not list((finished / "export").glob("*.partial"))


def test_a_file_s_context_may_be_as_long_as_a_sequence(small_recipe: Any, tmp_path: Path) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher", layers=2)
    student = {"kind": "fresh", "config": {"num_hidden_layers": 1, "max_position_embeddings": 64}}
    settings = small_recipe(teacher, student=student, baseline=False)
    settings["corpus"] |= {"train_tokens": 1024, "sequence_length": 64}
    run = pipeline.run(Recipe.model_validate(settings), tmp_path, quiet=True)
    assert {file.suffix for file in (run.path / "export").glob("small-*")} == {".gguf"}


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory, small_recipe: Any) -> Path:
    """A run whose student's layers attend to 16 tokens, all but one, and whose held-out text is shorter than that."""
    root = tmp_path_factory.mktemp("windowed")
    teacher = tiny_model("gemma3_text", root / "teacher", layers=6)
    settings = small_recipe(
        teacher, student={"kind": "shrink", "layers": 5, "vocabulary": {"keep": "all"}}, baseline=False
    )
    settings["corpus"] |= {"sequence_length": 16, "train_tokens": 512, "validation_tokens": 64, "heldout_tokens": 64}
    return pipeline.run(Recipe.model_validate(settings), root, until="distill", quiet=True).path


def test_a_file_is_checked_behind_the_window(windowed: Path) -> None:
    behind = exported(windowed, gguf=["F16"])["files"][0]["behind_window"]
    assert (behind["window"], behind["positions"]) == (16, 24)
    assert behind["kl_to_pytorch"] <= 1e-4


def test_a_file_that_is_wrong_behind_the_window_alone_is_refused(
    windowed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its window is twice the student's: no text within that window tells."""
    from stillroom.models.families.gemma import FAMILIES

    layout = FAMILIES[-1].gguf
    assert layout is not None
    written = layout.extra
    assert written is not None

    def twice(writer: Any, config: Any) -> None:
        config = type(config).from_dict(config.to_dict() | {"sliding_window": 2 * config.sliding_window})
        written(writer, config)

    monkeypatch.setitem(layout.__dict__, "extra", twice)
    with pytest.raises(ExportMismatch, match="behind its attention window"):
        exported(windowed, gguf=["F16"], check_tokens=17)
    assert not list((windowed / "export").glob("*.gguf"))
