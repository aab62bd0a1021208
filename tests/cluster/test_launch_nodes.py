"""`stillroom run --nodes 2`: two launchers on this machine, as two nodes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stillroom import pipeline
from stillroom.runs.run import Run
from stillroom.switch import Places, Switch
from stillroom.switch.stopping import off
from tests.cluster.cluster_material import children_with, recipe_in, weights_difference
from tests.cluster.test_nodes import free_port

pytestmark = pytest.mark.cluster

LAUNCHER = """
import sys
from pathlib import Path
from stillroom.cluster import launch
from stillroom.switch import Places
places = Places.under(Path(sys.argv.pop(1)))
Places.of_user = classmethod(lambda _: places)
from stillroom.cli.app import main
launch.DIVIDE_FROM_BYTES = float(sys.argv.pop(1))
main()
"""
"""`stillroom` with a switch of its own: that of the user stays on."""


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is to be trained."""
    folder = tmp_path_factory.mktemp("ready")
    values = recipe_in(folder)
    # Adam's steps are as long as the rate: at 1e-3 one weight of four processes was off by 6e-6 after 21 steps.
    values["distill"]["learning_rate"] = 5e-4
    made = pipeline.run({"name": "nodes", **values}, folder / "runs", until="shrink", quiet=True)
    return made.path


@pytest.fixture(scope="module")
def alone(ready: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same, trained by one process."""
    return pipeline.run(copy_of(ready, tmp_path_factory.mktemp("alone")), until="distill", quiet=True)


def copy_of(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder / run.name)
    return folder / run.name


def launchers(
    run: Path, switch: Path, *words: str, runs: tuple[Path, ...] = (), divide_from: float = 8e9
) -> list[subprocess.Popen[str]]:
    """Two nodes, node 0 first."""
    port = free_port()
    started = []
    for rank, path in enumerate(runs or (run, run)):
        command = [
            sys.executable,
            "-c",
            LAUNCHER,
            str(switch / str(rank)),
            str(divide_from),
            "run",
            str(path),
            "--until",
            "distill",
        ]
        command += ["--nodes", "2", "--node-rank", str(rank), "--rendezvous", f"localhost:{port}", *words]
        started.append(
            subprocess.Popen(
                command,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def ended(
    processes: list[subprocess.Popen[str]], meanwhile: Callable[[], object] = lambda: None
) -> list[tuple[int, str]]:
    """Exit codes and what was said."""
    try:
        meanwhile()
        said = [process.communicate(timeout=240)[0] for process in processes]
        return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


def until_a_checkpoint(run: Path) -> None:
    while not list((run / "distill" / "checkpoints").glob("step-*/state.json")):
        time.sleep(0.01)


def require_same(made: Run, alone: Run, processes: int) -> None:
    notes = [(each.stage("distill").record or {})["notes"] for each in (made, alone)]
    assert notes[0]["processes"] == processes
    assert notes[0]["steps"] == notes[1]["steps"]
    assert notes[0]["best_step"] == notes[1]["best_step"] > 0
    assert weights_difference(made, alone) <= 5e-6


@pytest.mark.parametrize(
    ("workers", "sharding", "divide_from"), [(1, "replicate", 8e9), (2, "replicate", 8e9), (2, "hybrid", 0)]
)
def test_two_nodes_make_the_student_of_one_process(
    ready: Path, alone: Run, tmp_path: Path, workers: int, sharding: str, divide_from: float
) -> None:
    path = copy_of(ready, tmp_path)
    found = ended(launchers(path, tmp_path, "--workers", str(workers), divide_from=divide_from))
    assert [code for code, _ in found] == [0, 0], found
    made = Run.open(path)
    require_same(made, alone, 2 * workers)
    assert (made.stage("distill").record or {})["notes"]["sharding"] == sharding
    losses = [[event["loss"] for event in each.metrics if "loss" in event] for each in (made, alone)]
    assert len(losses[0]) == len(losses[1]) > 2
    assert all(abs(a - b) <= 1e-6 * b for a, b in zip(*losses, strict=True))
    assert f"2 machines: {2 * workers} processes" in found[0][1]
    # Only node 0 writes: one stage was begun and finished, once.
    assert [event["event"] for event in made.events("distill") if event.get("event") in ("begun", "finished")] == [
        "begun",
        "finished",
    ]
    assert not list(path.glob(".nodes-*"))


def test_a_process_that_dies_on_one_node_has_all_started_again(ready: Path, alone: Run, tmp_path: Path) -> None:
    path = copy_of(ready, tmp_path)
    nodes = launchers(path, tmp_path)

    def kill() -> None:
        until_a_checkpoint(path)
        (worker,) = children_with("spawn_main", nodes[1].pid)
        worker.kill()

    found = ended(nodes, kill)
    assert [code for code, _ in found] == [0, 0], found
    require_same(Run.open(path), alone, 2)


def test_sigterm_on_one_node_saves_and_ends_both(ready: Path, alone: Run, tmp_path: Path) -> None:
    path = copy_of(ready, tmp_path)
    nodes = launchers(path, tmp_path)

    def stop() -> None:
        until_a_checkpoint(path)
        nodes[1].send_signal(signal.SIGTERM)

    found = ended(nodes, stop)
    assert [code for code, _ in found] == [143, 143], found
    assert all("Stopped by SIGTERM after step" in said for _, said in found), found
    assert not any("Traceback" in said for _, said in found), found
    found = ended(launchers(path, tmp_path))
    assert [code for code, _ in found] == [0, 0], found
    require_same(Run.open(path), alone, 2)


@pytest.mark.parametrize("stopped", [0, 1])
def test_sigterm_before_a_stage_that_trains_ends_both(ready: Path, tmp_path: Path, stopped: int) -> None:
    path = copy_of(ready, tmp_path)
    # Step by step, so that the capture is not over before the other has heard of it.
    nodes = launchers(path, tmp_path, "--set", "capture.batch_tokens=64", "--set", "capture.shard_tokens=64")

    def stop() -> None:
        while not list((path / "capture" / "cache").glob("shard-*.safetensors")):
            assert all(node.poll() is None for node in nodes)
            time.sleep(0.01)
        nodes[stopped].send_signal(signal.SIGTERM)

    found = ended(nodes, stop)
    assert [code for code, _ in found] == [143, 143], found
    assert all(said.count(f"Stopped by SIGTERM on node {stopped}.") == 1 for _, said in found), found
    assert not any("Traceback" in said for _, said in found), found
    assert not (path / "distill" / "checkpoints").exists()


def test_off_on_one_node_ends_both(ready: Path, tmp_path: Path) -> None:
    path = copy_of(ready, tmp_path)
    nodes = launchers(path, tmp_path)

    def turn_off() -> None:
        until_a_checkpoint(path)
        off(Switch(Places.under(tmp_path / "1")))

    found = ended(nodes, turn_off)
    assert [code for code, _ in found] == [1, 1], found
    assert not any("Traceback" in said for _, said in found), found
    assert Run.open(path).stage("distill").record is None


def test_a_folder_that_is_not_shared_is_refused_by_both(ready: Path, tmp_path: Path) -> None:
    runs = copy_of(ready, tmp_path / "a"), copy_of(ready, tmp_path / "b")
    found = ended(launchers(runs[0], tmp_path, runs=runs))
    assert [code for code, _ in found] == [2, 2], found
    assert all("is not the folder of the run that node 0 writes" in said for _, said in found), found
    assert not any("Traceback" in said for _, said in found), found
    assert not (runs[0] / "distill").exists()
