"""Checkpoints in an object store: after a machine that vanished another one goes on to the bit, and nothing half is taken."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_model

from benchmarks.s3_server import S3Server, s3_server
from stillroom import pipeline
from stillroom.core.errors import EnvironmentProblem, RecipeError, Terminated
from stillroom.core.store import LocalStore, Store, open_store, probe
from stillroom.recipe.reading import recipe_of
from stillroom.recipe.recipe import Recipe
from stillroom.training.checkpoint import STATE, TENSORS, newest
from stillroom.training.checkpoint_copy import FILES, CheckpointCopy
from tests.training.test_train_loop import a_training, taught, weights

__all__ = ["taught"]
INPUTS = {"recipe": "1" * 64, "shrink": "2" * 64}
SECRET = "hunter2-of-the-bucket"


class Stopped(Exception):
    """The machine vanishes."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server() as found:
        for name, value in (found.environment | {"AWS_SECRET_ACCESS_KEY": SECRET}).items():
            monkeypatch.setenv(name, value)
        yield found


def copies_of(store: Store, folder: Path, said: list[str], inputs: dict[str, str] = INPUTS) -> CheckpointCopy:
    folder.mkdir(parents=True, exist_ok=True)
    return CheckpointCopy(store, folder, "distill", inputs, said.append)


def a_checkpoint(folder: Path, step: int, more: bytes = b"") -> None:
    """A scratch folder with the checkpoint of a step, and what is beside it."""
    for old in folder.glob("step-*"):
        shutil.rmtree(old)
    (folder / f"step-{step:07}").mkdir(parents=True)
    (folder / f"step-{step:07}" / TENSORS).write_bytes(b"tensors %d" % step + more)
    (folder / f"step-{step:07}" / STATE).write_text(json.dumps({"step": step}))
    (folder / "best-0000001.safetensors").write_bytes(b"best")
    (folder / "own-cache").mkdir(exist_ok=True)
    (folder / "own-cache" / "shard").write_bytes(b"signals")
    (folder / "cache").mkdir(exist_ok=True)
    (folder / "cache" / "shard").write_bytes(b"of a store")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copied(store: Store, folder: Path, *steps: int) -> list[str]:
    """Make and copy checkpoints; what was said."""
    said: list[str] = []
    copies = copies_of(store, folder, said)
    assert copies.restore() is None
    for step in steps:
        a_checkpoint(folder, step)
        copies.begin(step)
        assert copies.wait()
    return said


def test_a_training_goes_on_to_the_bit_on_an_empty_machine(taught: Any, tmp_path: Path, server: S3Server) -> None:
    whole = a_training(taught, tmp_path / "whole")
    whole.run()

    def vanish(**values: Any) -> None:
        if values.get("step") == 8 and "loss" in values:
            raise Stopped

    store = open_store("s3://bucket/checkpoints")
    said: list[str] = []
    first = a_training(taught, tmp_path / "first", event=vanish)
    first.copies = copies_of(store, first.folder, said)
    assert first.copies.restore() is None
    with pytest.raises(Stopped):
        first.run()
    first.copies.wait()
    shutil.rmtree(tmp_path / "first")

    second = a_training(taught, tmp_path / "second")
    second.copies = copies_of(store, second.folder, said)
    step = second.copies.restore()
    assert step == 7
    assert len(said) == 1
    assert "goes on from the checkpoint of step 7 in s3://bucket/checkpoints/distill-" in said[0]
    state = second.run()
    assert state.step == 12
    assert [entry["step"] for entry in state.history] == [0, 4, 8, 12]
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(second).items())
    # What is there is the last step, and nothing that no note names.
    notes = [key for key in server.objects if "/step-" in key]
    assert sorted(notes)[-1].endswith("step-0000012.json")
    assert len(notes) <= 2
    named = {entry["sha256"] for key in notes for entry in json.loads(server.objects[key])["files"].values()}
    assert {key.rpartition("/")[2] for key in server.objects if f"/{FILES}" in key} == named


def test_everything_that_the_next_step_depends_on_is_there_again(tmp_path: Path, server: S3Server) -> None:
    store = open_store("s3://bucket/x")
    copied(store, tmp_path / "a", 1, 2, 3)
    said: list[str] = []
    assert copies_of(store, tmp_path / "b", said).restore() == 3
    expected = contents(tmp_path / "a")
    del expected["cache/shard"]
    assert contents(tmp_path / "b") == expected
    # Where there is a checkpoint already, it counts.
    a_checkpoint(tmp_path / "c", 1)
    assert copies_of(store, tmp_path / "c", said).restore() is None
    assert newest(tmp_path / "c") == tmp_path / "c" / "step-0000001"


