"""Every mistake of a user and every trouble of a machine is one clear message and an exit code, and loses nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import tiny_model

from stillroom.cli import app as cli
from stillroom.core.errors import EnvironmentProblem, OutOfMemory, TrainingDiverged, told, translate

NAMESPACE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    script = "mount -t tmpfs -o size=1m none /mnt"
    return subprocess.run([*NAMESPACE, "sh", "-c", script], capture_output=True, check=False).returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="this system lets nobody mount a small disk")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command; returns its exit code and what it wrote on standard error."""

    def call(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["stillroom", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return code, error

    return call


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "teacher", layers=3)


def write(folder: Path, settings: dict[str, Any]) -> Path:
    recipe = folder / "small.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    return recipe


def test_no_recipe(said: Any, tmp_path: Path) -> None:
    code, error = said("run", tmp_path / "none.yaml")
    assert code == 2
    assert "none.yaml: no such recipe" in error


def test_a_wrong_key_names_line_key_and_what_is_meant(
    said: Any, small_recipe: Any, teacher: Path, tmp_path: Path
) -> None:
    settings = small_recipe(teacher)
    settings["distill"]["learning_rat"] = 1e-3
    code, error = said("run", write(tmp_path, settings))
    assert code == 2
    assert "small.yaml, line" in error
    assert "`distill.learning_rat` is not a key" in error
    assert "Did you mean `learning_rate`?" in error


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("package:no_such_package_here/model.gguf", ("no_such_package_here", "pip install")),
        ("package:json/none.gguf", ("none.gguf",)),
        ("/no/such/file.gguf", ("/no/such/file.gguf",)),
    ],
)
def test_a_teacher_that_is_not_there(
    said: Any, small_recipe: Any, tmp_path: Path, name: str, words: tuple[str, ...]
) -> None:
    code, error = said("run", write(tmp_path, small_recipe("x", teacher={"kind": "gguf", "path": name})), "-q")
    assert code == 2
    assert all(word in error for word in words), error


