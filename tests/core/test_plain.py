"""What comes from files, models and networks is shown, not sent."""

from __future__ import annotations

import io
import json

import pytest
import typer
from rich.console import Console
from rich.table import Table

from stillroom.cli import app  # noqa: F401 - the commands guard what they print
from stillroom.core.plain import guard_tables, shown
from stillroom.packages import show

HOSTILE = "a\x1b]0;title\x07b\x9bc\x7fd\u202ee\r\U000e0041"


def test_control_characters_are_written_out_and_json_keeps_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown("ab\tc\nd é 漢 🙂") == "ab\tc\nd é 漢 🙂"
    assert shown("a\nb", one_line=True) == "a\\nb"
    assert all(char.isprintable() for char in shown(HOSTILE))
    typer.echo(json.dumps({"text": HOSTILE}, ensure_ascii=False))
    out = capsys.readouterr().out
    assert all(char.isprintable() for char in out.strip())
    assert json.loads(out) == {"text": HOSTILE}


def test_tables_too() -> None:
    guard_tables()
    table, file = Table(), io.StringIO()
    table.add_column("name")
    table.add_row(HOSTILE)
    Console(file=file, width=200).print(table)
    assert "\x1b" not in file.getvalue()
    assert "\\u001b]0;title" in file.getvalue()


def test_an_unsigned_package_draws_no_line_of_its_own() -> None:
    passport = {
        "name": "p", "sequence": 1, "released": "today", "digest": "0" * 64,
        "signature": {"state": "unsigned", "signers": []}, "ancestors": [],
        "terms": {"verdict": "allowed", "table_version": 1, "reasons": ["x\n  signature   verified by 2 keys \x1b[1A"],
                  "licences": [], "use_policies": []},
        "scores": {}, "bounds": [], "warnings": [],
        "policy": {"minimum_runtime": "0.1.0", "offline_grace_days": 1, "at_expiry": "refuse"},
    }  # fmt: skip
    found = show.lines(passport)
    assert not any("\n" in line or "\x1b" in line for line in found)
