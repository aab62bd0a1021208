"""What real clients send: reasoning, conversations of every order, scored prompts, responses, Ollama's words."""

from __future__ import annotations

import http.client
import json
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata
from serve_support import Running, running

from stillroom.core.strict_json import read_strict
from stillroom.serving import tools
from stillroom.serving.ollama import OllamaChat, OllamaGenerate
from stillroom.serving.preparing_child import read_body
from stillroom.serving.problems import explain
from stillroom.serving.requests import ChatRequest, CompletionRequest, Message
from stillroom.serving.responses import ResponsesRequest
from stillroom.serving.scoring import Offsets
from stillroom.serving.speech import PAIRS, Reasoning

THINKING = (
    "{%- for message in messages %}{{- message.role + '\n' }}"
    "{%- if message.reasoning_content %}{{- '<think>' + message.reasoning_content + '</think>' }}{%- endif %}"
    "{{- message.content + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'assistant\n' }}"
    "{%- if enable_thinking is not defined or enable_thinking %}{{- '<think>\n' }}{%- endif %}{%- endif %}"
)
STRICT = (
    "{%- for message in messages %}"
    "{%- if message.role == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}"
    "{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif %}"
    "{{- message.role + '\n' + message.content | trim + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'assistant\n' }}{%- endif %}"
)


def with_template(gguf: Path, target: Path, template: str) -> Path:
    """The same model with another chat template."""
    reader = GGUFReader(gguf)
    field = reader.get_field("general.architecture")
    assert field is not None
    writer = GGUFWriter(target, field.contents())
    new = {"tokenizer.chat_template": MetadataDetails(GGUFValueType.STRING, template)}
    copy_with_new_metadata(reader, writer, new, ["tokenizer.chat_template"])
    return target


