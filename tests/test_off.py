"""`stillroom off` while a run is at work in one process: it stops with the switch's words, and goes on once it is on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from students.tiny_families import tiny_sequences
from tiny_models import tiny_model

from stillroom import pipeline
from stillroom.core import files
from stillroom.core.errors import SwitchedOff
from stillroom.core.progress import Progress
from stillroom.formats.gguf_file import write_gguf
from stillroom.models.families.registry import family_of
from stillroom.models.load import load_teacher
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.teacher import GgufTeacher, HuggingFaceTeacher
from stillroom.runs.run import Run
from stillroom.students.importance import Sample
from stillroom.students.measured import Measured
from stillroom.switch import Places, Switch
from stillroom.training.checkpoint import newest
from stillroom.training.loop import Training

TRAINED = ("distill", "baseline")
MADE = (
    "corpus/train.safetensors",
    "shrink/model/model.safetensors",
    "distill/model/model.safetensors",
    "baseline/model/model.safetensors",
    "export/small-F16.gguf",
)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Switch:
    """A switch of the test's own, which the run asks."""
    places = Places.under(tmp_path / "account")
    monkeypatch.setattr(Places, "of_user", lambda: places)
    return Switch(places)


def again_or_refused(again: Callable[[], Run]) -> Run | None:
    """The finished run, or None where the switch stopped it."""
    words = ""
    try:
        return again()
    except SwitchedOff as error:
        words = str(error)
    assert "The switch is off: " in words
    assert "Turn it on: stillroom on" in words
    return None


def test_off_in_every_stage(every_stage: dict[str, Any], tmp_path: Path, own: Switch) -> None:
    recipe = Recipe.model_validate(every_stage)
    pipeline.run(recipe, tmp_path / "never", quiet=True)
    turned: list[str] = []

    def off(stage: str) -> None:
        if stage not in turned:
            turned.append(stage)
            own.write(False)

    def on_stage(stage: str, event: Any) -> None:
        if event["event"] == "begun" and stage not in TRAINED:
            off(stage)

    def on_step(stage: str, numbers: Any) -> None:
        if numbers.get("step") == 2:
            off(stage)

    def again() -> Run:
        return pipeline.run(recipe, tmp_path / "stopped", quiet=True, on_stage=on_stage, on_step=on_step)

    stopped = 0
    while (made := again_or_refused(again)) is None:
        stopped += 1
        stage = turned[-1]
        if stage in TRAINED:
            checkpoint = newest(Run.open(tmp_path / "stopped" / "small").stage(stage).scratch)
            assert checkpoint is not None
            assert checkpoint.name.endswith("2")
        # Nothing goes on while it is off.
        assert again_or_refused(again) is None
        assert turned[-1] == stage
        own.write(True)
    assert turned == ["corpus", "capture", "shrink", "distill", "baseline", "export", "evaluate"]
    assert stopped == len(turned)
    for stage in TRAINED:
        # From the checkpoint, and not from the start.
        steps = [event["step"] for event in made.events(stage) if "loss" in event]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) > 2
    for name in MADE:
        never, once = (files.digest_file(tmp_path / root / "small" / name) for root in ("never", "stopped"))
        assert never == once, name


def test_a_switch_that_is_on_again_by_the_time_of_the_checkpoint_stops_nothing(
    small_recipe: Any, tmp_path: Path, own: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_recipe(
        tiny_model("llama", tmp_path / "teacher", layers=2), student={"kind": "shrink", "layers": 1}
    )
    settings["corpus"] |= {"train_tokens": 1024, "heldout_tokens": 128}
    save = Training._save

    def saved(*given: Any) -> None:
        save(*given)
        own.write(True)

    monkeypatch.setattr(Training, "_save", saved)
    made = pipeline.run(
        Recipe.model_validate(settings),
        tmp_path,
        until="distill",
        quiet=True,
        on_step=lambda _, numbers: own.write(False) if numbers.get("step") == 2 else None,
    )
    assert made.stage("distill").record is not None


@pytest.mark.parametrize("stored", ["folder", "file"])
def test_loading_a_teacher_and_measuring_it_ask_too(original: Path, tmp_path: Path, stored: str) -> None:
    config: HuggingFaceTeacher | GgufTeacher = HuggingFaceTeacher(name=str(original))
    if stored == "file":
        write_gguf(original, tmp_path / "teacher.gguf", "F32", name="tiny", licence="MIT")
        config = GgufTeacher(path=str(tmp_path / "teacher.gguf"))
    asked = 0

    def ask() -> None:
        nonlocal asked
        asked += 1
        if asked == ends:
            raise SwitchedOff("The switch is off: ", "Turn it on: stillroom on")

    ends = 0
    with Progress(quiet=True, ask=ask).at_work():
        loaded = load_teacher(config, "cpu", torch.float32)
        assert asked >= (3 if stored == "folder" else 2 + loaded.model.config.num_hidden_layers)
        text = tiny_sequences(8, 32)
        before = asked
        Measured.of(loaded.model, family_of(loaded.model), Sample.of(text, 256), leave_one_out=True)
        assert asked - before > 8
        ends = asked + (asked - before) // 2
        with pytest.raises(SwitchedOff):
            Measured.of(loaded.model, family_of(loaded.model), Sample.of(text, 256), leave_one_out=True)
    ends = asked + 1
    load_teacher(config, "cpu", torch.float32)
    assert asked == ends - 1, "nothing is asked once the run is not at work"
