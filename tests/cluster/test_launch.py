"""`stillroom run --workers 2`: the stage `distill` by two processes that torch elastic starts."""

from __future__ import annotations

import errno
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.s3_server import s3_server
from stillroom import pipeline
from stillroom.cluster import agent, launch
from stillroom.cluster.cluster import Cluster
from stillroom.core.errors import DiskFull, EnvironmentProblem, SwitchedOff
from stillroom.core.progress import Progress
from stillroom.runs.run import Run
from stillroom.switch import Places, Switch
from stillroom.switch.stopping import Receipt, off, on
from stillroom.training import stage
from stillroom.training.group import Group
from tests.cluster.cluster_material import children_with, recipe_in, weights_difference

pytestmark = pytest.mark.cluster


def test_a_process_that_is_killed_has_all_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    values = recipe_in(tmp_path)
    run = pipeline.run({"name": "killed", **values}, tmp_path / "runs", until="shrink", quiet=True)
    scratch = run.stage("distill").scratch
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not killed and not over.is_set():
            workers = children_with("spawn_main")
            if len(workers) == 2 and list(scratch.glob("step-*/state.json")):
                workers[1].kill()
                killed.append(workers[1].pid)
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        made = pipeline.run(run, until="distill", quiet=True, cluster=Cluster(2))
    finally:
        over.set()
        thread.join()
    assert killed
    assert "Traceback" not in capfd.readouterr().err
    one = pipeline.run({"name": "whole", **values}, tmp_path / "runs", until="distill", quiet=True)
    assert weights_difference(made, one) <= 5e-6


def work_that_ends(error: Exception, *arguments: Any) -> None:
    """What a process does whose second rank has an error, while the first waits for it."""

    def train(_run: Any, _stage: Any, _progress: Any, group: Group) -> None:
        if group.rank == 1:
            raise error
        group.barrier()

    setattr(stage, "run_in_group", train)  # noqa: B010 - of this process alone
    setattr(Run, "open", lambda _: SimpleNamespace(stage=str))  # noqa: B010
    launch.work(*arguments)


def with_a_fault(*arguments: Any) -> None:
    """What a process does whose second rank has an error that is not ours."""
    work_that_ends(ValueError("not of this kind"), *arguments)


def test_a_fault_is_tried_again_and_then_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    places = Places.under(tmp_path / "switch")
    monkeypatch.setattr(Places, "of_user", lambda: places)
    monkeypatch.setattr(launch, "RESTARTS", 1)
    monkeypatch.setattr(launch, "work", with_a_fault)
    made: Any = SimpleNamespace(path=tmp_path)
    begun: Any = SimpleNamespace(name="distill", scratch=tmp_path / "scratch", notes={})
    with pytest.raises(EnvironmentProblem, match=r"ended with code 1, and again after 1 new starts: \S.*: ") as raised:
        launch.train_together(made, begun, 2, Progress(), "replicate")
    (kept,) = begun.scratch.glob("process-*.txt")
    assert f"All that it said is in {kept}." in raised.value.todo
    assert kept.read_text().startswith("Traceback")
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err
    assert said.out.count("all are started again") + said.err.count("all are started again") == 1


def test_two_workers_make_the_student_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    values = recipe_in(tmp_path)
    one = pipeline.run({"name": "one", **values}, tmp_path / "runs", until="distill", quiet=True)
    two = pipeline.run({"name": "two", **values}, tmp_path / "runs", until="distill", quiet=True, cluster=Cluster(2))
    record = two.stage("distill").record
    assert record is not None
    assert record["notes"]["processes"] == 2
    assert record["notes"]["steps"] == (one.stage("distill").record or {})["notes"]["steps"]
    losses = [[event["loss"] for event in made.metrics if "loss" in event] for made in (one, two)]
    assert len(losses[0]) == len(losses[1]) > 2
    assert all(abs(a - b) <= 1e-6 * a for a, b in zip(*losses, strict=True))
    assert weights_difference(two, one) <= 5e-6
    # It is finished for one process, too: where it was done is no part of what it is.
    again = pipeline.run(two, until="distill", quiet=True)
    assert "distill" not in again.done or again.done == two.done