@pytest.fixture(scope="module")
def thinker(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("thinker")
    models = [
        with_template(tiny_gguf, folder / f"{name}.gguf", text)
        for name, text in (("thinks", THINKING), ("strict", STRICT))
    ]
    with running(models, folder) as made:
        yield made


def test_reasoning_is_told_apart_however_the_text_comes() -> None:
    draw = random.Random(3)
    for pair in PAIRS:
        opening, closing = pair
        cases = [
            (f"{opening}\nWhy?\n\nSo.\n{closing}\n\nYes <b>.", False, "Why?\n\nSo.", "Yes <b>."),
            (f"Why? < {closing[:3]}\n{closing}Yes", True, f"Why? < {closing[:3]}", "Yes"),
            (f"  {opening}a", False, "a", ""),
            ("No thoughts.", False, "", "No thoughts."),
            (opening[:3], False, "", opening[:3]),
            ("all of it\n\n", True, "all of it\n\n", ""),
            (f"{closing}x", True, "", "x"),
        ]
        for text, opened, reasoning, content in cases:
            for _ in range(20):
                splitter = Reasoning(pair, opened)
                cuts = sorted(draw.randint(0, len(text)) for _ in range(5))
                pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
                got = [splitter.add(piece, end=number == len(pieces) - 1) for number, piece in enumerate(pieces)]
                assert "".join(each[0] for each in got) == reasoning
                assert "".join(each[1] for each in got) == content
    assert Reasoning(None, False).add("<think>") == ("", "<think>")


def test_reasoning_comes_alike_streamed_or_not_and_can_be_switched_off(thinker: Running) -> None:
    body = {"model": "thinks", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "temperature": 0}
    _, whole, _ = thinker.ask("POST", "/v1/chat/completions", body)
    message = whole["choices"][0]["message"]
    assert message["reasoning_content"] == message["reasoning"]
    assert message["reasoning_content"]
    assert message["content"] == ""
    events = list(thinker.stream("/v1/chat/completions", body))
    deltas = [choice["delta"] for event in events[:-1] for choice in event["choices"]]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message["reasoning_content"]
    offs: list[dict[str, Any]] = [{"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}]
    for off in offs:
        _, whole, _ = thinker.ask("POST", "/v1/chat/completions", {**body, **off})
        assert "reasoning_content" not in whole["choices"][0]["message"]
        assert whole["choices"][0]["message"]["content"]
    # Under a schema there is no room for thoughts.
    _, whole, _ = thinker.ask("POST", "/v1/chat/completions", {**body, "guided_choice": ["a", "b"]})
    assert whole["choices"][0]["message"]["content"] in ("a", "b")


def test_reasoning_is_kept_in_a_session_and_goes_back(thinker: Running) -> None:
    session = thinker.ask("POST", "/v1/sessions", {"model": "thinks"})[1]["id"]
    body = {"model": "thinks", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "session": session}
    _, whole, _ = thinker.ask("POST", "/v1/chat/completions", body)
    kept = thinker.ask("GET", f"/v1/sessions/{session}")[1]["messages"][-1]
    assert kept["reasoning_content"] == whole["choices"][0]["message"]["reasoning_content"]
    assert thinker.ask("POST", "/v1/chat/completions", body)[0] == 200


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
USER, ANSWER = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
RESULT = {"role": "tool", "content": "r", "tool_call_id": "1"}
TALKS: list[list[dict[str, Any]]] = [
    [USER, {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]}, RESULT, RESULT],
    [USER, {"role": "assistant", "tool_calls": [CALL]}, RESULT, USER],
    [USER, USER],
    [USER, ANSWER, ANSWER, USER],
    [{"role": "system", "content": "s"}, USER, {"role": "system", "content": "t"}, USER],
    [{"role": "system", "content": "s"}, {"role": "developer", "content": "d"}, USER],
    [{"role": "system", "content": "s"}, USER],
]


@pytest.mark.parametrize("model", ["strict", "thinks"])
@pytest.mark.parametrize("messages", TALKS)
def test_a_template_that_demands_turns_gets_them(thinker: Running, model: str, messages: list[dict[str, Any]]) -> None:
    body = {"model": model, "messages": messages, "max_tokens": 2, "reasoning_effort": "none"}
    status, answer, _ = thinker.ask("POST", "/v1/chat/completions", body)
    assert status == 200, answer


def test_nothing_is_lost_where_turns_are_joined() -> None:
    draw = random.Random(5)
    for _ in range(100):
        talk = [{"role": draw.choice(["system", "user", "assistant"]), "content": f"<{number}>"} for number in range(8)]
        joined = tools.alternating(talk)
        assert "".join(each["content"].replace("\n\n", "") for each in joined) == "".join(
            each["content"] for each in talk
        )
        assert all(one["role"] != other["role"] for one, other in pairwise(joined))
        assert all(each["role"] != "system" for each in joined[1:])
        assert all(each["role"] != "system" for each in tools.without_system(joined))


def test_null_says_the_same_as_nothing(server: Running) -> None:
    message = {"role": "user", "content": "Go", "name": None, "tool_calls": None, "reasoning_content": None}
    body = dict.fromkeys(
        ("temperature", "stop", "tools", "tool_choice", "stream", "response_format", "n", "seed", "logprobs")
    )
    assert server.ask("POST", "/v1/chat/completions", {**body, "messages": [message], "max_tokens": 2})[0] == 200
    assert Message.model_validate(message).content == "Go"


def test_prompts_are_scored_as_they_would_be_written(server: Running) -> None:
    body = {"prompt": "Hello there", "max_tokens": 12, "temperature": 0, "logprobs": 2, "logit_bias": {"2": -100}}
    _, written, _ = server.ask("POST", "/v1/completions", body)
    told = written["choices"][0]["logprobs"]
    whole = "Hello there" + written["choices"][0]["text"]
    _, scored, _ = server.ask(
        "POST", "/v1/completions", {"prompt": whole, "max_tokens": 0, "echo": True, "logprobs": 2}
    )
    assert "choices" in scored, scored
    choice = scored["choices"][0]
    assert choice["text"] == whole
    assert scored["usage"]["completion_tokens"] == 0
    found = choice["logprobs"]
    lengths = {len(found[key]) for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
    assert lengths == {scored["usage"]["prompt_tokens"]}
    assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
    if found["tokens"][-len(told["tokens"]) :] == told["tokens"]:
        expected = pytest.approx(told["token_logprobs"], abs=1e-2)
        assert found["token_logprobs"][-len(told["tokens"]) :] == expected
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        assert token.startswith("bytes:") or whole[offset:].startswith(token)
    assert told["text_offset"][0] == 0


def test_what_harnesses_send_is_scored(server: Running) -> None:
    ids = [[5, 6, 7, 8], [9, 10, 11]]
    body = {"prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": 1, "seed": 1234, "echo": True}
    status, answer, _ = server.ask("POST", "/v1/completions", body)
    assert status == 200, answer
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    for choice, prompt in zip(answer["choices"], ids, strict=True):
        found = choice["logprobs"]
        assert len(found["token_logprobs"]) in (len(prompt), len(prompt) + 1)
        columns = (found[key][1 : len(prompt)] for key in ("tokens", "token_logprobs", "top_logprobs"))
        for token, logprob, top in zip(*columns, strict=True):
            best = max(top, key=top.__getitem__)
            assert logprob <= top[best] + 1e-6
            assert (token == best) == (logprob == top[best])
    # Tokens that end a text are scored too.
    end = {"prompt": [5, 2, 6, 2], "max_tokens": 0, "logprobs": 1, "echo": True}
    status, answer, _ = server.ask("POST", "/v1/completions", end)
    assert status == 200, answer
    assert all(value < 0 for value in answer["choices"][0]["logprobs"]["token_logprobs"][1:])
    assert server.ask("POST", "/v1/completions", {"prompt": ["a", "b"], "max_tokens": 2})[1]["choices"][1]["index"] == 1
    assert server.ask("POST", "/v1/completions", {"prompt": "a", "max_tokens": 0})[1]["choices"][0]["text"] == ""
    assert server.ask("POST", "/v1/completions", {"prompt": {}})[1]["error"]["message"].startswith("prompt: a text")
    assert server.ask("POST", "/v1/completions", {"prompt": "a " * 900, "max_tokens": 0, "echo": True})[0] == 400


def test_offsets_count_characters_that_tokens_share() -> None:
    entries = [{"bytes": list(part), "token": "", "logprob": -1.0} for part in (b"a", b"\xf0\x9f", b"\x98\x80b", b"c")]
    found = Offsets().old(entries, 1)
    assert found["text_offset"] == [0, 1, 1, 3]
    assert found["tokens"] == ["a", "bytes:\\xf0\\x9f", "bytes:\\x98\\x80\\x62", "c"]


FLAT = {
    "type": "function",
    "name": "clock",
    "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
}


def named_events(server: Running, body: dict[str, Any]) -> list[dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/v1/responses", json.dumps({**body, "stream": True}))
    text = connection.getresponse().read().decode()
    connection.close()
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data[6:]))
        assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def test_responses_of_text_and_of_calls(server: Running) -> None:
    body: dict[str, Any] = {"input": "Hi", "max_output_tokens": 6, "temperature": 0.0, "instructions": "Be brief."}
    status, answer, _ = server.ask("POST", "/v1/responses", body)
    assert status == 200, answer
    text = answer["output"][0]["content"][0]["text"]
    events = named_events(server, body)
    assert "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta") == text
    assert events[0]["type"] == "response.created"
    assert events[-1]["type"] in ("response.completed", "response.incomplete")
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == text
    called = {"input": "Hi", "tools": [FLAT], "tool_choice": {"type": "function", "name": "clock"}}
    (item,) = server.ask("POST", "/v1/responses", called)[1]["output"]
    assert (item["type"], item["name"], item["arguments"]) == ("function_call", "clock", "{}")
    done = [event for event in named_events(server, called) if event["type"] == "response.function_call_arguments.done"]
    assert [event["arguments"] for event in done] == ["{}"]
    onward = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {key: item[key] for key in ("type", "call_id", "name", "arguments")},
        {"type": "function_call_output", "call_id": item["call_id"], "output": "noon"},
    ]
    assert server.ask("POST", "/v1/responses", {"input": onward, "tools": [FLAT], "max_output_tokens": 5})[0] == 200
    form = {"format": {"type": "json_schema", "name": "x", "schema": {"enum": ["Ulm"]}}}
    answer = server.ask("POST", "/v1/responses", {"input": "Hi", "text": form})[1]
    assert answer["output"][0]["content"][0]["text"] == '"Ulm"'
    answer = server.ask("POST", "/v1/responses", {"input": "x", "previous_response_id": "y"})[1]
    assert "previous_response_id" in answer["error"]["message"]


