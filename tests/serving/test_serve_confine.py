"""What the model's process cannot do: it tries, in a process confined as an engine is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stillroom.core import files
from stillroom.switch import Places, Switch

ATTACK = """
import ctypes, json, os, signal, socket, sys
from pathlib import Path
import xllamacpp  # an engine has it loaded
from stillroom.core.sandbox.confine import confine
folder, victim, *switches = sys.argv[1:]
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
kept = attempt(lambda: (target / "state").write_text("fine"))
print(json.dumps({"report": report, "seen": seen, "kept": kept}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="written for Linux")
def test_the_model_reaches_neither_the_switch_nor_anybody_else(tmp_path: Path) -> None:
    places = Places.under(tmp_path)
    Switch(places).write(True)
    before = [path.read_bytes() for path in places.switches]
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as victim:
        words = [str(tmp_path), str(victim.pid), *map(str, places.switches)]
        done = subprocess.run([sys.executable, "-c", ATTACK, *words], capture_output=True, text=True, timeout=60)
        alive = victim.poll() is None
        state = Path(f"/proc/{victim.pid}/stat").read_text().rpartition(")")[2].split()[0]
        victim.kill()
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    missing = [name for name, word in said["report"].items() if not word.startswith("in force")]
    if missing:
        pytest.skip(f"this system does not let an ordinary process do it: {missing}")
    assert {name: word for name, word in said["seen"].items() if word == "succeeded"} == {}
    assert said["kept"] == "succeeded", "its own folder is the one that it may write"
    assert alive
    assert state != "T"
    assert [path.read_bytes() for path in places.switches] == before


def test_an_engine_says_what_is_in_force(tiny_gguf: Path, tmp_path: Path) -> None:
    from stillroom.runtime.engine import Engine, EngineOptions

    switch = Switch(Places.under(tmp_path))
    with Engine(tiny_gguf, EngineOptions(context=128, threads=1), switch) as engine:
        assert engine.confined["resource limits"] == "in force"
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
