"""The requests at which faulty servers begin to go wrong are those of a capture."""

from pathlib import Path

import pytest

from benchmarks import endpoint
from benchmarks.fake_endpoint import FakeServer, serving
from tests.tiny_models import tiny_model


def test_a_server_goes_wrong_at_the_last_request_of_all_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(endpoint.KEY_ENV, endpoint.KEY)
    tokenizer = tiny_model("llama", tmp_path / "tokenizer", layers=1, hidden=16)
    with serving(FakeServer(endpoint.SIZE)) as server:
        endpoint.captured(server.address, tokenizer, tmp_path / "whole", endpoint.pieces(endpoint.PIECES))
        assert endpoint.REQUESTS["last"] == server.asked - 1
    found = endpoint.fault_named(tokenizer, tmp_path / "faulty", "other model", "last", endpoint.Leaks())
    assert found["named"], found["said"]
    assert found["whole_afterwards"]