def lines(server: Running, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", path, json.dumps(body))
    text = connection.getresponse().read().decode()
    connection.close()
    return [json.loads(line) for line in text.splitlines()]


def test_clients_of_ollama_find_us(server: Running) -> None:
    (model,) = server.ask("GET", "/api/tags")[1]["models"]
    name = f"{model['name']}:latest"
    options = {"num_predict": 6, "temperature": 0, "num_ctx": 4096}
    body: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": "Hi"}], "options": options}
    whole = server.ask("POST", "/api/chat", {**body, "stream": False})[1]
    assert whole["done"]
    found = lines(server, "/api/chat", body)
    assert [line["done"] for line in found] == [False] * (len(found) - 1) + [True]
    assert "".join(line["message"]["content"] for line in found) == whole["message"]["content"]
    generated = server.ask(
        "POST", "/api/generate", {"model": name, "prompt": "Hi", "options": options, "stream": False}
    )[1]
    assert generated["response"] == whole["message"]["content"]
    raw = lines(server, "/api/generate", {"model": name, "prompt": "Hi", "raw": True, "options": options})
    assert raw[-1]["eval_count"] <= 6
    city = {"enum": ["Ulm"]}
    held = server.ask(
        "POST", "/api/chat", {"model": name, "messages": body["messages"], "format": city, "stream": False}
    )[1]
    assert json.loads(held["message"]["content"]) == "Ulm"
    assert server.ask("POST", "/api/chat", {**body, "model": "nobody"})[0] == 404
    error = server.ask("POST", "/api/chat", {**body, "format": {"not": {}}})
    assert error[0] == 400


def test_what_a_model_wrote_is_labelled(server: Running) -> None:
    assert server.chat("Go")[1]["stillroom"] == {"generated": True}
    _, answer, _ = server.ask("POST", "/v1/completions", {"prompt": "Go", "max_tokens": 1})
    assert answer["stillroom"] == {"generated": True}
    body = {"messages": [{"role": "user", "content": "Go"}], "max_tokens": 2}
    events = list(server.stream("/v1/chat/completions", body))
    assert all(event["stillroom"]["generated"] for event in events[:-1])


_BODIES: dict[str, dict[str, Any]] = {
    "ResponsesRequest": {"input": "Go"},
    "OllamaChat": {"model": "m", "messages": [{"role": "user", "content": "Go"}]},
    "OllamaGenerate": {"model": "m", "prompt": "Go"},
}


@pytest.mark.parametrize("kind", _BODIES)
def test_keys_of_completions_count_in_other_apis_too(kind: str) -> None:
    def read(**more: Any) -> Any:
        made = read_body(kind, json.dumps({**_BODIES[kind], **more}).encode())
        assert isinstance(made, ResponsesRequest | OllamaChat | OllamaGenerate)
        return made.chat()

    for key, value in (
        ("response_format", {"type": "json_object"}), ("guided_json", {}), ("guided_choice", ["a"]), ("grammar", "x"),
        ("json_schema", {}), ("structured_outputs", {"json": {}}), ("guided_regex", "a"), ("guided_grammar", "x"),
    ):  # fmt: skip
        assert read(**{key: value}).form().key.startswith(key)
    assert read(stop=["x"], top_k=-1, n_predict=4).sampling() == {"stop": ["x"], "top_k": 0}
    assert read(n_predict=4).max_tokens == 4
    assert read(stop_sequences=["x"], random_seed=3, repeat_last_n=9).sampling() == {
        "stop": ["x"], "seed": 3, "repeat_last_n": 9,
    }  # fmt: skip
    assert read(max_new_tokens=4).max_tokens == 4
    for key, value in (("min_tokens", 2), ("ignore_eos", True), ("min_length", 2), ("lora", [{"id": 0}])):
        with pytest.raises(ValueError, match=key):
            read(**{key: value})
    assert read(chat_template_kwargs={"a": 1}, functions=[], session=None).chat_template_kwargs == {"a": 1}
    for key, value in (("functions", [{"name": "f"}]), ("session", "0" * 32), ("n", 2), ("temperature", True)):
        with pytest.raises(ValueError, match=key):
            read(**{key: value})
    form = {"text": {"format": {"type": "json_object"}}} if kind == "ResponsesRequest" else {"format": "json"}
    with pytest.raises(ValueError, match="choose one"):
        read(**form, grammar="x")


def test_options_of_ollama_are_numbers_and_no_forms() -> None:
    chat = {"model": "m", "messages": [{"role": "user", "content": "Go"}]}
    for options, named in (
        ({"temperature": 10**400}, "temperature"), ({"temperature": True}, "temperature"), ({"grammar": "x"}, "grammar"),
        ({"json_schema": {}}, "json_schema"), ({"mirostat": 1}, "mirostat"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=named):
            OllamaChat.model_validate({**chat, "options": options}).chat()
    assert OllamaChat.model_validate({**chat, "options": {"temperature": 1}}).chat().temperature == 1.0
    with pytest.raises(ValueError, match="format: a schema"):
        OllamaChat.model_validate({**chat, "format": "xml"}).chat()
    for raw in (True, False):
        with pytest.raises(ValueError, match="ask /api/chat"):
            OllamaGenerate.model_validate({"model": "m", "prompt": "x", "raw": raw, "tools": [{"type": "function"}]})
    assert OllamaChat.model_validate({**chat, "options": {"repeat_last_n": 0}}).chat().repeat_last_n == 0


def test_what_is_wrong_is_named_whatever_reads_it() -> None:
    assert explain(ValueError("keep_alive: leave it out"))[::2] == (400, "keep_alive: leave it out")
    with pytest.raises(ValueError, match="larger") as found:
        read_strict(b"x" * 9, limit=4)
    assert "not JSON" in explain(found.value)[2]
    for value in (float("inf"), "\ud800"):
        body = {"messages": [{"role": "user", "content": "Go"}], "chat_template_kwargs": {"a": value}}
        with pytest.raises(ValueError, match=r"chat_template_kwargs|half a character"):
            ChatRequest.model_validate(body)
    with pytest.raises(ValueError, match="tools"):
        CompletionRequest.model_validate({"prompt": "x", "tools": [{}]})


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("chat/completions", {"web_search_options": {}}),
        ("chat/completions", {"modalities": ["text", "audio"]}),
        ("chat/completions", {"continue_final_message": True}),
        ("chat/completions", {"add_generation_prompt": False}),
        ("chat/completions", {"mirostat": 2}),
        ("chat/completions", {"typical_p": 0.5}),
        ("chat/completions", {"stop_token_ids": [5]}),
        ("chat/completions", {"use_beam_search": True}),
        ("completions", {"prompt_logprobs": 0}),
        ("chat/completions", {"prompt_logprobs": 0}),
        ("chat/completions", {"thinking_token_budget": 0}),
        ("chat/completions", {"top_logprobs": 2}),
        ("chat/completions", {"reasoning_format": "none"}),
        ("chat/completions", {"samplers": ["top_k"]}),
        ("chat/completions", {"n": True}),
        ("completions", {"best_of": 2}),
        ("completions", {"best_of": True}),
        ("completions", {"num_beams": 4}),
        ("responses", {"include": ["message.output_text.logprobs"]}),
        ("responses", {"top_logprobs": 2}),
    ],
)
def test_what_would_be_ignored_against_its_meaning_is_refused_by_name(server: Running, path: str, more: Any) -> None:
    said = {"chat/completions": {"messages": [{"role": "user", "content": "Go"}]}, "completions": {"prompt": "Go"}}
    status, answer, _ = server.ask("POST", f"/v1/{path}", {**said.get(path, {"input": "Go"}), **more})
    assert status == 400
    assert next(iter(more)) in answer["error"]["message"] or "top_logprobs" in answer["error"]["message"]
    assert "Value error" not in answer["error"]["message"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"guided_choice": []}, "guided_choice: it is empty"),
        ({"guided_regex": ""}, "guided_regex: it is empty"),
        ({"guided_grammar": ""}, "guided_grammar: it is empty"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice: it is empty"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex: it is empty"),
        ({"logit_bias": {"5": 1, "99999": 5}}, "logit_bias: the vocabulary has no token 99999"),
    ],
)
def test_forms_that_are_empty_and_ids_of_no_token_are_refused_by_name(server: Running, more: Any, words: str) -> None:
    status, answer = server.chat("Go", **more)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert words in answer["error"]["message"]
    status, answer, _ = server.ask("POST", "/v1/completions", {"prompt": "Go", "max_tokens": 2, **more})
    assert status == 400
    assert words in answer["error"]["message"]
    last = next(iter(server.service.pool.models.values())).vocabulary() - 1
    status, answer = server.chat("Go", max_tokens=2, grammar="", logit_bias={"5": 1, f"{last}": -1})
    assert status == 200, answer


