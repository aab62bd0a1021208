"""Checks of clients: none is lost, and none counts as passed that was not made."""

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import clients

LM_EVAL = next(client for client in clients.CLIENTS if client.name == "lm_eval")


@pytest.mark.parametrize("words", [["--only", "openia"], ["--only"]])
def test_an_unknown_client_is_refused(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["clients", *words])
    with pytest.raises(SystemExit) as ended:
        clients.main()
    assert ended.value.code == 2
    assert "--only" in capsys.readouterr().err


def test_a_client_that_makes_no_check_fails() -> None:
    found = clients._found([sys.executable, "-c", "print('[]')"])
    assert [check["passed"] for check in found] == [False]


def test_what_fails_beside_the_checks_takes_none_of_them_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> list[dict[str, Any]]:
        raise FileNotFoundError("no weights")

    monkeypatch.setattr(clients, "prepared", lambda _: Path())
    monkeypatch.setattr(clients, "checks", lambda *_: [{"check": "a chat", "passed": True}])
    monkeypatch.setattr(clients, "scores", fails)
    found = clients.measured(LM_EVAL, None, "model")  # type: ignore[arg-type]
    assert [(check["check"], check["passed"]) for check in found] == [("a chat", True), ("scores are compared", False)]
    assert "no weights" in found[1]["why"]
