"""Log-probabilities of answers: one entry for each token, each with its own value, whatever the token is."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from serve_support import Running, running

from stillroom.core.errors import EngineFailed
from stillroom.inspection.gguf_header import read_gguf
from stillroom.runtime.engine import Engine
from stillroom.runtime.scoring import _cut_off
from stillroom.serving.ask import Chat


def scored(server: Running, prompt: str, answer: str, top: int = 1) -> dict[str, Any]:
    """What an echo says of an answer's tokens."""
    echo = {"prompt": prompt + answer, "max_tokens": 0, "echo": True, "logprobs": top}
    status, whole, _ = server.ask("POST", "/v1/completions", echo)
    assert status == 200, whole
    found: dict[str, Any] = whole["choices"][0]["logprobs"]
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_within_a_character_have_entries_of_their_own(server: Running, stream: bool) -> None:
    body = {"prompt": "The list", "guided_choice": ["🙂 ok 漢"], "logprobs": 2, "temperature": 0}
    if stream:
        events = list(server.stream("/v1/completions", {**body, "stream_options": {"include_usage": True}}))
        choices = [choice for event in events for choice in event.get("choices", ())]
        text = "".join(choice["text"] for choice in choices)
        found = {
            key: [each for choice in choices for each in (choice["logprobs"] or {}).get(key, [])] for key in COLUMNS
        }
        count = next(event["usage"] for event in events if event.get("usage"))["completion_tokens"]
    else:
        status, answer, _ = server.ask("POST", "/v1/completions", body)
        assert status == 200, answer
        text, found = answer["choices"][0]["text"], answer["choices"][0]["logprobs"]
        count = answer["usage"]["completion_tokens"]
    assert text == "🙂 ok 漢"
    assert {len(found[key]) for key in COLUMNS} == {count}
    echoed = scored(server, "The list", text, 2)
    ended = count - 1 if found["tokens"][-1] == "" else count
    assert found["tokens"][:ended] == echoed["tokens"][-ended:]
    assert found["token_logprobs"][:ended] == pytest.approx(echoed["token_logprobs"][-ended:], abs=1e-2)
    assert found["text_offset"][:4] == [0, 0, 0, 0]
    assert all(token in top or len(top) == 2 for token, top in zip(found["tokens"], found["top_logprobs"], strict=True))


COLUMNS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def test_a_chat_tells_all_of_its_tokens(server: Running) -> None:
    status, answer = server.chat("Go", guided_choice=["🙂a"], logprobs=True, top_logprobs=1, temperature=0)
    assert status == 200, answer
    entries = answer["choices"][0]["logprobs"]["content"]
    assert len(entries) == answer["usage"]["completion_tokens"]
    written = bytes(byte for entry in entries for byte in entry["bytes"])
    assert written.decode() == answer["choices"][0]["message"]["content"] == "🙂a"
    assert len({entry["logprob"] for entry in entries}) > 1


def test_an_answer_that_ends_within_a_character_tells_what_was_written(server: Running) -> None:
    body = {"prompt": "The list", "guided_choice": ["a🙂"], "max_tokens": 3, "temperature": 0}
    _, plain, _ = server.ask("POST", "/v1/completions", body)
    _, told, _ = server.ask("POST", "/v1/completions", {**body, "logprobs": 1})
    assert told["choices"][0]["text"] == plain["choices"][0]["text"] == "a"
    assert told["choices"][0]["finish_reason"] == "length"
    assert len(told["choices"][0]["logprobs"]["tokens"]) == told["usage"]["completion_tokens"] == 3


def test_tokens_before_a_stop_have_their_texts(server: Running) -> None:
    body = {"prompt": "The list", "guided_choice": ["abcdefgh"], "temperature": 0, "logprobs": 1, "stop": ["ef"]}
    status, answer, _ = server.ask("POST", "/v1/completions", body)
    assert status == 200, answer
    choice, found = answer["choices"][0], answer["choices"][0]["logprobs"]
    assert (choice["text"], choice["finish_reason"]) == ("abcd", "stop")
    assert len(found["tokens"]) == answer["usage"]["completion_tokens"]
    assert "".join(found["tokens"]).startswith("abcdef")
    assert found["text_offset"] == [sum(map(len, found["tokens"][:at])) for at in range(len(found["tokens"]))]
    assert answer["usage"]["prompt_tokens"] > 0


def test_what_the_engine_takes_for_the_beginning_of_a_character() -> None:
    for letter in "aß漢🙂":
        data = letter.encode()
        assert not _cut_off(data)
        assert not _cut_off(b"x" + data)
        assert all(_cut_off(b"x" + data[:size]) for size in range(1, len(data)))
    assert not _cut_off(b"")
    assert not _cut_off(b"\x9f\x99")


def test_a_model_whose_weights_are_not_finite_answers_nothing(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header, path = read_gguf(tiny_gguf), tmp_path / "damaged.gguf"
    data = bytearray(tiny_gguf.read_bytes())
    at = header.data_offset + header.offsets["blk.0.ffn_up.weight"]
    data[at : at + 2] = struct.pack("<e", float("nan"))
    path.write_bytes(data)
    with pytest.raises(EngineFailed, match="not finite"):
        Chat(path)
    require, tried = Engine.require_numbers, []

    def counted(engine: Engine) -> None:
        tried.append(engine)
        require(engine)

    monkeypatch.setattr(Engine, "require_numbers", counted)
    with running([path], tmp_path) as made:
        for _ in range(2):
            status, answer = made.chat("Go")
            assert status == 503
            assert "not finite" in answer["error"]["message"]
        assert made.ask("GET", "/health")[0] == 200
    assert len(tried) == 1, "it is the same file still"
