"""The guides' code is code of this project: it passes the same checks, and follows its own rules."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from guide import ROOT, Guide, patched

GUIDES = ("family", "objective", "reader")


@pytest.mark.parametrize("name", GUIDES)
def test_its_files_pass_the_projects_checks(name: str, tmp_path: Path) -> None:
    guide = Guide(name, tmp_path)
    files = [block for block in guide.blocks if block.language == "python" and (block.path or "").startswith("src/")]
    assert files
    for block in files:
        for arguments in (["check"], ["format", "--check"]):
            command = [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", block.path or "", "-"]
            done = subprocess.run(command, input=block.text, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", GUIDES)
def test_its_entry_point_is_one_that_stillroom_reads(name: str, tmp_path: Path) -> None:
    guide = Guide(name, tmp_path)
    (group,) = tomllib.loads(guide.text("pyproject.toml"))["project"]["entry-points"]
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    assert any(f'GROUP = "{group}"' in text for text in sources)


@pytest.mark.parametrize("name", GUIDES)
def test_its_files_and_tests_exist(name: str) -> None:
    page = (ROOT / "docs" / "contributing" / f"{name}.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:src|tests|docs|tools)/[\w/.-]+)`", page))
    assert f"tests/guides/test_guide_{name}.py" in named
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert f"(docs/contributing/{name}.md)" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_a_change_that_does_not_fit_the_file_is_an_error() -> None:
    diff = "# a.py\n one\n+two\n three\n"
    assert patched("zero\none\nthree\n", diff) == "zero\none\ntwo\nthree\n"
    for text in ("one\n", "one\nthree\none\nthree\n"):
        with pytest.raises(AssertionError):
            patched(text, diff)
