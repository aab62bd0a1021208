"""Trackers for real: what was logged is read back from what each wrote. One that is not installed is skipped."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from stillroom.core import tracking as track
from stillroom.core.errors import EnvironmentProblem
from stillroom.recipe.recipe import Recipe
from stillroom.runs.run import Run

LOSSES = {1: 3.0, 2: 2.5, 3: 2.25}


def log_a_run(tracker: str, folder: Path, small_recipe: Any) -> Path:
    """Events of a small training, through the run's own door."""
    made = Run.create(Recipe.model_validate(small_recipe("teacher", track=[tracker])), folder)
    made.event("distill", event="begun", resumed=False)
    for step, loss in LOSSES.items():
        made.event("distill", step=step, loss=loss)
    made.event("distill", event="validation", step=3, kl=0.5)
    return made.path


def test_tensorboard(tmp_path: Path, small_recipe: Any) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = log_a_run("tensorboard", tmp_path, small_recipe)
    read = EventAccumulator(str(path / "tensorboard")).Reload()
    assert {entry.step: entry.value for entry in read.Scalars("distill/loss")} == LOSSES
    assert [(entry.step, entry.value) for entry in read.Scalars("distill/validation_kl")] == [(3, 0.5)]


def test_wandb_offline(tmp_path: Path, small_recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    path = log_a_run("wandb", tmp_path, small_recipe)
    tracked = wandb.run
    assert (tracked.project, tracked.name) == ("stillroom", "small")
    assert tracked.summary["distill/loss"] == LOSSES[3]
    assert tracked.summary["distill/validation_kl"] == 0.5
    wandb.finish()
    # The service that writes the file ends with this.
    wandb.teardown()
    (written,) = path.glob("wandb/offline-run-*/*.wandb")
    assert b"distill/validation_kl" in written.read_bytes()


def test_mlflow_beside_the_run(tmp_path: Path, small_recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    path = log_a_run("mlflow", tmp_path, small_recipe)
    client = mlflow.MlflowClient()
    (found,) = mlflow.search_runs(experiment_names=["stillroom"], output_format="list")
    mlflow.end_run()
    assert found.info.run_name == "small"
    history = client.get_metric_history(found.info.run_id, "distill/loss")
    assert {entry.step: entry.value for entry in history} == LOSSES
    assert (path / "mlflow.db").is_file()


def test_a_tracker_that_fails_does_not_stop_training(
    tmp_path: Path, small_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def opener(run: Path) -> track.Log:
        def log(numbers: dict[str, float], step: int) -> None:
            calls.append(step)
            raise ConnectionError("the server is gone\nand more")

        return log

    monkeypatch.setitem(track._OPENERS, "mlflow", opener)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        path = log_a_run("mlflow", tmp_path, small_recipe)
    assert calls == [1]
    assert [str(entry.message) for entry in seen] == [
        "The tracker `mlflow` failed and gets no more numbers: the server is gone"
    ]
    assert len(Run.open(path).events("distill")) == 5


def test_a_tracker_that_does_not_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(track._OPENERS, "wandb", lambda run: {}["no key"])
    with pytest.raises(EnvironmentProblem, match="`wandb` does not start"):
        track.open_trackers(("wandb",), tmp_path)