def test_a_file_that_did_not_change_is_sent_once(tmp_path: Path, server: S3Server) -> None:
    store = open_store("s3://bucket/x")
    copied(store, tmp_path / "a", 1)
    before = server.puts
    copied_again = copies_of(store, tmp_path / "a", [])
    a_checkpoint(tmp_path / "a", 2)
    copied_again.begin(2)
    assert copied_again.wait()
    # Its tensors, its state and its note; not the best weights and the student's own text.
    assert server.puts - before == 3


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("cut", "bytes instead of"),
        ("altered", "another SHA-256"),
        ("missing", "is missing"),
        ("note", "its note cannot be read"),
        ("outside", "its note cannot be read"),
        ("no state", "names no whole checkpoint"),
    ],
)
def test_a_damaged_copy_is_named_and_the_one_before_it_taken(
    damage: str, words: str, tmp_path: Path, server: S3Server
) -> None:
    store = open_store("s3://bucket/x")
    copied(store, tmp_path / "a", 1, 2)
    (key,) = (key for key in server.objects if key.endswith("step-0000002.json"))
    note = json.loads(server.objects[key])
    blob = key.rpartition("/")[0] + "/" + FILES + note["files"][f"step-0000002/{TENSORS}"]["sha256"]
    if damage == "cut":
        server.objects[blob] = server.objects[blob][:-1]
    elif damage == "altered":
        server.objects[blob] = b"T" + server.objects[blob][1:]
    elif damage == "missing":
        del server.objects[blob]
    elif damage == "note":
        server.objects[key] = server.objects[key][:-9]
    else:
        entry = note["files"].pop(f"step-0000002/{STATE}")
        if damage == "outside":
            note["files"]["../../outside"] = entry
        server.objects[key] = json.dumps(note).encode()
    said: list[str] = []
    assert copies_of(store, tmp_path / "b", said).restore() == 1
    assert words in said[0]
    assert "step-0000002.json is not taken" in said[0]
    assert "step 1 in" in said[1]
    assert newest(tmp_path / "b") == tmp_path / "b" / "step-0000001"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert not list((tmp_path / "b").rglob("*.partial"))


def test_a_copy_that_was_cut_off_anywhere_is_not_taken(tmp_path: Path, server: S3Server) -> None:
    store = open_store("s3://bucket/x")
    copied(store, tmp_path / "a", 1)
    held = dict(server.objects)
    a_checkpoint(tmp_path / "a", 2)
    copies = copies_of(store, tmp_path / "a", [])
    copies.begin(2)
    copies.wait()
    new = [key for key in server.objects if key not in held]
    assert len(new) == 3
    for number, key in enumerate(new):
        kept = dict(server.objects)
        server.objects.pop(key)
        assert copies_of(store, tmp_path / f"b{number}", []).restore() == 1
        server.objects.update(kept)
    assert copies_of(store, tmp_path / "whole", []).restore() == 2


def test_copies_of_another_training_are_not_taken_and_the_difference_is_said(tmp_path: Path, server: S3Server) -> None:
    store = open_store("s3://bucket/x")
    copied(store, tmp_path / "a", 1)
    said: list[str] = []
    assert copies_of(store, tmp_path / "b", said, INPUTS | {"shrink": "3" * 64}).restore() is None
    assert len(said) == 1
    assert "is of another training, and not taken: `shrink` differs" in said[0]
    said.clear()
    assert copies_of(store, tmp_path / "c", said, INPUTS | {"recipe": "3" * 64}).restore() is None
    assert "`recipe` differs (a recipe without `seed` draws a secret" in said[0]
    assert not list((tmp_path / "b").iterdir())


