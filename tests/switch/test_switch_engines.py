"""The list of running engines, and stopping what is in it: real processes, no model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillroom.switch import Places, Switch, stopping
from stillroom.switch.engines import Registration, is_running, listed, start_time

OBEDIENT = "import time\nwhile True: time.sleep(1)"
STUBBORN = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(60)"


@pytest.fixture
def own(tmp_path: Path) -> Switch:
    return Switch(Places.under(tmp_path))


@pytest.fixture
def spawned() -> Iterator[list[subprocess.Popen[bytes]]]:
    made: list[subprocess.Popen[bytes]] = []
    yield made
    for process in made:
        process.kill()
        process.wait()


def spawn(spawned: list[subprocess.Popen[bytes]], program: str, wait: bool = False) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    spawned.append(process)
    if wait:
        assert process.stdout is not None
        process.stdout.readline()
    return process


@pytest.mark.parametrize("state", ["obedient", "stubborn", "stopped"])
def test_off_stops_what_runs(own: Switch, spawned: list[subprocess.Popen[bytes]], state: str) -> None:
    process = spawn(spawned, STUBBORN if state == "stubborn" else OBEDIENT, wait=state == "stubborn")
    line = Registration(own.places, "engine", "a model", process.pid)
    if state == "stopped":
        os.kill(process.pid, signal.SIGSTOP)
    receipt = stopping.off(own)
    assert process.wait(5) is not None
    assert [(each.pid, each.model) for each in receipt.stopped] == [(process.pid, "a model")]
    if state != "obedient":
        assert receipt.stopped[0].killed
    assert receipt.seconds >= receipt.stopped[0].seconds
    line.close()


def test_off_with_several_engines_names_them_all(own: Switch, spawned: list[subprocess.Popen[bytes]]) -> None:
    processes = [spawn(spawned, OBEDIENT) for _ in range(3)]
    lines = [Registration(own.places, "engine", f"model {p.pid}", p.pid) for p in processes]
    receipt = stopping.off(own)
    assert {each.pid for each in receipt.stopped} == {process.pid for process in processes}
    for line in lines:
        line.close()
    assert not listed(own.places)


def test_a_number_used_again_is_not_taken_for_the_engine(own: Switch, spawned: list[subprocess.Popen[bytes]]) -> None:
    process = spawn(spawned, OBEDIENT)
    line = Registration(own.places, "engine", "gone", process.pid)
    text = line.path.read_text()
    started = start_time(process.pid)
    line.path.write_text(text.replace(str(started), "1.0"))
    assert not listed(own.places)
    assert stopping.off(own).stopped == []
    assert process.poll() is None
    line.close()


def test_a_damaged_line_is_removed(own: Switch) -> None:
    own.places.engines.mkdir(parents=True)
    (own.places.engines / "engine-999999999-aaaaaaaa.json").write_text("{")
    (own.places.engines / "notes.json").write_text("[]")
    assert listed(own.places) == []
    assert not list(own.places.engines.iterdir())


def test_off_waits_for_what_is_being_delivered(own: Switch) -> None:
    line = Registration(own.places, "server", "server")
    inside, order = threading.Event(), []

    def deliver() -> None:
        with line.delivering():
            inside.set()
            time.sleep(0.02)
            order.append("delivered")

    thread = threading.Thread(target=deliver)
    thread.start()
    inside.wait()
    receipt = stopping.off(own)
    order.append("receipt")
    thread.join()
    assert order == ["delivered", "receipt"]
    assert receipt.silenced == [os.getpid()]
    line.close()


def test_several_deliveries_share_one_lock(own: Switch) -> None:
    import fcntl

    line = Registration(own.places, "server", "server")
    with line.delivering():
        with line.delivering():
            pass
        with open(line.path, "rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(line.path, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    line.close()


def test_a_process_that_ended_does_not_run(spawned: list[subprocess.Popen[bytes]]) -> None:
    process = spawn(spawned, "pass")
    started = start_time(process.pid)
    deadline = time.monotonic() + 5
    while started is not None and is_running(process.pid, started) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert start_time(process.pid) is None, "remains that nobody has collected are not a running process"
