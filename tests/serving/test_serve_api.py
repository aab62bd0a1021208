"""The OpenAI API of a server: answers, streams, forms, limits, and what is refused."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from serve_support import Running, running

from stillroom.core.errors import UsageError
from stillroom.serving.app import Limits
from stillroom.serving.guard import _name, is_loopback, require_key

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "maximum": 9}},
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}


def test_a_chat_is_answered_with_usage(server: Running) -> None:
    status, answer = server.chat("Hello")
    assert status == 200
    choice = answer["choices"][0]
    assert choice["message"]["role"] == "assistant"
    assert answer["usage"]["completion_tokens"] <= 8
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]
    assert answer["model"] == server.ask("GET", "/v1/models")[1]["data"][0]["id"]


def test_a_stream_says_the_same_as_one_answer(server: Running) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}
    events = list(server.stream("/v1/chat/completions", {**body, "stream_options": {"include_usage": True}}))
    assert events[-1] == {"done": True}
    text = "".join(choice["delta"].get("content") or "" for event in events[:-1] for choice in event["choices"])
    _, answer, _ = server.ask("POST", "/v1/chat/completions", body)
    assert text == answer["choices"][0]["message"]["content"]
    assert events[-2]["usage"]["completion_tokens"] == answer["usage"]["completion_tokens"]
    without = list(server.stream("/v1/chat/completions", body))
    assert all("usage" not in event or event["usage"] is None for event in without)


def test_conversations_that_begin_alike_keep_a_place_each(server: Running) -> None:
    def chat(messages: list[dict[str, str]]) -> Any:
        return server.ask("POST", "/v1/chat/completions", {"messages": messages, "max_tokens": 4})[1]

    system = {"role": "system", "content": "You answer in few words. " * 4}
    talks = [[system, {"role": "user", "content": word * 25}] for word in ("bread ", "stone ")]
    read = []
    for talk in talks:
        first = chat(talk)
        read.append(first["usage"]["prompt_tokens"])
        answer = first["choices"][0]["message"]["content"]
        talk += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And then?"}]
    for talk, before in zip(talks, read, strict=True):
        assert chat(talk)["usage"]["prompt_tokens_details"]["cached_tokens"] >= 0.9 * before


def test_a_prompt_that_goes_on_finds_its_place(server: Running) -> None:
    def complete(prompt: str) -> Any:
        return server.ask("POST", "/v1/completions", {"prompt": prompt, "max_tokens": 1})[1]["usage"]

    texts = [word * 30 for word in ("wind ", "snow ")]
    read = [complete(text)["prompt_tokens"] for text in texts]
    # The latest first: the place that was left alone longest would be the other one's.
    for text, before in reversed(list(zip(texts, read, strict=True))):
        assert complete(text + "falls")["prompt_tokens_details"]["cached_tokens"] >= 0.9 * before


def test_the_same_seed_says_the_same(server: Running) -> None:
    texts = {server.chat("Go", seed=5, temperature=1.5)[1]["choices"][0]["message"]["content"] for _ in range(3)}
    assert len(texts) == 1


def test_logprobs_of_both_kinds(server: Running) -> None:
    _, answer = server.chat("Go", logprobs=True, top_logprobs=3, max_tokens=3, temperature=0)
    entries = answer["choices"][0]["logprobs"]["content"]
    assert entries
    assert all(len(entry["top_logprobs"]) == 3 and entry["logprob"] <= 0 for entry in entries)
    body = {"prompt": "Go", "max_tokens": 3, "logprobs": 2, "temperature": 0}
    _, answer, _ = server.ask("POST", "/v1/completions", body)
    old = answer["choices"][0]["logprobs"]
    assert len(old["tokens"]) == len(old["token_logprobs"]) == len(old["top_logprobs"])


def test_a_stop_ends_the_answer(server: Running) -> None:
    _, answer, _ = server.ask("POST", "/v1/completions", {"prompt": "Go", "max_tokens": 40, "temperature": 0})
    text = answer["choices"][0]["text"]
    # What is no whole character in the model's bytes cannot be asked for.
    stop = next((pair for pair in map("".join, itertools.pairwise(text[3:])) if "\ufffd" not in pair), None)
    if stop is None:
        pytest.skip("the tiny model says too little")
    body = {"prompt": "Go", "max_tokens": 40, "temperature": 0, "stop": [stop]}
    _, answer, _ = server.ask("POST", "/v1/completions", body)
    assert answer["choices"][0]["text"] == text[: text.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_an_answer_under_a_schema_is_valid(server: Running) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 77}},
        "required": ["n"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for seed in range(6):
        status, answer = server.chat("Go", response_format=form, max_tokens=60, seed=seed, temperature=1.5)
        assert status == 200
        jsonschema.validate(json.loads(answer["choices"][0]["message"]["content"]), schema)


def test_a_grammar_is_held_and_a_bad_one_refused(server: Running) -> None:
    _, answer = server.chat("Go", grammar='root ::= "yes" | "no"')
    assert answer["choices"][0]["message"]["content"] in ("yes", "no")
    assert server.chat("Go", grammar="root ::= (")[0] == 400


@pytest.mark.parametrize("seed", range(4))
def test_a_required_call_is_a_valid_call(server: Running, seed: int) -> None:
    status, answer = server.chat(
        "Go", tools=[WEATHER, CLOCK], tool_choice="required", max_tokens=400, seed=seed, temperature=1.5
    )
    assert status == 200
    choice = answer["choices"][0]
    if choice["finish_reason"] == "length":
        return
    assert choice["finish_reason"] == "tool_calls"
    for call in choice["message"]["tool_calls"]:
        assert call["function"]["name"] in ("get_weather", "clock")
        arguments = json.loads(call["function"]["arguments"])
        if call["function"]["name"] == "get_weather":
            jsonschema.validate(arguments, WEATHER["function"]["parameters"])  # type: ignore[index]
        else:
            assert arguments == {}


def test_a_named_call_is_that_call_streamed_too(server: Running) -> None:
    choice = {"type": "function", "function": {"name": "clock"}}
    options: dict[str, Any] = {"tools": [WEATHER, CLOCK], "tool_choice": choice, "max_tokens": 80}
    _, answer = server.chat("Go", **options)
    calls = answer["choices"][0]["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["clock"]
    body = {"messages": [{"role": "user", "content": "Go"}], **options}
    events = list(server.stream("/v1/chat/completions", body))
    deltas = [
        call for event in events[:-1] for choice in event["choices"] for call in choice["delta"].get("tool_calls", ())
    ]
    assert [call["function"]["name"] for call in deltas] == ["clock"]
    assert any(choice.get("finish_reason") == "tool_calls" for event in events[:-1] for choice in event["choices"])


def test_only_allowed_tools_are_called(server: Running) -> None:
    def allowed(*names: str, mode: str = "required") -> dict[str, Any]:
        functions = [{"type": "function", "function": {"name": name}} for name in names]
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": functions}}

    options: dict[str, Any] = {"tools": [WEATHER, CLOCK], "max_tokens": 200, "temperature": 1.5}
    for seed in range(3):
        _, answer = server.chat("Go", **options, tool_choice=allowed("clock"), seed=seed)
        choice = answer["choices"][0]
        assert {call["function"]["name"] for call in choice["message"].get("tool_calls", [])} == {"clock"}
    assert server.chat("Go", **{**options, "max_tokens": 4}, tool_choice=allowed("clock", mode="auto"))[0] == 200
    assert server.chat("Go", **options, tool_choice=allowed("clock", "sundial"))[0] == 400
    flat = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "clock"}]}
    tools = [{"type": "function", **tool["function"]} for tool in (WEATHER, CLOCK)]  # type: ignore[dict-item]
    body = {"input": "Go", "tools": tools, "tool_choice": flat, "max_output_tokens": 200}
    _, response, _ = server.ask("POST", "/v1/responses", body)
    assert {item["name"] for item in response["output"] if item["type"] == "function_call"} == {"clock"}


def test_none_calls_nothing_and_results_are_taken(server: Running) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ]
    body = {"messages": messages, "tools": [CLOCK], "tool_choice": "none", "max_tokens": 4}
    status, answer, _ = server.ask("POST", "/v1/chat/completions", body)
    assert status == 200
    assert "tool_calls" not in answer["choices"][0]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"messages": NaN}',
        b"\xff\xfe",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b"[" * 100_000,
        {"messages": []},
        {"messages": "x"},
        {"messages": [{"role": "king", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x"}], "temperature": "warm"},
        {"messages": [{"role": "user", "content": "x"}], "temperature": 1e9},
        {"messages": [{"role": "user", "content": "x"}], "n": 5},
        {"messages": [{"role": "user", "content": "x"}], "max_tokens": 0},
        {"messages": [{"role": "user", "content": "x"}], "tool_choice": "required"},
        {
            "messages": [{"role": "user", "content": "x"}],
            "tools": [{"type": "function", "function": {"name": "a\n\0"}}],
        },
        {"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_schema"}},
        {"messages": [{"role": "user", "content": "x"}], "logit_bias": {"-1": 5}},
        {"messages": [{"role": "user", "content": "x"}], "session": "../../etc"},
    ],
)
def test_what_is_wrong_is_refused_as_the_clients_mistake(server: Running, body: Any) -> None:
    status, answer, _ = server.ask("POST", "/v1/chat/completions", body)
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["message"]
    assert server.chat("Still there?")[0] == 200


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"not": {"type": "string"}},
        {"$ref": "#"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "minItems": 3},
        {"type": "string", "pattern": "(?=x)x"},
        {"$ref": "https://example.org/schema"},
        {"enum": []},
        5,
    ],
)
def test_a_schema_that_cannot_be_held_is_refused(server: Running, schema: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    status, answer = server.chat("Go", response_format=form)
    assert status == 400
    assert answer["error"]["code"] == "unsupported_schema"


def test_an_unknown_model_and_path_are_404(server: Running) -> None:
    assert server.chat("Go", model="nobody")[0] == 404
    assert server.ask("GET", "/v1/nothing")[0] == 404
    assert server.ask("GET", "/v1/chat/completions")[0] == 405
    assert server.ask("GET", "/v1/sessions/" + "0" * 32)[0] == 404


def test_a_prompt_beyond_the_context_is_refused(server: Running) -> None:
    status, answer = server.chat("word " * 2000)
    assert status == 400
    assert answer["error"]["code"] == "context_length_exceeded"


def test_embeddings_of_a_text_model_are_refused(server: Running) -> None:
    status, answer, _ = server.ask("POST", "/v1/embeddings", {"input": "x"})
    assert status == 400
    assert "embeddings" in answer["error"]["message"]


def test_a_client_that_leaves_while_it_asks_is_no_failure(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    head = b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", server.port)) as link:
        link.sendall(head)
        # One that had closed before anybody looked would be no one's: the system no longer says whose it was.
        time.sleep(0.3)
    until = time.monotonic() + 10
    counted = 'path="/v1/sessions",status="499"'
    while counted not in server.ask("GET", "/metrics")[1] and time.monotonic() < until:
        time.sleep(0.02)
    assert counted in server.ask("GET", "/metrics")[1]
    assert not caplog.records


def test_another_host_or_origin_is_refused(server: Running) -> None:
    assert server.ask("GET", "/health", headers={"Host": "evil.example"})[0] == 421
    assert server.ask("GET", "/v1/models", headers={"Origin": "http://evil.example"})[0] == 403
    assert server.ask("GET", "/v1/models", headers={"Sec-Fetch-Site": "cross-site"})[0] == 403
    mine = f"127.0.0.1:{server.port}"
    status, _, headers = server.ask("GET", "/v1/models", headers={"Host": mine, "Origin": f"http://{mine}"})
    assert status == 200
    assert not any(name.startswith("access-control") for name in headers)


@pytest.mark.parametrize(
    "host",
    ["localhost:x@evil.example", "[::1]evil.example", "[::1]@evil.example", "localhost:80:80", "localhost/", "localhost ", "",
     ":80", "localhost:", "evil.example#localhost", "[::1", "127.0.0.1\\@evil.example"],
)  # fmt: skip
def test_a_host_is_a_name_and_perhaps_a_port(host: str) -> None:
    assert _name(host) not in Limits().hosts


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]", "[::1]:8080"])
def test_a_host_that_is_one_is_known(host: str) -> None:
    assert _name(host) in Limits().hosts


def test_a_body_has_one_length(server: Running) -> None:
    """Whatever stands before the server may take the other one, and see two requests where we see one."""
    body = b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    both = f"Content-Length: {len(body)}\r\nTransfer-Encoding: chunked\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as link:
        link.settimeout(10)
        link.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{both}\r\n".encode() + body)
        answer = b""
        while data := link.recv(1 << 16):
            answer += data
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1, "the connection ends there"


def test_a_body_that_is_too_long_is_refused(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as link:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost:{server.port}\r\nContent-Length: 52428800\r\n\r\n"
        link.sendall(head.encode())
        assert b" 413 " in link.recv(4096)


def test_the_page_brings_everything_with_it(server: Running) -> None:
    status, html, headers = server.ask("GET", "/")
    assert status == 200
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "innerHTML" not in html
    assert not [line for line in html.splitlines() if "<link" in line and "data:," not in line]
    assert "<img" not in html
    assert "<script src" not in html


def test_health_and_metrics_say_what_is_in_force(server: Running) -> None:
    server.chat("Go")
    status, health, _ = server.ask("GET", "/health")
    assert status == 200
    confined = health["models"][0]["confined"]
    assert confined["resource limits"] == "active"
    assert health["context_policy"]
    _, text, _ = server.ask("GET", "/metrics")
    assert "stillroom_switch_on 1.0" in text
    assert 'stillroom_requests_total{path="/v1/chat/completions",status="200"}' in text


def test_the_interface_is_described(server: Running) -> None:
    _, described, _ = server.ask("GET", "/openapi.json")
    assert described["openapi"].startswith("3.1")
    names = {part for part in json.dumps(described).split('"') if part.startswith("#/components/schemas/")}
    assert {name.rpartition("/")[2] for name in names} <= set(described["components"]["schemas"])
    assert described["paths"]["/v1/sessions/{number}"].keys() == {"get", "patch", "delete"}
    body = described["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/CompletionRequest"}
    served = {name for name in described["paths"] if "{" not in name and "get" in described["paths"][name]}
    assert {name for name in served if server.ask("GET", name)[0] != 200} == set()


def test_a_worker_that_dies_is_started_again(server: Running) -> None:
    server.chat("Go")
    model = next(iter(server.service.pool.models.values()))
    assert model.engine is not None
    assert model.engine.pid is not None
    os.kill(model.engine.pid, signal.SIGKILL)
    assert server.chat("Go")[0] == 200


def test_a_worker_that_dies_in_the_middle_is_an_error_and_not_silence(server: Running) -> None:
    model = next(iter(server.service.pool.models.values()))
    events = []
    for event in server.stream("/v1/completions", {"prompt": "Go", "max_tokens": 400, "logit_bias": {"2": -100}}):
        events.append(event)
        if len(events) == 3:
            assert model.engine is not None
            assert model.engine.pid is not None
            os.kill(model.engine.pid, signal.SIGKILL)
    if not any("error" in event for event in events):
        assert events[-1] == {"done": True}  # all of it had been said already
    assert server.chat("Go")[0] == 200


def test_a_client_that_goes_frees_its_place(server: Running) -> None:
    model = next(iter(server.service.pool.models.values()))
    body = json.dumps({"prompt": "Go", "max_tokens": 400}).encode()
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", server.port)) as link:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            link.sendall(head.encode() + body)
            time.sleep(0.02)
    until = time.monotonic() + 20
    while model.busy and time.monotonic() < until:
        time.sleep(0.02)
    assert model.busy == 0


def test_a_full_queue_is_429(tiny_gguf: Path, tmp_path: Path) -> None:
    with running([tiny_gguf], tmp_path, parallel=1, queue=1, context=2048) as made:
        made.chat("Go")
        statuses: list[int] = []

        def one() -> None:
            statuses.append(made.chat("Go", max_tokens=900, logit_bias={"2": -100}, temperature=1)[0])

        threads = [threading.Thread(target=one) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200, 429}


def test_keys_are_needed_where_there_are_any(tiny_gguf: Path, tmp_path: Path) -> None:
    key = "k" * 20
    with running([tiny_gguf], tmp_path, limits=Limits(keys=[key])) as made:
        assert made.ask("GET", "/v1/models")[0] == 401
        assert made.ask("GET", "/v1/models", headers={"Authorization": f"Bearer {key}x"})[0] == 401
        assert made.ask("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})[0] == 200
        assert made.ask("GET", "/")[0] == 200
        assert made.ask("POST", "/switch/off")[0] == 401


def test_other_machines_need_a_key() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    with pytest.raises(UsageError, match="no key"):
        require_key("0.0.0.0", [])
    with pytest.raises(UsageError, match="16"):
        require_key("0.0.0.0", ["short"])
    require_key("0.0.0.0", ["k" * 16])


def test_a_slow_body_is_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    with (
        running([tiny_gguf], tmp_path, limits=Limits(body_seconds=0.2)) as made,
        socket.create_connection(("127.0.0.1", made.port)) as link,
    ):
        link.settimeout(20)
        link.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in link.recv(4096)


def test_two_models_within_a_limit_of_memory(tiny_gguf: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny_gguf.read_bytes())
    with running([tiny_gguf, other], tmp_path, memory=1) as made:
        status, answer = made.chat("Go", model="other")
        assert status == 503
        assert answer["error"]["code"] == "no_room"
    with running([tiny_gguf, other], tmp_path, memory=1 << 40, idle=0.5) as made:
        assert made.chat("Go", model="other")[0] == 200
        assert made.chat("Go", model=tiny_gguf.stem)[0] == 200
        made.service.pool.memory = 300 << 20
        model = made.service.pool.models["other"]
        until = time.monotonic() + 20
        while model.engine is not None and time.monotonic() < until:
            time.sleep(0.05)
        assert model.engine is None
        assert made.chat("Go", model="other")[0] == 200


def test_one_context_is_told_and_kept(tiny_gguf: Path, tmp_path: Path) -> None:
    with running([tiny_gguf], tmp_path, context=300, parallel=1) as made:
        told = made.ask("GET", "/v1/models")[1]["data"][0]["context_length"]
        assert told == 512, "llama.cpp's context is a multiple of 256"
        for extra in ({"max_tokens": 1}, {"max_tokens": 0}, {"max_tokens": 0, "echo": True, "logprobs": 1}):
            body = {"prompt": [5] * (told - 1), **extra}
            assert made.ask("POST", "/v1/completions", body)[0] == 200, extra
            status, answer, _ = made.ask("POST", "/v1/completions", {**body, "prompt": [5] * (told + 1)})
            assert status == 400
            assert f"{told + 1} tokens, and the context {told}" in answer["error"]["message"]


@pytest.mark.parametrize("body", [{}, {"max_tokens": 0}, {"echo": True, "logprobs": 1}, {"stream": True}])
def test_an_empty_prompt_is_refused_by_name(server: Running, body: dict[str, Any]) -> None:
    for prompt in ("", ["a", ""]):
        if body.get("stream") and prompt:
            continue
        status, answer, _ = server.ask("POST", "/v1/completions", {"prompt": prompt, "max_tokens": 12, **body})
        assert status == 400, answer
        assert answer["error"]["message"].startswith("prompt: it is empty")


def test_counts_of_several_prompts_are_added_up(tiny_gguf: Path, tmp_path: Path) -> None:
    with running([tiny_gguf], tmp_path, parallel=1) as made:
        texts = ["The river runs " + "word " * 30, "The river runs " + "word " * 40]
        body = {"prompt": [texts[0], texts[0], texts[1]], "max_tokens": 1, "temperature": 0}
        usage = made.ask("POST", "/v1/completions", body)[1]["usage"]
        last = made.ask("POST", "/v1/completions", {**body, "prompt": [texts[1]]})[1]["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] > last["prompt_tokens_details"]["cached_tokens"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