def test_off_stops_the_processes_and_the_run_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    places = Places.under(tmp_path / "switch")
    monkeypatch.setattr(Places, "of_user", lambda: places)
    values = recipe_in(tmp_path, documents=120)
    run = pipeline.run({"name": "off", **values}, tmp_path / "runs", until="shrink", quiet=True)
    scratch = run.stage("distill").scratch
    receipts: list[Receipt] = []
    over = threading.Event()

    def turn_off() -> None:
        while not over.is_set():
            if list(scratch.glob("step-*/state.json")):
                receipts.append(off(Switch(places)))
                return
            time.sleep(0.01)

    thread = threading.Thread(target=turn_off)
    thread.start()
    try:
        with pytest.raises(SwitchedOff):
            pipeline.run(run, until="distill", quiet=True, cluster=Cluster(2))
    finally:
        over.set()
        thread.join()
    ended = time.time()
    (receipt,) = receipts
    assert {stopped.model for stopped in receipt.stopped} == {"distill of off"}
    assert len({stopped.pid for stopped in receipt.stopped}) == 2
    assert not any(psutil.pid_exists(stopped.pid) for stopped in receipt.stopped)
    assert receipt.seconds < 2
    assert ended - receipt.asked < 10  # no new start, which takes longer
    with pytest.raises(SwitchedOff):
        pipeline.run(run, until="distill", quiet=True, cluster=Cluster(2))
    assert run.stage("distill").record is None
    on(Switch(places))
    made = pipeline.run(run, until="distill", quiet=True, cluster=Cluster(2))
    assert made.stage("distill").record is not None
    assert "distill" in made.done


def test_two_workers_go_on_from_the_copy_of_two_that_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    values = recipe_in(tmp_path)
    values["distill"] |= {"checkpoint_copy": "s3://bucket/checkpoints"}
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        values["name"] = "copied"
        first = pipeline.run(values, tmp_path / "lost", until="distill", quiet=True, cluster=Cluster(2))
        steps = (first.stage("distill").record or {})["notes"]["steps"]
        assert any(key.endswith(f"/step-{steps:07}.json") for key in server.objects)
        model = load_file(first.path / "distill" / "model" / "model.safetensors")
        shutil.rmtree(tmp_path / "lost")
        second = pipeline.run(values, tmp_path / "new", until="distill", quiet=True, cluster=Cluster(2))
    (event,) = (event for event in second.events("distill") if event.get("event") == "restored")
    assert event["from_step"] == steps
    found = load_file(second.path / "distill" / "model" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in model.items())


def on_a_full_disk(*arguments: Any) -> None:
    """What a process does whose second rank finds no room, while the first waits for it."""
    work_that_ends(OSError(errno.ENOSPC, "No space left on device"), *arguments)


def test_an_error_of_ours_in_one_process_ends_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    places = Places.under(tmp_path / "switch")
    monkeypatch.setattr(Places, "of_user", lambda: places)
    starts: list[int] = []
    begin = agent.Agent._start_workers

    def start(*each: Any) -> Any:
        starts.append(1)
        return begin(*each)

    monkeypatch.setattr(agent.Agent, "_start_workers", start)
    monkeypatch.setattr(launch, "work", on_a_full_disk)
    made: Any = SimpleNamespace(path=tmp_path)
    begun: Any = SimpleNamespace(name="distill", scratch=tmp_path / "scratch", notes={})
    with pytest.raises(DiskFull, match="the disk is full"):
        launch.train_together(made, begun, 2, Progress(quiet=True), "replicate")
    assert starts == [1]
    assert "Traceback" not in capfd.readouterr().err
    assert not children_with("spawn_main")
