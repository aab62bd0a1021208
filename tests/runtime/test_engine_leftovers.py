"""Folders of engines whose process was killed are removed; those in use, of others, or not yet locked are not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from stillroom.core.errors import EngineFailed
from stillroom.runtime import engine
from stillroom.switch import Places, Switch

HOLDER = """
import sys, time
from pathlib import Path
from stillroom.runtime import engine
folder = Path(sys.argv[1]) / "stillroom-held"
folder.mkdir()
engine._LOCKS[folder] = engine._lock(folder / engine.OWNER, 64)
(folder / "0.state").write_text("my secret")
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no locks on files there")
def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        held = tmp_path / "stillroom-held"
        assert engine.sweep(tmp_path) == []
        assert held.exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
    young, old, used = (tmp_path / f"stillroom-{name}" for name in ("young", "old", "used"))
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as alive:
        for folder, listener in ((young, dead), (old, dead), (used, alive)):
            folder.mkdir()
            if folder in (used, old):
                listener.bind(str(folder / "engine.sock"))
        alive.listen()
        for folder in (old, used):
            os.utime(folder, (1, 1))
        (tmp_path / "stillroom-link").symlink_to(used)
        (tmp_path / "stillroom-file").write_text("")
        assert sorted(engine.sweep(tmp_path)) == [held, old]
    assert not held.exists()
    assert young.exists()
    assert used.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user's folder")
def test_folders_of_others_stay(tmp_path: Path) -> None:
    theirs = tmp_path / "stillroom-theirs"
    theirs.mkdir()
    (theirs / engine.OWNER).touch()
    os.chown(theirs, 12345, 12345)
    assert engine.sweep(tmp_path) == []


def test_a_process_that_cannot_be_started_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No folder, no lock, and no traceback."""

    def full(_self: engine.Engine) -> None:
        raise OSError(24, "Too many open files")

    made = tmp_path / "stillroom-mine"
    monkeypatch.setattr(engine, "_private_folder", lambda: made.mkdir() or made)
    monkeypatch.setattr(engine.Engine, "_spawn", full)
    with pytest.raises(EngineFailed, match="Too many open files"):
        engine.Engine(tmp_path / "m.gguf", switch=Switch(Places.under(tmp_path / "switch")))
    assert not made.exists()