def test_an_item_that_is_not_taken_is_named(server: Running) -> None:
    items = [{"role": "user", "content": "Go"}, {"type": "web_search_call", "id": "x"}]
    status, answer, _ = server.ask("POST", "/v1/responses", {"input": items})
    assert status == 400
    assert answer["error"]["message"].startswith("input.1: an item of the type 'web_search_call' is not taken here")


def test_values_that_change_nothing_are_no_reason_to_refuse(server: Running) -> None:
    nothing = {
        "typical_p": 1.0, "mirostat": 0, "modalities": ["text"], "add_generation_prompt": True, "stop_token_ids": [],
        "top_n_sigma": -1, "skip_special_tokens": True, "use_beam_search": False, "reasoning_format": "auto", "top_k": -1,
        "service_tier": "auto", "dry_multiplier": 0.0, "xtc_probability": 0, "prompt_logprobs": None, "user": "me",
        "store": False, "metadata": {},
    }  # fmt: skip
    assert server.chat("Go", max_tokens=2, **nothing)[0] == 200


def test_other_names_of_the_same_mean_the_same(server: Running) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
    ways = ({"max_tokens": 9, "repeat_penalty": 1.9}, {"n_predict": 9, "repetition_penalty": 1.9})
    plain, other = (server.ask("POST", "/v1/chat/completions", {**body, **way})[1]["choices"] for way in ways)
    assert other == plain
    call = {"id": "1", "type": "function", "function": {"name": "w", "arguments": {"c": "ä"}}}
    message = Message.model_validate({"role": "assistant", "content": None, "tool_calls": [call]})
    assert message.calls()[0].arguments == '{"c": "ä"}'


