"""What the model's process cannot do: it tries, in a process confined as an engine is."""

from __future__ import annotations

import json
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stillroom.core import files
from stillroom.core.sandbox.confine import LACKS, missing
from stillroom.core.sandbox.probe import measures
from stillroom.switch import Places, Switch, stopping
from stillroom.switch.engines import Registration

ATTACK = """
import ctypes, fcntl, json, os, platform, resource, signal, socket, struct, sys
from pathlib import Path
import xllamacpp  # an engine has it loaded
from stillroom.core.sandbox import confine as measures
from stillroom.core.sandbox.calls import CALLS
from stillroom.core.sandbox.confine import confine
without, folder, victim, *switches = sys.argv[1:]
if without:
    # A system that lacks a measure: an older kernel, a container.
    setattr(measures, without, lambda *_: "refused by the system: taken away")
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    number = CALLS[platform.machine()].get(name)
    if number is None:
        raise OSError("this architecture has no such call")
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
def fork(name, *arguments):
    number = CALLS[platform.machine()][name]
    pid = libc.syscall(number, *arguments)
    if pid == 0:
        os._exit(0)
    if pid < 0:
        raise OSError(ctypes.get_errno(), name)
def send_by_descriptor():
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETOWN, int(victim))
    fcntl.fcntl(reader, 10, signal.SIGKILL)
    fcntl.fcntl(reader, fcntl.F_SETFL, fcntl.fcntl(reader, fcntl.F_GETFL) | os.O_ASYNC)
    os.write(writer, b"x")
def log():
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"forged", folder + "/log.sock")
target = Path(folder) / "private"
target.mkdir()
report = confine([Path("/proc/self")], target, 4 << 30)
def attempt(work):
    try:
        work()
    except BaseException as error:
        return type(error).__name__
    return "succeeded"
def connect():
    link = socket.socket(socket.AF_UNIX)
    link.connect("/run/dbus/system_bus_socket")
seen = {
    "read the switch": attempt(lambda: Path(switches[0]).read_text()),
    "write the switch": attempt(lambda: Path(switches[0]).write_text("{}")),
    "replace the switch": attempt(lambda: os.replace(target, switches[0])),
    "remove the switch": attempt(lambda: os.unlink(switches[1])),
    "move its folder": attempt(lambda: os.rename(os.path.dirname(switches[0]), folder + "/gone")),
    "kill the parent": attempt(lambda: os.kill(int(victim), signal.SIGKILL)),
    "stop the parent": attempt(lambda: os.kill(int(victim), signal.SIGSTOP)),
    "open a network": attempt(lambda: socket.create_connection(("127.0.0.1", 80), 1)),
    "listen": attempt(lambda: socket.socket().bind(("127.0.0.1", 0))),
    "look up a name": attempt(lambda: socket.getaddrinfo("example.org", 80)),
    "send a datagram": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))),
    "connect locally": attempt(connect),
    "run a program": attempt(lambda: os.execv("/bin/true", ["true"])),
    "fork": attempt(lambda: os.posix_spawn("/bin/true", ["true"], {})),
    "read another's file": attempt(lambda: Path("/etc/passwd").read_text()),
    "read the parent's memory": attempt(lambda: open(f"/proc/{victim}/mem", "rb").read(1)),
    "read the parent's environment": attempt(lambda: open(f"/proc/{victim}/environ", "rb").read(1)),
}
seen |= {
    "clone": attempt(lambda: fork("clone", signal.SIGCHLD, 0, 0, 0, 0)),
    "clone3": attempt(lambda: fork("clone3", struct.pack("QQQQQQQQ", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0), 64)),
    "os.fork": attempt(lambda: os.fork() or os._exit(0)),
    "lower another's limits": attempt(lambda: resource.prlimit(int(victim), resource.RLIMIT_NOFILE, (0, 0))),
    "end another by a limit": attempt(lambda: resource.prlimit(int(victim), resource.RLIMIT_CPU, (0, 0))),
    "move another to a core": attempt(lambda: os.sched_setaffinity(int(victim), {0})),
    "make another idle": attempt(lambda: os.sched_setscheduler(int(victim), 5, os.sched_param(0))),
    "lower another's priority": attempt(lambda: os.setpriority(os.PRIO_PROCESS, int(victim), 19)),
    "lower another's disk priority": attempt(lambda: call("ioprio_set", 1, int(victim), 0x6007)),
    "tgkill": attempt(lambda: call("tgkill", int(victim), int(victim), signal.SIGKILL)),
    "a signal by a descriptor": attempt(send_by_descriptor),
    "a datagram to a local socket": attempt(log),
    "shared memory": attempt(lambda: call("shmget", 0, 4096, 0o1600)),
    "semaphores": attempt(lambda: call("semget", 0, 1, 0o1600)),
    "a message queue": attempt(lambda: call("mq_open", b"stillroom-try", os.O_CREAT | os.O_RDWR, 0o600, None)),
    "a file in memory": attempt(lambda: call("memfd_create", b"x", 0)),
    "a pair of sockets": attempt(socket.socketpair),
}
kept = attempt(lambda: (target / "state").write_text("fine"))
print(json.dumps({"report": report, "seen": seen, "kept": kept}))
"""


BY_LANDLOCK = {"read the switch", "write the switch", "replace the switch", "remove the switch", "move its folder",
               "read another's file"}  # fmt: skip
