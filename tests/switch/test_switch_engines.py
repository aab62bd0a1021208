"""The list of running engines, and stopping what is in it: real processes, no model."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillroom.core.errors import EnvironmentProblem, NotWritable
from stillroom.switch import Places, Switch, stopping
from stillroom.switch.engines import WORKER, Registration, here, is_running, listed, start_of_system, start_time
from stillroom.switch.places import own_folder

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
        os.waitpid(process.pid, os.WUNTRACED)  # until it has stopped: SIGTERM would else come first
    receipt = stopping.off(own)
    assert process.wait(5) is not None
    assert [(each.pid, each.model) for each in receipt.stopped] == [(process.pid, "a model")]
    if state != "obedient":
        assert receipt.stopped[0].killed
    assert receipt.seconds >= receipt.stopped[0].seconds
    line.close()


def test_an_engine_that_its_server_ended_first_is_named_too(
    own: Switch, spawned: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = spawn(spawned, OBEDIENT)
    line = Registration(own.places, "engine", "a model", process.pid)
    kept = Switch.hold_off

    def seen_at_once(switch: Switch, settle: bool = True) -> None:
        kept(switch, settle=settle)
        process.kill()
        process.wait()
        line.close()

    monkeypatch.setattr(Switch, "hold_off", seen_at_once)
    receipt = stopping.off(own)
    assert [(each.pid, each.model, each.killed) for each in receipt.stopped] == [(process.pid, "a model", False)]
    assert receipt.seconds >= receipt.stopped[0].seconds > 0


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


def line_of(own: Switch, where: str, pid: int = 4_000_000, kind: str = "server") -> Path:
    """A line that somebody else wrote."""
    own.places.engines.mkdir(parents=True, exist_ok=True)
    path = own.places.engines / f"{kind}-{pid}-{zlib.crc32(where.encode()):08x}.json"
    path.write_text(json.dumps({"kind": kind, "pid": pid, "started": 5.0, "model": "theirs", "where": where}))
    return path


def test_lines_of_other_machines_users_and_containers_stay(own: Switch) -> None:
    host, boot, namespace, user = here().split(" ")
    others = [
        f"another@machine {boot} {namespace} {user}",
        f"another@machine 1234 {namespace} {user}",
        f"{host} {boot} pid:[1] {user}",
        f"{host} {boot} {namespace} {int(user) + 1}",
    ]
    paths = [line_of(own, where) for where in others]
    earlier = line_of(own, f"{host} 00000000-earlier {namespace} {user}")
    gone = line_of(own, here())
    assert listed(own.places) == []
    receipt = stopping.off(own)
    stopping.on(own)
    assert all(path.exists() for path in paths)
    assert not gone.exists(), "its process has ended here"
    assert start_of_system() == "" or not earlier.exists(), "this very machine was started anew since"
    assert len(receipt.elsewhere) == len(paths)
    assert [each["model"] for each in stopping.status(own)["elsewhere"]] == ["theirs"] * len(paths)


def test_a_number_of_another_container_is_not_signalled(own: Switch, spawned: list[subprocess.Popen[bytes]]) -> None:
    process = spawn(spawned, OBEDIENT)
    host, boot, _, user = here().split(" ")
    path = line_of(own, f"{host} {boot} pid:[1] {user}", process.pid)
    path.write_text(path.read_text().replace("5.0", str(start_time(process.pid))))
    with open(path, "rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        stopping.off(own)
    assert process.poll() is None


def test_a_server_in_another_container_is_waited_for(own: Switch) -> None:
    if not start_of_system():
        pytest.skip("the system has no number for its start")
    host, boot, _, user = here().split(" ")
    path = line_of(own, f"{host} {boot} pid:[1] {user}")
    order: list[str] = []
    stream = open(path, "rb")  # noqa: SIM115
    fcntl.flock(stream, fcntl.LOCK_SH)

    def end() -> None:
        order.append("silent")
        stream.close()

    timer = threading.Timer(0.03, end)
    timer.start()
    stopping.off(own)
    order.append("receipt")
    timer.join()
    assert order == ["silent", "receipt"]


def test_registering_does_not_race_with_looking(own: Switch) -> None:
    stop, seen = threading.Event(), set()

    def look() -> None:
        while not stop.is_set():
            seen.update(path for path, _ in listed(own.places) if path is not None)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(300):
            line = Registration(own.places, "server", f"number {number}")
            assert line.path.exists()
            line.close()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not list(own.places.engines.iterdir())


@pytest.mark.parametrize(
    "line",
    [
        "[" * 60_000,
        '{"kind": "engine", "pid": ' + "9" * 400 + ', "started": 1, "model": "x"}',
        '{"kind": "engine", "pid": -1, "started": 1, "model": "x"}',
        '{"kind": "engine", "pid": 0, "started": 1, "model": "x"}',
        '{"kind": "engine", "pid": 1, "started": 1, "model": "x"}',
        '{"kind": "engine", "pid": 1e300, "started": 1, "model": "x"}',
        '{"kind": "engine", "pid": [], "started": {}, "model": "x"}',
        '{"kind": "engine", "kind": "server", "pid": 7, "started": 1, "model": "x"}',
        '{"kind": "engine", "pid": true, "started": 1, "model": "x"}',
        '{"kind": "thing", "pid": 7, "started": 1, "model": "x"}',
        "pipe",
        "folder",
    ],
)
def test_off_and_status_work_whatever_a_line_holds(
    own: Switch, spawned: list[subprocess.Popen[bytes]], line: str
) -> None:
    process = spawn(spawned, OBEDIENT)
    good = Registration(own.places, "engine", "a model", process.pid)
    path = own.places.engines / f"engine-{'7' * 30}-aaaaaaaa.json"
    if line == "pipe":
        os.mkfifo(path)
    elif line == "folder":
        path.mkdir()
    else:
        path.write_text(line)
    assert [engine["pid"] for engine in stopping.status(own)["engines"]] == [process.pid]
    assert [stopped.pid for stopped in stopping.off(own).stopped] == [process.pid]
    good.close()


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="processes are found by their command line on Linux alone"
)
@pytest.mark.parametrize("kind", ["server", "thing", "Engine"])
def test_a_line_that_calls_an_engine_something_else_hides_none(
    own: Switch, spawned: list[subprocess.Popen[bytes]], kind: str
) -> None:
    words = [sys.executable, "-c", OBEDIENT, WORKER, str(own.places.state)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    spawned.append(process)
    line = Registration(own.places, "engine", "a model", process.pid)
    value = json.loads(line.path.read_text())
    line.path.write_text(json.dumps({**value, "kind": kind}))
    assert [stopped.pid for stopped in stopping.off(own).stopped] == [process.pid]
    line.close()


def test_whatever_a_model_is_called_its_engine_can_be_named(
    own: Switch, spawned: list[subprocess.Popen[bytes]]
) -> None:
    process = spawn(spawned, OBEDIENT)
    line = Registration(own.places, "engine", "half a \ud800 character", process.pid)
    json.dumps(stopping.status(own), ensure_ascii=False).encode()
    receipt = stopping.off(own)
    assert [stopped.pid for stopped in receipt.stopped] == [process.pid]
    json.dumps(receipt.as_dict(), ensure_ascii=False).encode()
    line.close()


def test_off_stops_what_runs_even_if_the_state_raises(
    own: Switch, spawned: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = spawn(spawned, OBEDIENT)
    line = Registration(own.places, "engine", "a model", process.pid)

    def raises(*_: object) -> None:
        raise OverflowError("out of range")

    monkeypatch.setattr(Switch, "write", raises)
    with pytest.raises(NotWritable, match="1 engines were stopped"):
        stopping.off(own)
    assert process.wait(5) is not None
    line.close()


def test_a_folder_in_a_shared_place_is_refused_unless_it_is_ours(tmp_path: Path) -> None:
    assert own_folder(tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert own_folder(tmp_path / "new") == tmp_path / "new"
    (tmp_path / "link").symlink_to(tmp_path / "new")
    (tmp_path / "file").write_text("")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "readable").mkdir(mode=0o755)
    cases = ["link", "file", "open", "readable"]
    if os.geteuid() == 0:
        (tmp_path / "theirs").mkdir(mode=0o700)
        os.chown(tmp_path / "theirs", 12345, 12345)
        cases.append("theirs")
    for name in cases:
        with pytest.raises(EnvironmentProblem, match="belongs to somebody else"):
            own_folder(tmp_path / name)
