"""A release's folder is whole, or it is not there."""

import sys
from pathlib import Path

import pytest

from tools import fixtures


def test_an_interrupt_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        Path("teacher").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # as the program sets it, and leaves it
    monkeypatch.setattr(fixtures, "_write_teacher_and_text", interrupted)
    monkeypatch.setattr(sys, "argv", ["tools.fixtures", str(tmp_path / "0.0.1")])
    with pytest.raises(KeyboardInterrupt):
        fixtures.main()
    assert not list(tmp_path.iterdir())