@pytest.mark.parametrize(
    "more",
    [
        {"enable_thinking": False},
        {"thinking": {"type": "disabled"}},
        {"reasoning": {"effort": "none"}},
        {"reasoning": {"enabled": False}},
    ],
)
def test_reasoning_is_switched_off_in_every_servers_words(thinker: Running, more: Any) -> None:
    body = {"model": "thinks", "messages": [{"role": "user", "content": "Go"}], "max_tokens": 4, "seed": 1}
    told = [thinker.ask("POST", "/v1/chat/completions", {**body, **each})[1] for each in ({}, more)]
    thought = ["reasoning_content" in each["choices"][0]["message"] for each in told]
    assert thought == [True, False]


def test_a_picture_is_refused_in_words_that_say_what_is_read(server: Running) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:"}}
    body = {"messages": [{"role": "user", "content": [part]}]}
    status, answer, _ = server.ask("POST", "/v1/chat/completions", body)
    assert status == 400
    assert "parts of the type text" in answer["error"]["message"]


def test_ollamas_clients_load_look_and_are_refused_by_name(server: Running) -> None:
    name = server.ask("GET", "/api/tags")[1]["models"][0]["name"]
    for path, asked in (("generate", {}), ("generate", {"prompt": ""}), ("chat", {"messages": []})):
        status, answer, _ = server.ask("POST", f"/api/{path}", {"model": name, **asked})
        assert (status, answer["done_reason"]) == (200, "load")
    shown = server.ask("POST", "/api/show", {"model": f"{name}:latest"})[1]
    family = shown["model_info"]["general.architecture"]
    assert shown["model_info"][f"{family}.context_length"] > 0
    assert "tools" in shown["capabilities"]
    assert server.ask("POST", "/api/show", {"model": "nobody"})[0] == 404
    talk = {"messages": [{"role": "user", "content": "x"}]}
    refused = [
        ("generate", {"prompt": "x", "template": "{{ .Prompt }}"}), ("generate", {"prompt": "x", "context": [1]}),
        ("generate", {"prompt": "x", "raw": True, "system": "y"}), ("chat", {**talk, "logprobs": True}),
        ("chat", {**talk, "options": {"mirostat": 2}}), ("generate", {"prompt": "", "keep_alive": 0}),
    ]  # fmt: skip
    for path, more in refused:
        status, answer, _ = server.ask("POST", f"/api/{path}", {"model": name, "stream": False, **more})
        assert status == 400, more
        assert any(
            key in answer["error"]["message"]
            for key in ("template", "context", "raw", "logprobs", "mirostat", "keep_alive")
        )


def test_thoughts_of_a_conversation_stay_with_what_they_were_thought_for() -> None:
    def thought(text: str) -> dict[str, Any]:
        return {"type": "reasoning", "summary": [{"type": "summary_text", "text": text}]}

    call = {"type": "function_call", "call_id": "c", "name": "clock", "arguments": "{}"}
    asked = ResponsesRequest.model_validate(
        {
            "input": [
                {"role": "user", "content": "Time?"}, thought("one"), thought("two"), call,
                {"type": "function_call_output", "call_id": "c", "output": "noon"}, thought("about noon"),
                {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Noon."},
            ]
        }
    ).chat()  # fmt: skip
    found = [(message.role, getattr(message, "reasoning_content", None)) for message in asked.messages]
    assert found == [
        ("user", None), ("assistant", "one\ntwo"), ("tool", None), ("user", None), ("assistant", None)
    ]  # fmt: skip