def test_an_optional_package_that_is_missing(
    said: Any, small_recipe: Any, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_recipe(teacher)
    settings["corpus"]["sources"] = [{"kind": "reasoning_gym", "count": 10}]
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    code, error = said("run", write(tmp_path, settings), "--runs", tmp_path, "-q")
    assert code == 2
    assert "reasoning" in error
    assert "pip install" in error


def test_student_and_teacher_with_different_vocabularies(
    said: Any, small_recipe: Any, teacher: Path, tmp_path: Path
) -> None:
    other = tiny_model("llama", tmp_path / "other", layers=2, vocabulary_size=400)
    settings = small_recipe(teacher, student={"kind": "existing", "name": str(other)})
    code, error = said("run", write(tmp_path, settings), "--runs", tmp_path, "-q")
    assert code == 2
    assert "different vocabularies" in error
    assert "the token" in error


def test_a_loss_that_is_not_finite(
    said: Any, small_recipe: Any, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A rate that is refused before a run begins stands for losses that end like this at a rate that is not.
    for module in ("training.losses.registry", "planning.plan"):
        monkeypatch.setattr(f"stillroom.{module}.require_fit", lambda *_: None)
    settings = small_recipe(teacher)
    settings["distill"] |= {"learning_rate": 1e30, "warmup_share": 0, "gradient_clip": 1e9}
    code, error = said("run", write(tmp_path, settings), "--runs", tmp_path, "-q")
    assert code == 1
    assert "at step" in error
    assert "learning rate" in error
    assert "Try" in error
    assert not (tmp_path / "small" / "distill" / "stage.json").exists()
    assert (tmp_path / "small" / "shrink" / "stage.json").exists()


def test_a_cut_off_cache_is_named_and_captured_again(
    said: Any, small_recipe: Any, teacher: Path, tmp_path: Path
) -> None:
    recipe = write(tmp_path, small_recipe(teacher, baseline=False, export={"gguf": []}))
    assert said("run", recipe, "--runs", tmp_path, "--until", "capture", "-q")[0] == 0
    shard = next((tmp_path / "small" / "capture" / "cache").glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-9])
    code, error = said("cache", "verify", shard.parent)
    assert code == 1
    assert shard.name in error
    assert said("run", recipe, "--runs", tmp_path, "--until", "capture", "-q")[0] == 0
    assert said("cache", "verify", shard.parent)[0] == 0


def test_chat_with_what_cannot_be_run(said: Any, tmp_path: Path) -> None:
    assert said("chat", tmp_path)[0] == 2
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    code, error = said("chat", tmp_path / "cut.gguf", "-p", "x")
    assert code in (1, 3)
    assert "cut.gguf" in error


def test_a_busy_run_keeps_others_out(said: Any, small_recipe: Any, teacher: Path, tmp_path: Path) -> None:
    from stillroom.recipe.recipe import Recipe
    from stillroom.runs.run import Run

    settings = small_recipe(teacher)
    with Run.create(Recipe.model_validate(settings), tmp_path).locked():
        code, error = said("run", write(tmp_path, settings), "--runs", tmp_path, "-q")
    assert code == 2
    assert "another process" in error


SMALL_DISKS = """
import json, os, subprocess, sys
from pathlib import Path

import stillroom.pipeline as pipeline
import stillroom.evaluation.stage, stillroom.students.stage, stillroom.training.stage
import transformers.models.auto.modeling_auto, transformers.models.auto.tokenization_auto
import transformers.models.llama.modeling_llama
from stillroom.cli.app import main


def told(recipe, disk, spare, until):
    # A run in a child with everything imported: its exit code, and what it says.
    with (Path(recipe).parent / "said").open("w+") as said:
        child = os.fork()
        if not child:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            pipeline.SPARE_BYTES = spare
            sys.argv = ["stillroom", "run", recipe, "--runs", disk, "--until", until, "-q"]
            main()
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return code, said.read()


found, usual = {}, pipeline.SPARE_BYTES
for size, recipe, spare, until in json.loads(sys.argv[1]):
    disk = str(Path(recipe).parent / "disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], check=True)
    first = told(recipe, disk, spare, "evaluate")
    done = [path.parent.name for path in Path(disk).glob("small/*/stage.json")]
    subprocess.run(["mount", "-o", "remount,size=400m", disk], check=True)
    again = told(recipe, disk, usual, until)
    partial = [str(path) for path in Path(disk).rglob("*.partial")]
    made = (Path(disk) / "small/distill/model/model.safetensors").is_file()
    found[size] = {"first": first, "done": done, "again": again, "partial": partial, "made": made}
print(json.dumps(found))
"""
FULL = {"400k": "distill", "900k": "distill", "1500k": "evaluate"}
"""Sizes of a disk that fills up, and how far the run goes once it is larger: as far as it was stopped, and one to its end."""


@pytest.fixture(scope="module")
def disks(small_recipe: Any, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """For each size of disk: what the command said, what it said when the disk was larger, and what was there then."""
    settings = small_recipe(teacher, baseline=False, export={"gguf": ["F16"], "check_tokens": 16})
    settings["corpus"] |= {"train_tokens": 1024, "heldout_tokens": 128}
    settings["evaluate"] = {"measures": ["fidelity", "cost"], "speed_tokens": 0, "bootstrap_samples": 100}
    given = []
    for size, spare, until in [*((size, 0, until) for size, until in FULL.items()), ("20m", 64 << 20, "corpus")]:
        folder = tmp_path_factory.mktemp(size)
        (folder / "disk").mkdir()
        given.append((size, str(write(folder, settings)), spare, until))
    command = [*NAMESPACE, sys.executable, "-c", SMALL_DISKS, json.dumps(given)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


@needs_mount
@pytest.mark.parametrize("size", FULL)
def test_a_disk_that_fills_up(disks: dict[str, Any], size: str) -> None:
    code, said = disks[size]["first"]
    assert "Traceback" not in said, said
    assert code == 3, said
    assert "the disk is full" in said
    assert "Free some disk space" in said
    assert FULL[size] not in disks[size]["done"]
    assert disks[size]["again"][0] == 0, disks[size]["again"]
    assert not disks[size]["partial"]
    assert disks[size]["made"]


@needs_mount
def test_too_small_a_disk_is_refused_before_a_stage(disks: dict[str, Any]) -> None:
    code, said = disks["20m"]["first"]
    assert code == 3, said
    assert "too little to begin the stage `corpus`" in said
    assert disks["20m"]["again"][0] == 0, disks["20m"]["again"]


@needs_mount
def test_a_read_only_folder(small_recipe: Any, teacher: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sealed"
    folder.mkdir()
    recipe = write(tmp_path, small_recipe(teacher))
    script = (
        f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} || exit 99\n"
        f"{sys.executable} -m stillroom run {recipe} --runs {folder} -q; echo CODE $?"
    )
    shown = subprocess.run([*NAMESPACE, "sh", "-c", script], capture_output=True, text=True, check=False)
    assert "CODE 3" in shown.stdout, shown
    assert "Traceback" not in shown.stderr
    assert str(folder) in shown.stderr
    assert "permissions" in shown.stderr


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 2 GiB",
        "HIP out of memory. Tried to allocate 2 GiB",
        "CUDA error: out of memory",
        "MPS backend out of memory (MPS allocated: 9 GB)",
    ],
)
def test_memory_of_any_gpu_that_runs_out_is_known(words: str) -> None:
    assert isinstance(translate(RuntimeError(words)), OutOfMemory)
    assert translate(ValueError(words)) is None


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("TrainingDiverged", TrainingDiverged),
        ("translate", EnvironmentProblem),
        ("Path", EnvironmentProblem),
        ("", EnvironmentProblem),
    ],
)
def test_what_another_process_told_is_one_of_our_errors(kind: str, found: type) -> None:
    error = told(kind, "What.", "Do.")
    assert type(error) is found
    assert (error.what, error.todo) == ("What.", "Do.")


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """A folder of what is no run and no cache: a file, a folder of something else, and numbers that no run wrote."""
    (tmp_path / "file").write_text("x")
    for name, summary in (("cut", '{"name'), ("other", "{}"), ("list", "[]")):
        (tmp_path / name / "measures").mkdir(parents=True)
        (tmp_path / name / "summary.json").write_text(summary)
        (tmp_path / name / "measures" / "fidelity.json").write_text(summary)
    return tmp_path


