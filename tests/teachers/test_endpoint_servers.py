"""Answers of servers that cannot be run here, made as their sources and client packages describe them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from tiny_models import tiny_model

from stillroom.core.errors import TeacherError
from stillroom.recipe.teacher import EndpointTeacher as EndpointConfig
from stillroom.teachers.endpoint.teacher import open_endpoint

IDS = [100, 101, 102, 103]
LISTED = [[(110, -0.5), (111, -1.5)], [(112, -0.7), (113, -2.0)], [(114, -0.2), (115, -3.0)]]


def scored(folder: Path, kind: str, answer: dict[str, Any]) -> Any:
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=json.dumps(answer).encode()))
    config = EndpointConfig(
        base_url="http://127.0.0.1:1/v1",
        model="m",
        tokenizer=str(folder),
        server=kind,
        sends_text=True,
        top=2,
        attempts=1,
    )
    return open_endpoint(config, transport=transport).server.score(IDS, "x")


def sglang(ids: list[int]) -> dict[str, Any]:
    own = [[None, ids[0], None], *([-1.0, token, None] for token in ids[1:])]
    top = [None, *([[value, token, None] for token, value in row] for row in LISTED)]
    return {"text": "", "meta_info": {"input_token_logprobs": own, "input_top_logprobs": top}}


def echoed(ids: list[int]) -> dict[str, Any]:
    top = [None, *({f"token_id:{token}": value for token, value in row} for row in LISTED), {"token_id:1": -0.1}]
    return {"choices": [{"prompt_token_ids": ids, "logprobs": {"token_ids": [*ids, 1], "top_logprobs": top}}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("servers") / "teacher", layers=1, hidden=16)


@pytest.mark.parametrize(("kind", "made"), [("sglang", sglang), ("fireworks", echoed), ("together", echoed)])
def test_lists_are_read_and_other_tokens_are_named(folder: Path, kind: str, made: Any) -> None:
    signal = scored(folder, kind, made(IDS))
    assert signal.ids.tolist() == [[token for token, _ in row] for row in LISTED]
    assert torch.allclose(signal.logprobs, torch.tensor([[value for _, value in row] for row in LISTED]))
    assert torch.allclose(signal.rest, 1 - signal.logprobs.exp().sum(1))
    with pytest.raises(TeacherError, match="not those of the recipe's tokenizer"):
        scored(folder, kind, made([*IDS[:-1], 9]))
    with pytest.raises(TeacherError, match="was not scored"):
        scored(folder, kind, {"choices": [{"text": "", "logprobs": None}], "meta_info": {}})


@pytest.mark.parametrize(
    ("kind", "entry", "words"),
    [
        ("sglang", [-0.5, 10**30, None], "an id is"),
        ("sglang", [10**400, 110, None], "a log-probability is"),
        ("fireworks", ("token_id:\u00b2", -0.5), "no token"),
        ("fireworks", (f"token_id:{10**30}", -0.5), "an id is"),
    ],
)
def test_numbers_that_no_server_can_mean_are_refused_by_name(folder: Path, kind: str, entry: Any, words: str) -> None:
    answer = sglang(IDS) if kind == "sglang" else echoed(IDS)
    if kind == "sglang":
        answer["meta_info"]["input_top_logprobs"][1][0] = entry
    else:
        answer["choices"][0]["logprobs"]["top_logprobs"][1] = {entry[0]: entry[1], "token_id:111": -1.5}
    with pytest.raises(TeacherError, match=words) as found:
        scored(folder, kind, answer)
    assert len(str(found.value)) < 500


@pytest.mark.parametrize("kind", ["vllm", "sglang", "together", "llamacpp"])
def test_an_error_with_status_200_is_shown_in_the_servers_words(folder: Path, kind: str) -> None:
    for error in ({"message": "model\x1b[31m overloaded" + "x" * 9999}, "model overloaded"):
        with pytest.raises(TeacherError, match=r"answered with an error: model.* overloaded") as found:
            scored(folder, kind, {"error": error})
        assert "\x1b" not in str(found.value)
        assert len(str(found.value)) < 500


@pytest.mark.parametrize("value", ["1e999", "-1e999", "-1e300", "1" + "0" * 400])
def test_a_number_that_float32_does_not_hold_is_refused_by_name(folder: Path, value: str) -> None:
    text = json.dumps(sglang(IDS)).replace("-0.7", value)
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=text.encode()))
    config = EndpointConfig(
        base_url="http://127.0.0.1:1/v1",
        model="m",
        tokenizer=str(folder),
        server="sglang",
        sends_text=True,
        top=2,
        attempts=1,
    )
    with pytest.raises(TeacherError, match="a log-probability is"):
        open_endpoint(config, transport=transport).server.score(IDS, "x")
