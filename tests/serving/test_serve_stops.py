"""Stop texts of answers that may be calls of tools: they end a text, and never cut a call."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serve_support import Running

from stillroom.serving.stops import Stops

TOOL = {
    "type": "function",
    "function": {
        "name": "clock",
        "parameters": {"type": "object", "properties": {"zone": {"enum": ["east"]}}, "required": ["zone"]},
    },
}


def spoken(server: Running, body: dict[str, Any]) -> tuple[str, str, int]:
    """Text, reason of the end and tokens of a streamed answer."""
    events = list(server.stream("/v1/chat/completions", {**body, "stream_options": {"include_usage": True}}))
    assert events[-1] == {"done": True}, events
    choices = [choice for event in events for choice in event.get("choices", ())]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    usage = next(event["usage"] for event in events if event.get("usage"))
    return text, choices[-1]["finish_reason"], usage["completion_tokens"]


@pytest.mark.parametrize("logprobs", [False, True])
def test_a_stop_ends_a_text_beside_tools(server: Running, logprobs: bool) -> None:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Go"}],
        "tools": [TOOL],
        "temperature": 0,
        "max_tokens": 24,
    }
    body |= {"logprobs": True} if logprobs else {}
    _, free, _ = server.ask("POST", "/v1/chat/completions", body)
    text = free["choices"][0]["message"]["content"]
    assert len(text) > 6
    stop = text[4:6]
    expected = text[: text.index(stop)]
    status, answer, _ = server.ask("POST", "/v1/chat/completions", {**body, "stop": ["\x00never", stop]})
    assert status == 200, answer
    assert answer["choices"][0]["message"]["content"] == expected
    assert answer["choices"][0]["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["prompt_tokens"] == free["usage"]["prompt_tokens"]
    assert 0 < usage["completion_tokens"] <= free["usage"]["completion_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    if logprobs:
        entries = answer["choices"][0]["logprobs"]["content"]
        told = b"".join(bytes(entry["bytes"]) for entry in entries)
        assert expected.encode() + stop.encode() in told
        assert len(told) - len(entries[-1]["bytes"]) < len((expected + stop).encode())
    assert spoken(server, {**body, "stop": stop}) == (expected, "stop", usage["completion_tokens"])


def test_a_stop_cuts_no_call(server: Running) -> None:
    body = {"messages": [{"role": "user", "content": "Go"}], "tools": [TOOL], "tool_choice": "required"}
    status, answer, _ = server.ask("POST", "/v1/chat/completions", {**body, "stop": ["clock", "<"], "max_tokens": 200})
    assert status == 200, answer
    calls = answer["choices"][0]["message"]["tool_calls"]
    assert json.loads(calls[0]["function"]["arguments"]) == {"zone": "east"}


@given(st.lists(st.text("ab<c", max_size=4), max_size=8), st.lists(st.text("ab<c", min_size=1, max_size=3), min_size=1))
def test_text_in_pieces_ends_where_the_whole_would(pieces: list[str], texts: list[str]) -> None:
    stops, said = Stops(texts), ""
    for number, piece in enumerate(pieces):
        finish = "stop" if number == len(pieces) - 1 else None
        said += stops.turn({"choices": [{"text": piece, "finish_reason": finish}]})["choices"][0]["text"]
        if stops.found:
            break
    whole = "".join(pieces)
    ends = [whole.find(text) for text in texts if text in whole]
    if whole.startswith("<") or not ends:
        assert said == whole
        assert not stops.found
    else:
        assert stops.found
        assert any(whole.startswith(said + text) for text in texts)
        assert not any(text in said for text in texts)