@pytest.mark.parametrize("place", ["missing", "file", "file/inside", "other", "a" * 300])
@pytest.mark.parametrize(
    "command",
    [
        "cache info",
        "cache verify",
        "cache seal",
        "runs",
        "report",
        "compare",
        "ladder",
        "package",
        "plan",
        "capture --part 1/2",
        "evaluate --only cost",
    ],
)
def test_a_folder_that_is_none_is_one_message(command: str, place: str, wrong: Path, said: Any) -> None:
    if command == "runs":
        # A folder in which there is no run is an answer.
        shutil.rmtree(wrong / "other")
    places = [wrong / place] * (2 if command == "compare" else 1)
    code, error = said(*command.split(), *places)
    assert code in (1, 2, 3)
    assert place in error
    assert not list(wrong.rglob("*.lock"))


@pytest.mark.parametrize("name", ["cut", "other", "list"])
def test_numbers_that_no_run_wrote_are_named(name: str, wrong: Path, said: Any) -> None:
    code, error = said("compare", wrong / name, wrong / name)
    assert code == 2
    assert str(wrong / name) in error


def test_runs_are_not_made_inside_a_file(small_recipe: Any, teacher: Path, wrong: Path, said: Any) -> None:
    recipe = write(wrong, small_recipe(teacher))
    code, error = said("run", recipe, "--runs", wrong / "file", "-q")
    assert code == 2
    assert "a part of this path is a file and no folder" in error
