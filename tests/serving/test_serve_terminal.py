"""The conversation in the terminal: its commands, and what a model may not do to it."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from stillroom.cli.serve import _Settings
from stillroom.core.plain import shown
from stillroom.serving.ask import Chat, rendered
from stillroom.switch import Places, Switch, stopping


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


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert shown("a\x1b]0;x\x07b\n\tc\x9b\u00e9") == "a\\u001b]0;x\\u0007b\n\tc\\u009b\u00e9"


TALK = """
import sys
from pathlib import Path
from stillroom.switch.places import Places
Places.of_user = classmethod(lambda cls: cls.under(Path(sys.argv[1])))
from stillroom.cli import main
sys.argv = ["stillroom", "chat", sys.argv[2], "--prompt", "Go", "--max-tokens", "1900", "--temperature", "2"]
main()
"""


@pytest.mark.parametrize("reads", [True, False])
def test_nothing_is_written_after_off(tiny_gguf: Path, tmp_path: Path, reads: bool) -> None:
    words = [sys.executable, "-c", TALK, str(tmp_path), str(tiny_gguf)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        written = os.read(process.stdout.fileno(), 1)
        while reads and len(written) < 200 and (more := os.read(process.stdout.fileno(), 50)):
            written += more
        receipt = stopping.off(Switch(Places.under(tmp_path)))
        (waiting,) = struct.unpack("i", fcntl.ioctl(process.stdout, termios.FIONREAD, b"\0" * 4))
        assert len(receipt.stopped) <= 1
        rest = process.stdout.read()
        said = process.stderr.read().decode()
    # The end of a line is ours, not the model's.
    assert len(rest.rstrip(b"\n")) <= waiting, rest[waiting:]
    assert process.returncode != 0 or len(receipt.stopped) == 0, said
    assert "Traceback" not in said
