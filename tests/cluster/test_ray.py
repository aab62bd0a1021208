"""Capture on a real Ray on this machine: kills of workers and of a node, with and without a spare core; the switch."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
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
from tests.cluster.cluster_material import recipe_in
from tests.teachers.test_units import equal_to_the_bit

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Path]]:
    folder = tmp_path_factory.mktemp("ray")
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_TOKEN", "0" * 64)
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
                workers = [
                    process for process in psutil.Process().children(recursive=True)
                    if process.pid not in seen and any("Capturer" in part for part in process.cmdline())
                ]  # fmt: skip
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


@pytest.mark.parametrize("cores", [2, 1])
def test_a_node_that_is_killed(material: Any, alone: TeacherCache, cores: int) -> None:
    from ray.cluster_utils import Cluster as RayCluster

    run = prepared(material, f"node-{cores}")
    cluster = RayCluster(
        initialize_head=True,
        head_node_args={"num_cpus": cores, "include_dashboard": False, "object_store_memory": 100 << 20},
    )
    node = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    code = (
        "import sys\nfrom stillroom.cluster.ray_capture import capture_on_ray\nfrom stillroom.core.progress import Progress\n"
        "from stillroom.runs.run import Run\n"
        "print(capture_on_ray(Run.open(sys.argv[1]), sys.argv[2], 2, Progress(True)).put_back)"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path), cluster.address], stdout=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while noted(run) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        for infos in node.all_processes.values():
            for info in infos:
                family = psutil.Process(info.process.pid).children(recursive=True)
                for process in [*family, psutil.Process(info.process.pid)]:
                    process.kill()
        output, _ = driver.communicate(timeout=240)
        assert driver.returncode == 0
        assert int(output.split()[-1]) <= ray_capture.AHEAD
        complete(run, alone)
    finally:
        driver.kill()
        cluster.shutdown()


def test_a_driver_that_is_killed_and_started_again(material: Any, alone: TeacherCache) -> None:
    run = prepared(material, "driver")
    code = (
        "import sys\nfrom stillroom.cluster.ray_capture import capture_on_ray\nfrom stillroom.core.progress import Progress\n"
        "from stillroom.runs.run import Run\ncapture_on_ray(Run.open(sys.argv[1]), 'local', 2, Progress(True))"
    )
    driver = subprocess.Popen([sys.executable, "-c", code, str(run.path)], start_new_session=True)
    deadline = time.monotonic() + 120
    while noted(run) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    deadline = time.monotonic() + 30
    while _capturers(driver.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _capturers(driver.pid)
    counts = capture_on_ray(run, "local", 2, Progress(quiet=True))
    assert counts.units < noted(run)
    complete(run, alone)


def _capturers(session: int) -> list[int]:
    """Workers of a driver that is gone: processes of its session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and any("Capturer" in part for part in process.cmdline()):
                found.append(process.pid)
        except (psutil.Error, ProcessLookupError):
            continue
    return found


def test_processes_of_a_cluster_here_are_told_to_be_discreet(material: Any) -> None:
    with ray_capture.connected("local", 1) as ray:

        @ray.remote
        def environment() -> dict[str, str]:
            return dict(os.environ)

        found = ray.get(environment.remote())
        processes = psutil.Process().children(recursive=True)
        assert len(processes) > 2
        for process in processes:
            with contextlib.suppress(psutil.Error):
                own = process.environ()
                assert own["RAY_USAGE_STATS_ENABLED"] == "0", process.cmdline()
                assert own["RAY_AUTH_MODE"] == "token", process.cmdline()
                ports = [
                    connection.laddr.port for connection in process.net_connections() if connection.status == "LISTEN"
                ]
                assert 8265 not in ports
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
        left = [p for p in psutil.Process().children(recursive=True) if any("Capturer" in part for part in p.cmdline())]
        if not left:
            break
        time.sleep(0.1)
    assert not left
    assert json.dumps(noted(run)) != "0"
