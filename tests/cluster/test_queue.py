"""The queue of units, on a made-up Ray whose workers die, hang and fail as a test says; and how Ray is started."""

from __future__ import annotations

import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.cluster import ray_capture
from stillroom.cluster.cluster import Cluster, cluster_of
from stillroom.cluster.ray_capture import AHEAD, TRIES, Queue, connected
from stillroom.core.errors import (
    EnvironmentProblem,
    MissingDependency,
    SignalError,
    SwitchedOff,
    Terminated,
    UsageError,
)
from stillroom.core.progress import Progress
from stillroom.teachers.units import Unit
from tests.cluster.made_up_ray import ActorDied, MadeUpRay, RayError, TaskFailed


def queue_of(world: MadeUpRay, count: int, workers: int) -> Queue:
    todo = [Unit(f"{number:064}", 0, number, number + 1) for number in range(count)]
    task = Progress(quiet=True).task("x", total=count)
    tokens = {unit.name: 1 for unit in todo}
    with task as opened:
        return Queue(world, "", todo, workers, 0, opened, tokens, Progress(quiet=True))


@pytest.fixture(autouse=True)
def on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_capture.switch, "require_on", lambda: None)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 4), st.integers(0, 12), st.booleans())
def test_every_unit_is_made_whoever_dies(seed: int, count: int, workers: int, deaths: int, spare: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_capture.switch, "require_on", lambda: None)
        world = MadeUpRay(seed, deaths, spare=1000 if spare else workers)
        queue = queue_of(world, count, workers)
        counts = queue.work()
        assert set(world.made) == {f"{number:064}" for number in range(count)}
        assert not queue.left
        assert counts.put_back <= AHEAD * deaths
        # What was made twice was noticed, and the store kept the first.
        assert len(world.made) - count <= counts.doubled + counts.put_back


def test_a_unit_that_fails_once_is_tried_again_and_one_that_always_fails_says_why() -> None:
    name = f"{3:064}"
    assert queue_of(MadeUpRay(0, fails={name: TRIES - 1}), 8, 2).work().put_back == 0
    with pytest.raises(SignalError, match="the teacher is broken"):
        queue_of(MadeUpRay(0, fails={name: 99}), 8, 2).work()


def test_a_slow_unit_is_given_to_a_second_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(ray_capture.time, "monotonic", lambda: float(next(clock)))
    world = MadeUpRay(1)
    real, hung = world._can, []

    def can(actor: Any, name: str | None) -> bool:
        if name == f"{2:064}" and (not hung or hung[0] is actor):
            hung[:] = [actor]
            return False
        return not (hung and hung[0] is actor) and real(actor, name)

    monkeypatch.setattr(world, "_can", can)
    counts = queue_of(world, 9, 3).work()
    assert counts.doubled >= 1
    assert set(world.made) == {f"{number:064}" for number in range(9)}


def test_workers_that_never_start_are_told_of() -> None:
    world = MadeUpRay(0)

    def failing(reference: int) -> int:
        world.pending.pop(reference)
        world.results[reference] = TaskFailed(SignalError("no such teacher", ""))
        return reference

    world._do = failing  # type: ignore[method-assign]
    with pytest.raises(SignalError, match="no such teacher"):
        queue_of(world, 3, 2).work()