class Held(LocalStore):
    """A store whose files wait until they are let in; it fails where it is told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.open = threading.Event()
        self.asked = threading.Event()
        self.fails = 0

    def put_file(self, key: str, path: Path) -> None:
        self.asked.set()
        assert self.open.wait(30)
        if self.fails:
            self.fails -= 1
            raise EnvironmentProblem("s3://bucket/x: it is not there today.", "Wait.")
        super().put_file(key, path)


def test_at_most_one_checkpoint_waits_while_another_is_copied(tmp_path: Path) -> None:
    store = Held(tmp_path / "store")
    copies = copies_of(store, tmp_path / "a", [])
    for step in (1, 2, 3, 4):
        # Each is gone from the folder when the next one is there.
        a_checkpoint(tmp_path / "a", step)
        copies.begin(step)
        assert store.asked.wait(30)
    waiting = list((tmp_path / "a" / "copying.partial").iterdir())
    assert len(waiting) == 2
    store.open.set()
    assert copies.wait()
    assert [Path(key).name for key in store.names("") if "/step-" in key] == ["step-0000001.json", "step-0000004.json"]
    assert not list((tmp_path / "a" / "copying.partial").iterdir())
    assert copies_of(store, tmp_path / "b", []).restore() == 4


def test_training_goes_on_without_the_store_and_says_so(taught: Any, tmp_path: Path) -> None:
    store = Held(tmp_path / "store")
    store.open.set()
    store.fails = 1
    said: list[str] = []
    training = a_training(taught, tmp_path / "a")
    training.copies = copies_of(store, training.folder, said)
    assert training.run().step == 12
    assert len(said) == 1
    assert "was not copied: s3://bucket/x: it is not there today." in said[0]
    assert copies_of(store, tmp_path / "b", []).restore() == 12


def test_sigterm_waits_for_the_copy_of_its_checkpoint(taught: Any, tmp_path: Path) -> None:
    store = Held(tmp_path / "store")

    def stop(**values: Any) -> None:
        if values.get("step") == 5 and "loss" in values:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Timer(0.3, store.open.set).start()

    training = a_training(taught, tmp_path / "a", event=stop)
    training.copies = copies_of(store, training.folder, [])
    with pytest.raises(Terminated, match="after step") as caught:
        training.run()
    assert "A checkpoint was written and copied" in str(caught.value.todo)
    step = copies_of(store, tmp_path / "b", []).restore()
    assert step is not None
    assert f"after step {step} " in caught.value.what


@pytest.mark.longer
def test_a_run_on_an_empty_machine_goes_on_and_tells_no_secret(
    small_recipe: Any, tmp_path: Path, server: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher", layers=4)
    values = small_recipe(teacher, baseline=False)
    values["distill"] |= {"checkpoint_seconds": 0, "batch_tokens": 64, "learning_rate": 1e-3}
    whole = pipeline.run(values, tmp_path / "whole", until="distill", quiet=True)
    copying = values | {"distill": values["distill"] | {"checkpoint_copy": "s3://bucket/of/runs"}}

    def vanish(_: str, event: Any) -> None:
        if event["step"] == 4:
            raise Stopped

    with pytest.raises(Stopped):
        pipeline.run(copying, tmp_path / "lost", until="distill", quiet=True, on_step=vanish)
    for thread in threading.enumerate():
        if thread.name == "checkpoint-copy":
            thread.join()
    shutil.rmtree(tmp_path / "lost")
    made = pipeline.run(copying, tmp_path / "new", until="distill")
    said = capsys.readouterr().err
    assert "goes on from the checkpoint of step 3 in s3://bucket/of/runs/distill-" in said
    (event,) = (event for event in made.events("distill") if event.get("event") == "restored")
    assert event["from_step"] == 3
    assert next(event["step"] for event in made.metrics if "loss" in event) == 4
    models = [load_file(each.path / "distill" / "model" / "model.safetensors") for each in (whole, made)]
    assert all(torch.equal(models[1][name], tensor) for name, tensor in models[0].items())
    held = [*server.objects.values(), *contents(made.path).values(), said.encode()]
    assert not any(SECRET.encode() in data for data in held)
    # Where checkpoints are copied to changes nothing in what is finished.
    again = pipeline.run(values | {"name": made.recipe.name}, tmp_path / "new", until="distill", quiet=True)
    assert again.done == []


def test_a_store_that_cannot_be_used_is_refused_before_anything_is_spent(
    small_recipe: Any, tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher", layers=4)
    recipe = Recipe.model_validate(small_recipe(teacher, distill={"checkpoint_copy": "s3://bucket/x"}))
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(EnvironmentProblem, match="s3://bucket/x"):
        pipeline.run(recipe, tmp_path / "runs", quiet=True)
    assert not list((tmp_path / "runs").rglob("stage.json"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    probe(open_store("s3://bucket/x"))
    assert not server.objects


def test_a_store_that_replaces_what_is_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def put_new(self: LocalStore, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True

    probe(LocalStore(tmp_path / "a"))
    monkeypatch.setattr(LocalStore, "put_new", put_new)
    with pytest.raises(EnvironmentProblem, match="an object can be put where there is one"):
        probe(LocalStore(tmp_path / "a"))


@pytest.mark.parametrize("where", ["s3://me:hunter2@bucket/x", "ftp://bucket/x", "a/folder"])
def test_a_place_that_is_no_store_is_refused_by_the_recipe(where: str) -> None:
    with pytest.raises(RecipeError, match="checkpoint_copy") as caught:
        recipe_of({"name": "x", "corpus": {"sources": []}, "distill": {"checkpoint_copy": where}})
    assert "hunter2" not in str(caught.value)
