"""What cannot be written or compared is said before a run is made."""

import sys
from pathlib import Path

import pytest

from tools import identity


def test_files_that_are_not_there_are_told_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: Path) -> Path:
        raise AssertionError("made a run")

    monkeypatch.setattr(identity, "tiny_run", run)
    for words in (["--write", str(tmp_path / "no" / "file")], ["--against", str(tmp_path / "none.json")]):
        monkeypatch.setattr(sys, "argv", ["tools.identity", *words])
        with pytest.raises(SystemExit, match=words[0]):
            identity.main()
