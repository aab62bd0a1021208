"""The process that an actor of Ray starts on its machine: what it says, and that it does not outlive the actor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from stillroom.cluster import ray_machine
from stillroom.cluster.ray_machine import Machine, Part, Seen
from tests.cluster.ray_nodes import until

TALKS = """
import os, subprocess, sys, time
print(os.environ.get("OMP_NUM_THREADS"), flush=True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, "h\\u00e9" * 50_000, flush=True)
print("half", end="", flush=True)
time.sleep(60)
"""


def part(run: Path) -> Part:
    return Part(str(run), None, True, 0, 1, "localhost", 1, 1)


def look_until(machine: Machine, true: str = "") -> tuple[str, Seen]:
    text = ""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        seen = machine.look()
        text += seen.text
        if seen.code is not None or (true and true in text):
            return text, seen
        time.sleep(0.01)
    raise TimeoutError


@pytest.fixture
def talks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "talks.py").write_text(TALKS)
    monkeypatch.setattr(ray_machine, "PROCESS", "talks")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))


def test_an_error_of_ours_comes_back_whole(tmp_path: Path) -> None:
    machine = Machine()
    machine.start(part(tmp_path / "none"), "1")
    text, seen = look_until(machine)
    assert seen.code == 2, text
    assert seen.error is not None
    assert seen.error[0] == "RunError"
    assert f"{tmp_path / 'none'} is not there on node 0" in seen.error[1]
    assert "Traceback" not in text


@pytest.mark.usefixtures("talks")
def test_what_it_prints_comes_in_pieces_and_all_of_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As Ray sets it for its workers.
    monkeypatch.setenv("OMP_NUM_THREADS", "99")
    machine = Machine()
    machine.start(part(tmp_path), "7")
    text, seen = look_until(machine, "h\u00e9\n")
    assert seen.code is None
    first, second = text.splitlines()
    assert first == "7"
    pid, words = second.split()
    assert words.replace("\ufffd", "").count("h") == 50_000
    assert machine.look() == Seen("")
    machine.end()
    assert look_until(machine) == ("half", Seen("half", -signal.SIGKILL))
    until(lambda: not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE, 10)


@pytest.mark.usefixtures("talks")
def test_sigterm_reaches_it(tmp_path: Path) -> None:
    machine = Machine()
    machine.start(part(tmp_path), None)
    text, _ = look_until(machine, "None\n")
    assert text.startswith("None\n")
    machine.stop()
    assert look_until(machine)[1].code == -signal.SIGTERM
    machine.end()
    machine.end()


@pytest.mark.skipif(sys.platform != "linux", reason="the system kills it with its parent on Linux alone")
def test_it_ends_with_the_process_that_started_it() -> None:
    child = "import os, sys, time; from stillroom.cluster.ray_machine import end_with; end_with(int(sys.argv[1])); print(flush=True); time.sleep(60)"  # noqa: E501
    parent = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent, child], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert psutil.pid_exists(pid)
    process.kill()
    process.communicate()
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 10)
    # One whose parent is gone already does not begin.
    late = subprocess.run([sys.executable, "-c", child, str(process.pid)], capture_output=True, check=False)
    assert late.returncode == 1
    assert not late.stdout