@pytest.mark.parametrize("failures", [40, 10**6])
def test_starts_that_the_cluster_fails_are_tried_again_for_a_while(
    monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    # As after the loss of a node, until Ray has noticed it.
    clock = itertools.count()
    monkeypatch.setattr(ray_capture.time, "monotonic", lambda: next(clock) / 10)
    monkeypatch.setattr(ray_capture.time, "sleep", lambda _: None)
    world = MadeUpRay(0)
    done = world._do
    left = itertools.count(failures, -1)

    def failing(reference: int) -> int:
        if world.pending[reference][1] is None and next(left) > 0:
            world.pending.pop(reference)
            world.results[reference] = ActorDied("The actor never ran.")
            return reference
        return done(reference)

    monkeypatch.setattr(world, "_do", failing)
    if failures > 40:
        with pytest.raises(EnvironmentProblem, match=r"never ran\.\n.*RAY_AUTH_MODE=token"):
            queue_of(world, 3, 2).work()
    else:
        queue_of(world, 3, 2).work()
        assert len(set(world.made)) == 3


def test_the_switch_stops_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = itertools.count()

    def require() -> None:
        if next(asked) > 4:
            raise SwitchedOff("The switch is off", "")

    monkeypatch.setattr(ray_capture.switch, "require_on", require)
    world = MadeUpRay(0)
    with pytest.raises(SwitchedOff):
        queue_of(world, 30, 2).work()
    assert len(world.made) < 8


def test_a_cluster_without_authentication_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    with pytest.raises(UsageError, match="RAY_AUTH_MODE"), connected("local"):
        pass
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_options_of_the_command_line() -> None:
    assert cluster_of(None, None, None) is None
    assert cluster_of(1, None, None) is None
    assert cluster_of(2, None, None) == Cluster(2)
    assert cluster_of(None, "local", 3) == Cluster(1, "local", 3)


def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    with pytest.raises(MissingDependency, match=r"--ray needs ray.*\nInstall it: pip install 'stillroom\[cluster\]'"):
        cluster_of(None, "local", None)


def test_a_cluster_that_is_slow_to_start_is_started_again(tmp_path: Path) -> None:
    class Slow:
        def __init__(self, fails: int, words: str) -> None:
            self.fails, self.words, self.started, self.ended = fails, words, 0, 0

        def init(self, **_: object) -> None:
            self.started += 1
            if self.started <= self.fails:
                raise RuntimeError(self.words)

        def shutdown(self) -> None:
            self.ended += 1

    for words in ("The current node timed out during startup.", "Failed to start GCS.  Last 0 lines of error files:"):
        slow = Slow(2, words)
        ray_capture._start(slow, 2, str(tmp_path))
        assert (slow.started, slow.ended) == (3, 2)
    for ray in (Slow(9, "The current node timed out during startup."), Slow(1, "no such folder")):
        with pytest.raises(RuntimeError, match=ray.words):
            ray_capture._start(ray, 2, str(tmp_path))
        assert ray.started == (ray_capture.STARTS if ray.fails == 9 else 1)


def test_sigterm_ends_what_ray_has_and_means_afterwards_what_it_did(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    events: list[str] = []

    def init(**_: object) -> None:
        # As Ray does, which does not take it back.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
        events.append("init")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, shutdown=lambda: events.append("shutdown")))
    monkeypatch.setattr(ray_capture, "require", lambda *_: None)
    monkeypatch.setattr(ray_capture.tempfile, "mkdtemp", lambda **_: str(tmp_path))
    monkeypatch.setattr(ray_capture, "_clear", lambda folder: events.append(f"clear {folder}"))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    before = signal.getsignal(signal.SIGTERM)
    for address, cleared in (("auto", []), ("local", [f"clear {tmp_path}"])):
        events.clear()
        with pytest.raises(Terminated, match="SIGTERM"), connected(address, 1):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        assert events == ["init", "shutdown", *cleared]
        assert signal.getsignal(signal.SIGTERM) is before


def test_only_processes_of_the_cluster_are_ended(tmp_path: Path) -> None:
    folder = tmp_path / "sr-ray-a"
    own = (f"--temp-dir={folder}", f"--raylet_socket_name={folder}/session/raylet")
    others = (
        f"{folder}",
        f"--log={folder}b",
        f"--elsewhere=/mnt{folder}",
        f"tail -f {folder}/x --temp-dir={folder}",
        "--temp-dir=sr-ray-a",
    )
    started = {
        part: subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); input()", part], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for part in own + others
    }
    try:
        for process in started.values():
            assert process.stdout is not None
            process.stdout.readline()
        ray_capture._end(str(folder))
        assert [started[part].wait() for part in own] == [-signal.SIGKILL] * 2
        assert [started[part].poll() for part in others] == [None] * len(others)
    finally:
        for process in started.values():
            process.kill()
            process.communicate()
    with pytest.raises(ValueError, match="full path"):
        ray_capture._end("folder")


def test_nothing_of_ray_is_imported_without_it() -> None:
    code = (
        "import sys, stillroom, stillroom.cli.app, stillroom.cluster.cluster, stillroom.cluster.launch\n"
        "import stillroom.cluster.ray_capture, stillroom.cluster.ray_train, stillroom.cli.ray_node\n"
        "print('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_cause_that_is_not_ours_is_one_line() -> None:
    found = ray_capture.cause_of(RayError("many\nlines\nlast"), "It failed")
    assert isinstance(found, EnvironmentProblem)
    assert found.what == "It failed: last"
