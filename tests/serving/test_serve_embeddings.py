"""Embeddings, where the model has them: what PyTorch computes of the same texts, and nothing else but embeddings."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter, PoolingType
from serve_support import Running, running
from tiny_models import tiny_model

from stillroom.formats import gguf_file
from stillroom.models.load import load_student
from stillroom.runtime import transport as local
from stillroom.runtime.engine import Engine
from stillroom.serving import app

TEXTS = ["A list is a sequence.", "import os", "größer"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("embeddings") / "model", layers=2)


@pytest.fixture(scope="module")
def pooled(folder: Path) -> Iterator[Running]:
    """A server of a model that says how its states are pooled: by their mean."""
    keys = gguf_file.add_hyperparameters

    def with_pooling(writer: GGUFWriter, *arguments: Any) -> Any:
        writer.add_pooling_type(PoolingType.MEAN)
        return keys(writer, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_file, "add_hyperparameters", with_pooling)
        gguf_file.write_gguf(folder, folder.parent / "pooled.gguf", "F32", name="pooled", licence=None)
    with running([folder.parent / "pooled.gguf"], folder.parent / "server") as made:
        yield made


def test_they_are_the_mean_of_the_last_states(pooled: Running, folder: Path) -> None:
    status, answer, _ = pooled.ask("POST", "/v1/embeddings", {"input": TEXTS})
    assert status == 200, answer
    assert answer["object"] == "list"
    assert answer["model"] == "pooled"
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2]
    model, tokenizer = load_student(folder, torch.float32)
    counts = []
    for text, entry in zip(TEXTS, answer["data"], strict=True):
        ids = tokenizer(text)["input_ids"]
        counts.append(len(ids))
        with torch.inference_mode():
            states = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        expected = torch.nn.functional.normalize(states.mean(0), dim=0)
        assert float(expected @ torch.tensor(entry["embedding"])) == pytest.approx(1.0, abs=1e-4)
    assert answer["usage"]["prompt_tokens"] == sum(counts)


def test_a_control_token_that_a_text_spells_is_text(pooled: Running, folder: Path) -> None:
    control = pooled.service.pool.models["pooled"].facts.control
    assert control
    texts = ["plain", *(f"a {token} b" for token in control)]
    status, answer, _ = pooled.ask("POST", "/v1/embeddings", {"input": texts})
    assert status == 200, answer
    model, tokenizer = load_student(folder, torch.float32)
    for text, entry in zip(texts, answer["data"], strict=True):
        ids = tokenizer(text, split_special_tokens=True)["input_ids"]
        assert not set(ids) & set(tokenizer.convert_tokens_to_ids(list(control)))
        with torch.inference_mode():
            states = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        expected = torch.nn.functional.normalize(states.mean(0), dim=0)
        assert float(expected @ torch.tensor(entry["embedding"])) == pytest.approx(1.0, abs=1e-4), text


def test_one_text_and_base64_say_the_same(pooled: Running) -> None:
    _, one, _ = pooled.ask("POST", "/v1/embeddings", {"input": TEXTS[0], "model": "pooled"})
    _, coded, _ = pooled.ask("POST", "/v1/embeddings", {"input": TEXTS[:1], "encoding_format": "base64"})
    numbers = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), dtype="<f4")
    np.testing.assert_allclose(numbers, one["data"][0]["embedding"], atol=1e-6)


def test_ids_of_tokens_are_texts_as_well(pooled: Running, folder: Path) -> None:
    _, tokenizer = load_student(folder, torch.float32)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    _, words, _ = pooled.ask("POST", "/v1/embeddings", {"input": TEXTS})
    status, numbers, _ = pooled.ask("POST", "/v1/embeddings", {"input": ids})
    assert status == 200, numbers
    for one, other in zip(words["data"], numbers["data"], strict=True):
        np.testing.assert_allclose(one["embedding"], other["embedding"], atol=1e-5)
    _, single, _ = pooled.ask("POST", "/v1/embeddings", {"input": ids[0]})
    np.testing.assert_allclose(single["data"][0]["embedding"], words["data"][0]["embedding"], atol=1e-5)
    status, answer, _ = pooled.ask("POST", "/v1/embeddings", {"input": [1 << 20]})
    assert status == 400
    assert "no token 1048576" in answer["error"]["message"]
    status, answer, _ = pooled.ask("POST", "/v1/embeddings", {"input": ["x"] * 2049})
    assert status == 400
    assert "a list of up to 2,048 of either" in answer["error"]["message"]
    assert len(pooled.ask("POST", "/v1/embeddings", {"input": ["x"] * 300})[1]["data"]) == 300


@pytest.mark.parametrize("body", [{"input": []}, {"input": [1, "x"]}, {}, {"input": "x", "encoding_format": "hex"}])
def test_what_is_no_text_is_refused(pooled: Running, body: dict[str, Any]) -> None:
    assert pooled.ask("POST", "/v1/embeddings", body)[0] == 400


def test_a_text_beyond_the_context_is_refused_and_the_server_goes_on(pooled: Running) -> None:
    status, answer, _ = pooled.ask("POST", "/v1/embeddings", {"input": "word " * 2000})
    assert status == 400
    assert answer["error"]["code"] == "context_length_exceeded"
    # One that is longer than a step of reading elsewhere is embedded whole.
    status, answer, _ = pooled.ask("POST", "/v1/embeddings", {"input": "word " * 90})
    assert status == 200
    assert answer["usage"]["prompt_tokens"] > 256
    assert pooled.ask("POST", "/v1/embeddings", {"input": "x"})[0] == 200


def test_it_says_what_it_is_and_does_not_chat(pooled: Running) -> None:
    _, answer, _ = pooled.ask("GET", "/v1/models/pooled")
    assert answer["embeddings"] is True
    status, answer = pooled.chat("Hello")
    assert status == 400
    assert "embeddings, not of text" in answer["error"]["message"]
    assert pooled.ask("POST", "/v1/sessions", {})[0] == 400


def test_the_switch_blocks_them_alone(pooled: Running) -> None:
    assert pooled.ask("POST", "/switch/feature", {"feature": "embeddings", "state": "blocked"})[0] == 200
    try:
        assert pooled.ask("POST", "/v1/embeddings", {"input": "x"})[0] == 503
    finally:
        pooled.ask("POST", "/switch/feature", {"feature": "embeddings", "state": "enabled"})
    assert pooled.ask("POST", "/v1/embeddings", {"input": "x"})[0] == 200


def test_a_text_that_ended_the_process_is_not_embedded_again(pooled: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused by name, once and for all, and waits in the turn of whose it is."""
    asked: list[str] = []
    owners: list[str] = []
    model = pooled.service.pool.models["pooled"]
    slot = model.slot

    async def gone(_socket: Path, _key: str, _method: str, path: str, _body: Any = None) -> Any:
        asked.append(path)
        raise local.EngineGone

    def noted(text: str, session: str | None = None, owner: str = "") -> Any:
        owners.append(owner)
        return slot(text, session, owner)

    monkeypatch.setattr(local, "call", gone)
    monkeypatch.setattr(Engine, "killed", lambda _self: False)
    monkeypatch.setattr(model, "slot", noted)
    monkeypatch.setattr(app, "owner_of", lambda _request: "somebody")
    for _ in range(2):
        status, answer, _ = pooled.ask("POST", "/v1/embeddings", {"input": "kills"})
        assert status in (400, 503)
        assert "ended over this" in answer["error"]["message"]
    assert len(asked) == 1
    assert owners == ["somebody"]
    monkeypatch.undo()
    assert pooled.ask("POST", "/v1/embeddings", {"input": "x"})[0] == 200
