"""`stillroom run --ray ADDRESS --nodes 2` on a real Ray, whose nodes are processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from stillroom import pipeline
from stillroom.cluster.ray_machine import PROCESS
from stillroom.runs.run import Run
from tests.cluster.cluster_material import recipe_in
from tests.cluster.ray_nodes import TOKEN, Nodes, until
from tests.cluster.test_launch_nodes import copy_of, require_same

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head and a node, with a core each."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (TOKEN | {"RAY_worker_niceness": "0", "PYTHONPATH": os.pathsep.join(sys.path)}).items():
            patch.setenv(name, value)
        made = Nodes()
        try:
            made.add()
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is to be trained."""
    folder = tmp_path_factory.mktemp("ready")
    values = recipe_in(folder)
    values["distill"]["learning_rate"] = 5e-4
    return pipeline.run({"name": "ray", **values}, folder / "runs", until="shrink", quiet=True).path


@pytest.fixture(scope="module")
def alone(ready: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same, trained by one process."""
    return pipeline.run(copy_of(ready, tmp_path_factory.mktemp("alone")), until="distill", quiet=True)


def start(run: Path, nodes: Nodes, *words: str) -> subprocess.Popen[str]:
    """The driver."""
    command = [sys.executable, "-m", "stillroom", "run", str(run), "--until", "distill", "--ray", nodes.address]
    return subprocess.Popen(
        [*command, *(words or ("--nodes", "2"))],
        env=os.environ | TOKEN | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def parts(run: Path) -> list[psutil.Process]:
    """Processes of a run on the nodes, and what they have started."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if PROCESS in process.cmdline() and any(str(run) in word for word in process.cmdline()):
                found += [process, *process.children(recursive=True)]
        except psutil.Error:
            continue
    return found


def end(driver: subprocess.Popen[str]) -> str:
    """What the driver said, once it has ended."""
    try:
        return driver.communicate(timeout=280)[0]
    finally:
        if driver.poll() is None:
            driver.kill()
            driver.communicate()


def trains(run: Path, driver: subprocess.Popen[str]) -> None:
    """Wait until a checkpoint is there."""
    found = run / "distill" / "checkpoints"
    until(lambda: driver.poll() is not None or any(found.glob("step-*/state.json")), 240)


def test_too_few_machines_are_refused_before_anything_is_spent(ready: Path, nodes: Nodes, tmp_path: Path) -> None:
    path = copy_of(ready, tmp_path)
    driver = start(path, nodes, "--nodes", "3")
    said = end(driver)
    assert driver.returncode == 3, said
    assert "that have 1 core or more, one for each process: 2 of 2" in said
    assert not (path / "distill").exists()


def test_two_nodes_make_the_student_of_one_process(ready: Path, alone: Run, nodes: Nodes, tmp_path: Path) -> None:
    path = copy_of(ready, tmp_path)
    driver = start(path, nodes)
    said = end(driver)
    assert driver.returncode == 0, said
    require_same(Run.open(path), alone, 2)
    assert "on Ray: 2 machines with 1 core each" in said
    assert "2 machines: 2 processes" in said
    assert not parts(path)


def test_a_driver_that_is_killed_leaves_no_process_and_sigterm_saves(
    ready: Path, alone: Run, nodes: Nodes, tmp_path: Path
) -> None:
    path = copy_of(ready, tmp_path)
    driver = start(path, nodes)
    try:
        trains(path, driver)
        assert len(parts(path)) >= 4
    finally:
        driver.kill()
        driver.communicate()
    until(lambda: not parts(path), 60)
    driver = start(path, nodes)
    try:
        until(lambda: driver.poll() is not None or len(parts(path)) >= 4, 240)
        driver.send_signal(signal.SIGTERM)
    finally:
        said = end(driver)
    assert driver.returncode == 143, said
    assert "Stopped by SIGTERM" in said
    assert "Traceback" not in said
    assert not parts(path)
    driver = start(path, nodes)
    said = end(driver)
    assert driver.returncode == 0, said
    require_same(Run.open(path), alone, 2)


def test_a_node_that_is_killed_has_all_started_again_on_another(
    ready: Path, alone: Run, nodes: Nodes, tmp_path: Path
) -> None:
    path = copy_of(ready, tmp_path)
    driver = start(path, nodes)
    try:
        trains(path, driver)
        nodes.kill(nodes.nodes[0])
        until(lambda: driver.poll() is not None or not parts(path), 120)
        nodes.add()
    finally:
        said = end(driver)
    assert driver.returncode == 0, said
    assert "starting again from the newest checkpoint (1 of 3)" in said
    require_same(Run.open(path), alone, 2)
    assert not parts(path)
