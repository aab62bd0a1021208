"""Capture on a real Ray on this machine: kills of workers and of a node, with and without a spare core; the switch."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from stillroom import pipeline
from stillroom.cluster import ray_capture
from stillroom.cluster.cluster import Cluster
from stillroom.cluster.ray_capture import capture_on_ray
from stillroom.core.errors import SwitchedOff
from stillroom.core.progress import Progress
from stillroom.core.store import LocalStore
from stillroom.runs.run import Run
from stillroom.runs.stages import CACHE
from stillroom.signals.cache import parts
from stillroom.signals.cache.reader import TeacherCache
from tests.cluster.cluster_material import children_with, recipe_in
from tests.cluster.ray_nodes import TOKEN, Nodes, driver, until
from tests.teachers.test_units import equal_to_the_bit

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Path]]:
    folder = tmp_path_factory.mktemp("ray")
    patch = pytest.MonkeyPatch()
    for name, value in TOKEN.items():
        patch.setenv(name, value)
    patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    yield recipe_in(folder), folder
    patch.undo()


@pytest.fixture(scope="module")
def alone(material: Any) -> TeacherCache:
    values, folder = material
    made = pipeline.run_stage({"name": "alone", **values}, "capture", folder, quiet=True)
    return TeacherCache.open(made.path / "capture" / CACHE)


def prepared(material: Any, name: str) -> Run:
    values, folder = material
    return pipeline.run_stage({"name": name, **values}, "corpus", folder, quiet=True)


def noted(run: Run) -> int:
    return len(parts.done(LocalStore(run.path / "capture" / CACHE)))


def complete(run: Run, alone: TeacherCache) -> None:
    sealed = parts.seal(LocalStore(run.path / "capture" / CACHE))
    assert not sealed.damages
    found = TeacherCache.open(run.path / "capture" / CACHE)
    assert equal_to_the_bit(alone, found)
    assert sum(entry.sequences for entry in sealed.manifest.shards) == len(found)


def test_the_whole_stage_with_a_worker_that_is_killed_twice(material: Any, alone: TeacherCache) -> None:
    run = prepared(material, "killed")
    killed: list[int] = []

    def kill() -> None:
        seen: set[int] = set()
        while len(killed) < 2 and time.monotonic() < deadline:
            if noted(run) > 2 * len(killed):
                workers = [process for process in children_with("Capturer") if process.pid not in seen]
                for process in workers[:1]:
                    seen.add(process.pid)
                    killed.append(process.pid)
                    process.kill()
            time.sleep(0.02)

    deadline = time.monotonic() + 120
    thread = threading.Thread(target=kill)
    thread.start()
    counts = capture_on_ray(run, "local", 2, Progress(quiet=True))
    thread.join()
    assert len(killed) == 2
    assert counts.put_back <= 2 * ray_capture.AHEAD
    assert counts.units == noted(run)
    complete(run, alone)
    again = pipeline.run(run, until="capture", quiet=True, cluster=Cluster(1, "local", 2))
    record = again.stage("capture").record
    assert record is not None
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.fixture(scope="module")
def nodes(material: Any) -> Iterator[Nodes]:
    made = Nodes()
    yield made
    made.close()


def test_a_node_that_is_killed_with_another_to_spare_and_without(
    material: Any, alone: TeacherCache, nodes: Nodes
) -> None:
    node = nodes.add()
    for spare in (True, False):
        run = prepared(material, f"node-{spare}")
        process = driver(run.path, nodes.address)
        try:
            # There is one core on each node, so that two workers are on two nodes.
            until(lambda process=process, node=node: process.poll() is not None or node in nodes.busy(), 300)  # type: ignore[misc]
            other = nodes.add() if spare else None
            until(lambda run=run: noted(run) >= 2, 120)  # type: ignore[misc]
            nodes.kill(node)
            output, errors = process.communicate(timeout=400)
        finally:
            process.kill()
        assert process.returncode == 0, errors[-800:]
        assert int(output.split()[-1]) <= ray_capture.AHEAD
        complete(run, alone)
        node = other


def test_a_driver_that_is_killed_and_started_again(material: Any, alone: TeacherCache, nodes: Nodes) -> None:
    run = prepared(material, "driver")
    process = driver(run.path, nodes.address, 1)
    try:
        until(lambda: process.poll() is not None or noted(run) >= 2, 300)
    finally:
        process.kill()
        process.wait()
    # Workers belong to their driver: they end with it.
    until(lambda: not nodes.capturers(), 60)
    before = noted(run)
    assert before >= 2
    process = driver(run.path, nodes.address, 1)
    try:
        _, errors = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-800:]
    assert noted(run) > before
    complete(run, alone)


def words(process: psutil.Process) -> str:
    """A process's command line; empty of one that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_processes_of_a_cluster_here_are_told_to_be_discreet(material: Any) -> None:
    with ray_capture.connected("local", 1) as ray:

        @ray.remote
        def environment() -> dict[str, str]:
            return dict(os.environ)

        found = ray.get(environment.remote())
        processes = psutil.Process().children(recursive=True)
        assert len(processes) > 2
        told = 0
        for process in processes:
            with contextlib.suppress(psutil.Error):
                if "ray" not in words(process):
                    continue  # of pytest's, or of another test's
                # A process that gives itself a longer title writes it over its environment, which is not to be read then.
                if own := process.environ():
                    told += 1
                    assert own.get("RAY_USAGE_STATS_ENABLED") == "0", process.cmdline()
                    assert own.get("RAY_AUTH_MODE") == "token", process.cmdline()
                ports = [
                    connection.laddr.port for connection in process.net_connections() if connection.status == "LISTEN"
                ]
                assert 8265 not in ports
        assert told >= 2
        assert found["RAY_USAGE_STATS_ENABLED"] == "0"


def test_off_stops_the_workers(material: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared(material, "off")
    off_after = 3

    def require() -> None:
        if noted(run) >= off_after:
            raise SwitchedOff("The switch is off.", "")

    monkeypatch.setattr(ray_capture.switch, "require_on", require)
    with pytest.raises(SwitchedOff):
        capture_on_ray(run, "local", 2, Progress(quiet=True))
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        left = children_with("Capturer")
        if not left:
            break
        time.sleep(0.1)
    assert not left
    assert json.dumps(noted(run)) != "0"
