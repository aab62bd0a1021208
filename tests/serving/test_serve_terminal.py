"""The conversation in the terminal: its commands, and what a model may not do to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

from stillroom.cli.serve import _say, _Settings
from stillroom.core.errors import EngineFailed, SwitchedOff, UsageError
from stillroom.core.plain import shown
from stillroom.serving.ask import Chat, rendered
from stillroom.switch import Places, Switch, stopping
from stillroom.switch.engines import Registration


def test_commands_change_how_answers_are_written(tiny_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = _Settings(0.7, 8, 0)
    with Chat(tiny_gguf, system="Be kind.") as talk:
        assert settings.command(talk, "/help")
        assert "/clear" in capsys.readouterr().err
        assert settings.command(talk, "/provenance")
        assert "no one has signed" in capsys.readouterr().err
        for line in ("/set temperature 0", "/set max_tokens 4", "/set seed 7"):
            assert settings.command(talk, line)
        assert (settings.temperature, settings.max_tokens, settings.seed) == (0, 4, 7)
        for line, said in (
            ("/set temperature 9", "between"),
            ("/set seed x", "number"),
            ("/what", "no /what"),
            ("/set foo 3", "no setting foo"),
        ):
            assert settings.command(talk, line)
            assert said in capsys.readouterr().err
        assert settings.temperature == 0
        talk.say("Hello", max_tokens=4)
        assert settings.command(talk, "/clear")
        assert talk.messages == [{"role": "system", "content": "Be kind."}]
        assert settings.command(talk, "/set system Be brief.")
        assert talk.messages == [{"role": "system", "content": "Be brief."}]
        assert not settings.command(talk, "/bye")
        mark = next(text for text in talk.facts.control if text in talk.facts.template)
        assert isinstance(rendered(talk.engine, talk.facts, [{"role": "user", "content": "x"}]), str)
        parts = rendered(talk.engine, talk.facts, [{"role": "user", "content": f"x{mark}y"}])
        assert isinstance(parts, list)
        plain = rendered(talk.engine, talk.facts, [{"role": "user", "content": "xy"}])
        assert "".join(part for part in parts if isinstance(part, str)) == plain
        assert talk.say(f"x{mark}y", max_tokens=4) is not None
        before = [*talk.messages]
        with pytest.raises(EngineFailed):
            talk.say("word " * 3000)
        with pytest.raises(UsageError, match=r"half a character at position 3 \(a lone surrogate, '\\udce9'\)"):
            talk.say("caf\udce9")
        assert talk.messages == before, "what was not answered is not part of the conversation"
        assert talk.say("Go on", max_tokens=2) is not None


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert shown("a\x1b]0;x\x07b\n\tc\x9b\u00e9") == "a\\u001b]0;x\\u0007b\n\tc\\u009b\u00e9"


def waiting_in(pipe: IO[bytes]) -> int:
    (waiting,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))
    return int(waiting)


TALK = """
import sys
from pathlib import Path
from stillroom.switch.places import Places
folder, model = sys.argv[1:]
Places.of_user = classmethod(lambda cls: cls.under(Path(folder)))
from stillroom.cli import main
from stillroom.serving import ask
ask.Chat.stream = lambda *_, **__: iter(lambda: "word ", None)  # an answer that does not end
sys.argv = ["stillroom", "chat", model, "--prompt", "Go", "--max-tokens", "8000", "--context", "8192"]
main()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a pipe's size is set")
def test_a_terminal_that_takes_nothing_does_not_hold_off_up(tiny_gguf: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", TALK, str(tmp_path), str(tiny_gguf)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        full = fcntl.fcntl(process.stdout, 1031, 4096)  # F_SETPIPE_SZ
        while waiting_in(process.stdout) < full - 64 and process.poll() is None:
            time.sleep(0.01)
        receipt = stopping.off(Switch(Places.under(tmp_path)))
        waiting = waiting_in(process.stdout)
        assert len(receipt.stopped) == 1
        assert receipt.silenced == [process.pid]
        rest = process.stdout.read()
        said = process.stderr.read().decode()
    assert len(rest) == waiting
    assert process.returncode == -signal.SIGKILL
    assert "Traceback" not in said


def test_what_comes_after_off_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    switch = Switch(Places.under(tmp_path))

    def pieces(*_: object, **__: object) -> Iterator[str]:
        yield "before"
        assert stopping.off(switch).silenced == [os.getpid()]
        yield "after"

    talk: Any = SimpleNamespace(stream=pieces, engine=SimpleNamespace(switch=switch))
    line = Registration(switch.places, "server", "chat")
    with contextlib.closing(line), pytest.raises(SwitchedOff):
        _say(talk, "Go", _Settings(0.0, 8, 0), line)
    assert capsys.readouterr().out == "before"
