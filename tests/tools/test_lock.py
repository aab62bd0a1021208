"""The locks are written only where they hold."""

import sys

import pytest

from tools import lock


def test_no_lock_is_written_on_another_platform(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def resolved(*_: str, **__: bool) -> lock.Locked:
        raise AssertionError("asked the package index")

    monkeypatch.setattr(sys, "argv", ["tools.lock"])
    monkeypatch.setattr(lock, "resolve", resolved)
    monkeypatch.setattr(lock.platform, "machine", lambda: "aarch64")
    assert lock.main() == 1
    assert "aarch64" in capsys.readouterr().out