"""What only Landlock refuses; where it is not there, `stillroom status` says so."""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="written for Linux")
@pytest.mark.parametrize("without", ["", "_landlock", "_seccomp", "_attempt"])
def test_the_model_reaches_neither_the_switch_nor_anybody_else(tmp_path: Path, without: str) -> None:
    places = Places.under(tmp_path)
    Switch(places).write(True)
    before = [path.read_bytes() for path in places.switches]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "log.sock"))
        log.settimeout(0.2)
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as victim:
            limit = resource.prlimit(victim.pid, resource.RLIMIT_NOFILE)
            words = [without, str(tmp_path), str(victim.pid), *map(str, places.switches)]
            done = subprocess.run([sys.executable, "-c", ATTACK, *words], capture_output=True, text=True, timeout=60)
            alive = victim.poll() is None
            state = Path(f"/proc/{victim.pid}/stat").read_text().rpartition(")")[2].split()[0] if alive else "Z"
            limit_now = resource.prlimit(victim.pid, resource.RLIMIT_NOFILE) if alive else None
            victim.kill()
        arrived = True
        try:
            log.recv(100)
        except TimeoutError:
            arrived = False
    if without == "_seccomp":
        # Without the list of calls a model's process is not kept from the user's other processes: that is said.
        said = json.loads(done.stdout)
        assert any("start processes" in line for line in missing(said["report"]))
        assert {"clone", "os.fork"} <= {name for name, word in said["seen"].items() if word == "succeeded"}
        return
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    lost = [name for name, word in said["report"].items() if not word.startswith("active")]
    if not without and lost:
        pytest.skip(f"this system does not let an ordinary process do it: {lost}")
    succeeded = {name for name, word in said["seen"].items() if word == "succeeded"}
    assert succeeded <= (BY_LANDLOCK if without == "_landlock" else set())
    assert bool(missing(said["report"])) == bool(without), "what is not active is said"
    assert said["kept"] == "succeeded", "its own folder is the one that it may write"
    assert alive
    assert state != "T"
    assert limit_now == limit
    assert not arrived
    if without != "_landlock":
        assert [path.read_bytes() for path in places.switches] == before


def test_what_is_missing_is_said_exactly() -> None:
    whole = {"seccomp": "active", "landlock": "active (version 7: files, TCP, signals)"}
    assert missing(whole) == []
    assert "signals" in missing({**whole, "landlock": "active (version 4: files, TCP)"})[0]
    assert len(missing({**whole, "landlock": "active (version 1: files)"})) == 3
    assert (
        "the switch's own files" in missing({**whole, "landlock": "refused by the system: Function not implemented"})[0]
    )
    assert "`off` does not know" in missing({"seccomp": "not written for riscv64"})[0]
    mac = missing(
        {"resource limits": "active", "network": "not available on Darwin", "files": "not available on Darwin"}
    )
    assert [line.partition(":")[0] for line in mac] == ["network", "files"]
    assert set(LACKS) >= {*measures(), "network", "files"} - {"confinement"}


SURVIVOR = """
import ctypes, os, signal, sys, time
from pathlib import Path
import xllamacpp
from stillroom.core.sandbox.confine import confine
private = Path(sys.argv[1])
report = confine([Path("/proc/self")], private, 4 << 30)
libc = ctypes.CDLL(None, use_errno=True)
pid = libc.syscall({"x86_64": 56, "aarch64": 220}[os.uname().machine], signal.SIGCHLD, 0, 0, 0, 0)
if pid == 0:
    os.setsid()
    for number in range(40):
        (private / "tick").write_text(str(number))
        time.sleep(0.05)
    os._exit(0)
print(report["seccomp"], flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="written for Linux")
def test_a_worker_that_was_taken_over_does_not_outlive_off(tmp_path: Path) -> None:
    own, private = Switch(Places.under(tmp_path)), tmp_path / "private"
    private.mkdir()
    with subprocess.Popen([sys.executable, "-c", SURVIVOR, str(private)], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        said = worker.stdout.readline().strip()
        line = Registration(own.places, "engine", "model.gguf", worker.pid)
        receipt = stopping.off(own)
    line.close()
    if said != "active":
        pytest.skip(f"seccomp is {said}")
    assert [stopped.pid for stopped in receipt.stopped] == [worker.pid]
    time.sleep(0.2)
    assert not (private / "tick").exists()


def test_a_worker_ends_with_its_parent_whatever_it_computes() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("written for Linux")
    code = (
        "import stillroom.runtime.worker as worker, sys\n"
        "sys.stdin.readline()\n"
        "worker._end_with_parent()\n"
        "print('computes', flush=True)\n"
        # One call into C that never comes back to Python: the same as a prompt or a file that takes minutes.
        "import ctypes; ctypes.PyDLL(None).sleep(60)\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("settings\n")
        process.stdin.flush()
        assert process.stdout.readline() == "computes\n"
        process.stdin.close()
        assert process.wait(10) == -signal.SIGIO


def test_an_engine_says_what_is_in_force(tiny_gguf: Path, tmp_path: Path) -> None:
    from stillroom.runtime.engine import Engine, EngineOptions

    switch = Switch(Places.under(tmp_path))
    with Engine(tiny_gguf, EngineOptions(context=128, threads=1), switch) as engine:
        assert engine.confined["resource limits"] == "active"
        assert engine.folder.stat().st_mode & 0o077 == 0
        assert [files.read_json(path)["model"] for path in switch.places.engines.glob("engine-*")] == [tiny_gguf.name]
        folder = engine.folder
    assert not folder.exists()
    assert not list(switch.places.engines.glob("*.json"))


def test_while_it_waits_a_worker_gives_memory_back_and_it_ends_with_its_parent() -> None:
    code = (
        "import stillroom.runtime.worker as worker\n"
        "worker.RELEASE_SECONDS = 0.01\n"
        "worker.release_memory = lambda: print('released', flush=True)\n"
        "worker._wait_for_the_end()\n"
        "print('ended')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(3)] == ["released\n"] * 3
        process.stdin.close()
        assert process.stdout.read().endswith("ended\n")
