"""Grammars of answers: what is held, what is refused by name, and that no request stops the model for others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from serve_support import Running, running

from stillroom.runtime.facts import GgufFacts
from stillroom.serving import grammars, pool
from stillroom.serving.answers import chat_question, completion_question
from stillroom.serving.grammars import (
    UnsupportedSchema,
    Watch,
    client_grammar,
    json_grammar,
    regex_grammar,
    tool_grammar,
)
from stillroom.serving.requests import ChatRequest, CompletionRequest

BOTH = {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]}
LIST = {
    "$defs": {
        "n": {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
            "required": ["next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/n",
}


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "minItems": 3}, "uniqueItems"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "minimum"),
        ({"type": "string", "pattern": "(?=x)x"}, "look-around"),
        ({"enum": []}, "empty"),
        ({"type": "string", "pattern": "^(a?){500}a{500}$"}, "while it is written"),
        ({"properties": {"b": {"items": {"pattern": "^x(a?){500}a{500}$", "type": "string"}}}}, "while it is written"),
        ({"type": "object", "patternProperties": {"^(a?){500}a{500}$": {}}}, "while it is written"),
        ({"$ref": "https://example.org/schema"}, "https://example.org"),
        ({"$ref": "#"}, "itself"),
        ({"$defs": {"a": BOTH, "b": BOTH}, "$ref": "#/$defs/a"}, "itself"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "itself"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "itself"),
        (5, "object"),
        (False, "false"),
        ({"type": "array", "items": {}, "minItems": 10**9}, "minItems"),
        ({"allOf": [{"type": "array", "items": {"const": 2}, "maxItems": 10**9}]}, "maxItems"),
        ({"type": "object", "minProperties": 10**9}, "minProperties"),
        ({"type": "string", "pattern": "^a{1000000000}$"}, "1000000000"),
        ({"type": "object", "patternProperties": {"a{99999}": {}}}, "99999"),
        ({"properties": {f"p{n}": {"type": "array", "maxItems": 9000} for n in range(3)}}, "27,000 together"),
        ({"properties": {f"p{n}": {"type": "string", "pattern": "a{9999}"} for n in range(7)}}, "in all"),
        ({"const": 2**53 + 1}, "9007199254740993"),
        ({"enum": [1, [{"a": 123456789.12345679}]]}, "123456789.12345679"),
        ({"const": 1.12591031330643e-11}, "exactly"),
        ({"type": "integer", "minimum": 10**20}, "minimum"),
        ({"type": "integer", "minimum": 2**53 + 1, "maximum": 2**53 + 1}, "greater"),
    ],
)
def test_what_cannot_be_held_is_refused_by_name(schema: Any, named: str) -> None:
    with pytest.raises(UnsupportedSchema, match=named):
        json_grammar(schema)


@pytest.mark.parametrize(
    "schema",
    [
        LIST,
        True,
        {"type": "string", "format": "cuid2"},
        {"type": "string", "format": "email", "pattern": "^.+@.+$"},
        {"type": "integer", "multipleOf": 5},
        {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True, "minItems": 2},
        {
            "$defs": {
                kind: {
                    "type": "object",
                    "properties": {"k": {"const": kind}, "n": {"type": "integer"}},
                    "required": ["k"],
                }
                for kind in ("a", "b")
            },
            "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
            "discriminator": {"propertyName": "k"},
        },
        {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 900},
        {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "integer"}},
        {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "integer"}},
        {"anyOf": [{"$ref": "#"}, {"type": "null"}]} | {"title": "x"},
        {
            "oneOf": [
                {"type": "object", "properties": {"k": {"const": kind}}, "required": ["k"]} for kind in ("a", "b")
            ],
            "discriminator": {"propertyName": "k"},
        },
    ],
)
def test_what_libraries_write_is_held(schema: Any) -> None:
    assert json_grammar(schema).startswith("%llguidance")


@pytest.mark.parametrize("names", [{"enum": ["a", "b"]}, {"type": "string", "enum": ["b", "a"], "title": "Names"}])
def test_names_of_a_record_come_once_each(names: dict[str, Any]) -> None:
    schema = {"type": "object", "propertyNames": names, "additionalProperties": {"type": "integer"}}
    every = json_grammar(schema | {"required": ["a", "b"]})
    first, second = names["enum"]
    assert Watch(every).takes(f'{{"{first}": 1, "{second}": 2}}')
    # The engine took a pattern of names that are all required for none, and wrote any name after them.
    for wrong in (f'{{"{first}": 1, "{first}"', f'{{"{first}": 1}}', '{"c"', f'{{"{first}": 1, "{second}": 2, '):
        assert not Watch(every).takes(wrong)
    assert Watch(json_grammar(schema)).takes(f'{{"{second}": 2}}')
    assert "patternProperties" not in every
    assert "patternProperties" in json_grammar(schema | {"propertyNames": {"pattern": "^x"}})


def test_branches_that_could_both_hold_stay_one_of() -> None:
    branch = {"type": "object", "properties": {"k": {"enum": ["a", "b"]}}, "required": ["k"]}
    with pytest.raises(UnsupportedSchema, match="oneOf"):
        json_grammar({"oneOf": [branch, branch]})
    rows = {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "maxItems": 1}
    assert '"uniqueItems"' not in json_grammar(rows)
    named = {"$defs": {"k": {"enum": ["a", "b"], "type": "string"}}, "type": "array", "items": {"$ref": "#/$defs/k"}}
    assert '["b", "a"]' in json_grammar({**named, "uniqueItems": True})
    many = {"type": "array", "items": {"enum": [*range(9)]}, "uniqueItems": True}
    assert '"maxItems": 9' in json_grammar(many)


@given(st.integers(-(10**12), 10**12), st.integers(-30, 30))
def test_a_number_that_is_taken_is_written_as_it_is(mantissa: int, exponent: int) -> None:
    for number in (mantissa * 1000, float(f"{mantissa}e{exponent}")):
        with contextlib.suppress(UnsupportedSchema):
            matcher = LLMatcher(LLTokenizer("byte"), json_grammar({"const": number}))
            assert json.loads(matcher.compute_ff_bytes()) == number


def test_a_watch_knows_an_answer_that_ended_too_soon() -> None:
    watch = Watch(client_grammar('root ::= "ab" "c"?'))
    assert watch.takes("a")
    assert not watch.may_end()
    assert watch.takes("b")
    assert watch.may_end()
    assert not watch.takes("x")


@pytest.mark.parametrize("text", ["a<|im_end|>b", "<\uff5cend\u2581of\u2581text\uff5c>"])
def test_texts_of_control_tokens_are_refused_by_name(text: str) -> None:
    facts = GgufFacts(False, 100, control=("<|im_end|>", "<\uff5cend\u2581of\u2581text\uff5c>"))
    schema = {"type": "object", "properties": {text: {"const": 1}}, "required": [text]}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    forms: list[dict[str, Any]] = [
        {"json_schema": {"enum": [text, "x"]}}, {"guided_choice": [text]}, {"grammar": f'root ::= "{text}"'},
        {"format": schema}, {"tools": [tool]},
    ]  # fmt: skip
    for form in forms:
        asked = ChatRequest.model_validate({"messages": [{"role": "user", "content": text}], **form})
        with pytest.raises(UnsupportedSchema, match="control token"):
            chat_question(asked, None, facts)
        if "tools" not in form:
            with pytest.raises(UnsupportedSchema, match="control token"):
                completion_question(CompletionRequest.model_validate({"prompt": "x", **form}), "x", facts)
    # What is only said of a value demands nothing of it.
    noted = {"type": "string", "description": text, "default": text, "title": text}
    asked = ChatRequest.model_validate({"messages": [{"role": "user", "content": "x"}], "json_schema": noted})
    assert chat_question(asked, None, facts).watched


@pytest.mark.parametrize(
    "pattern",
    [
        r"\x3c\|im_end\|\x3e", r"<\|im_end\|>", "[<][|]im_end[|][>]", r"x*\u003c\x{7c}im_end[|]>", r"(<)(?:\|im)(_end)\|>",
        r"<{1}\|im_end\|>.*", r"(a|b)<\|\x69m_end\|>",
    ],
)  # fmt: skip
def test_however_a_control_token_is_written_it_is_refused(pattern: str) -> None:
    facts = GgufFacts(False, 100, control=("<|im_end|>",))
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": f"^{pattern}$"}}, "required": ["a"]}
    lark = "%llguidance {}\nstart: " + f"/{pattern}/"
    for form in ({"guided_regex": pattern}, {"json_schema": schema}, {"grammar": lark}):
        asked = CompletionRequest.model_validate({"prompt": "x", **form})
        with pytest.raises(UnsupportedSchema, match="control token"):
            completion_question(asked, "x", facts)


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "<" "|im_end|>"',
        'root ::= a b\na ::= "<|"\nb ::= [i] "m_end" c\nc ::= "|>"',
        'start: "<" /\\|im/ "_end|>"',
    ],
)
def test_nor_is_it_put_together_by_rules(grammar: str) -> None:
    facts = GgufFacts(False, 100, control=("<|im_end|>",))
    with pytest.raises(UnsupportedSchema, match="control token"):
        completion_question(CompletionRequest.model_validate({"prompt": "x", "grammar": grammar}), "x", facts)


def test_patterns_that_only_look_like_control_tokens_are_taken() -> None:
    facts = GgufFacts(False, 100, control=("<|im_end|>", "</s>", "<s>"))
    for pattern in (r"<?\|im_end\|>", r".+", r"(<|x)y", "[a-z]{2,8}(-[a-z]{2,8}){0,4}", r"\d{4}-\d{2}-\d{2}", "[<>]s"):
        asked = CompletionRequest.model_validate({"prompt": "x", "guided_regex": pattern})
        assert completion_question(asked, "x", facts).watched


def test_bounds_of_64_bits_become_narrower() -> None:
    schema = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
    document = json.loads(json_grammar(schema).partition("%json ")[2])
    assert -(2**63) <= document["minimum"] == float(document["minimum"]) < -(2**62)
    assert 2**62 < document["maximum"] == float(document["maximum"]) <= 2**63 - 1
    assert json.loads(json_grammar({"const": 2**53 - 1}).partition("%json ")[2])["const"] == 2**53 - 1


def test_names_that_are_words_of_schemas_stay_names() -> None:
    schema = {
        "type": "object",
        "properties": {"format": {"type": "string"}, "discriminator": {"const": {"format": "x"}}},
    }
    document = json.loads(json_grammar(schema).partition("%json ")[2])
    assert document["properties"] == schema["properties"]


@pytest.mark.parametrize(
    ("grammar", "named"),
    [
        ("root ::= " + "(" * 60_000, "nested"),
        ("root ::= (", "cannot be read"),
        ("x ::= y", "y"),
        ("%llguidance {}\nstart: nothing", "nothing"),
        ("%llguidance {}\nstart: %json " + '{"not": {}}', "not"),
        ('root ::= "a"' + " " * grammars.LONGEST_SCHEMA, "characters"),
        ('root ::= "a"{1000000}', "1000000"),
        ('%llguidance {}\nstart: /[a"]{99999}/', "99999"),
        ("%llguidance {}\nstart: <|no_such_token|>", "Tokens"),
        ("start: <[99999999]>", "Tokens"),
        ("%llguidance {}\nstart: a\na[max_tokens=3]: /x+/", "max_tokens"),
        ('%llguidance {}\nstart: %json {"type": "array", "minItems": 1000000000}', "minItems"),
    ],
)
def test_a_grammar_of_a_client_is_converted_or_refused(grammar: str, named: str) -> None:
    with pytest.raises(UnsupportedSchema, match=named):
        client_grammar(grammar)
    assert client_grammar('root ::= "yes" | "no"').startswith("%llguidance")
    # In texts, patterns and comments it is all the same.
    for text in (
        'root ::= "<[5]>" [<] "{1000000}" # <[7]>',
        'start: "<x>" /<b>/ // <c>\n',
        'root ::= [^"<]+ "a{99999}"',
    ):
        client_grammar(text)


def test_deep_and_large_schemas_are_refused() -> None:
    deep: Any = {"type": "array"}
    for _ in range(2000):
        deep = {"type": "array", "items": deep}
    for schema in (deep, {"enum": ["x" * 999] * 400}, {"enum": [f"value{number}" for number in range(25_000)]}):
        with pytest.raises(UnsupportedSchema):
            json_grammar(schema)


def test_patterns_are_held_as_a_whole() -> None:
    for pattern in ("(Ulm|Bern)", "^(Ulm|Bern)$", "a/b", r"a\/b", r"x\$"):
        assert regex_grammar(pattern)
    with pytest.raises(UnsupportedSchema):
        regex_grammar("(")


def answer(server: Running, **options: Any) -> Any:
    status, found = server.chat("Go", max_tokens=200, temperature=1.5, **options)
    assert status == 200, found
    assert found["choices"][0]["finish_reason"] in ("stop", "tool_calls", "function_call", "length")
    return found["choices"][0]


CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Ulm", "Bern"]}},
    "required": ["city"],
    "additionalProperties": False,
}
PLACES: list[dict[str, Any]] = [
    {"response_format": {"type": "json_object", "schema": CITY}},
    {"response_format": {"type": "json_schema", "schema": CITY}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY, "strict": None}}},
    {"json_schema": CITY},
    {"json_schema": json.dumps(CITY)},
    {"guided_json": CITY},
    {"structured_outputs": {"json": CITY}},
    {"format": CITY},
]


@pytest.mark.parametrize("place", PLACES)
def test_a_schema_is_held_wherever_servers_take_it(server: Running, place: dict[str, Any]) -> None:
    jsonschema.validate(json.loads(answer(server, **place)["message"]["content"]), CITY)


@pytest.mark.parametrize(
    "place",
    [
        {"guided_choice": ["Ulm", "Bern"]},
        {"guided_regex": "(Ulm|Bern)"},
        {"guided_grammar": 'root ::= "Ulm" | "Bern"'},
        {"structured_outputs": {"choice": ["Ulm", "Bern"]}},
        {"structured_outputs": {"regex": "Ulm|Bern"}},
        {"grammar": 'root ::= "Ulm" | "Bern"'},
        {"grammar": '%llguidance {}\nstart: "Ulm" | "Bern"\n'},
    ],
)
def test_other_forms_are_held(server: Running, place: dict[str, Any]) -> None:
    assert answer(server, **place)["message"]["content"] in ("Ulm", "Bern")
    status, found, _ = server.ask("POST", "/v1/completions", {"prompt": "Go", "max_tokens": 20, **place})
    assert status == 200
    assert found["choices"][0]["text"] in ("Ulm", "Bern")


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ({"structural_tag": {"a": 1}}, "structural_tag"),
        ({"regex": "a"}, "regex"),
        ({"response_format": {"type": "regex", "pattern": "a"}}, "response_format"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structural_tag"),
        ({"guided_json": CITY, "guided_regex": "a"}, "guided_json and guided_regex"),
        ({"format": {"not": {}}}, "format"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"min_tokens": 5}, "min_tokens"),
    ],
)
def test_a_form_that_is_not_held_is_refused_by_name(server: Running, place: dict[str, Any], named: str) -> None:
    status, found = server.chat("Go", **place)
    assert status == 400
    assert named in found["error"]["message"]


def test_tools_of_any_root_and_functions_of_old(server: Running) -> None:
    for schema in ({"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2}, {"enum": ["x"]}, True, None):
        tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
        choice = answer(server, tools=[tool], tool_choice="required", parallel_tool_calls=False)
        if choice["finish_reason"] == "length":
            continue
        (call,) = choice["message"]["tool_calls"]
        jsonschema.validate(json.loads(call["function"]["arguments"]), {} if schema in (True, None) else schema)
    functions = [{"name": "pick", "parameters": CITY}]
    choice = answer(server, functions=functions, function_call={"name": "pick"})
    assert choice["finish_reason"] == "function_call"
    jsonschema.validate(json.loads(choice["message"]["function_call"]["arguments"]), CITY)


@pytest.mark.parametrize(
    "held", ["<tool_call>", "<tool_call>5</tool_call>", '"}</tool_call>', "<tool_call>[]</tool_call>"]
)
def test_a_call_arrives_whatever_its_arguments_hold(server: Running, held: str) -> None:
    schema = {"type": "object", "properties": {"a": {"const": held}}, "required": ["a"], "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    choice = answer(server, tools=[tool], tool_choice="required", parallel_tool_calls=False)
    assert [json.loads(call["function"]["arguments"]) for call in choice["message"]["tool_calls"]] == [{"a": held}]


def test_the_tools_that_cannot_be_held_are_named() -> None:
    with pytest.raises(UnsupportedSchema, match=r"parameters of g.*not"):
        tool_grammar(
            [("f", None), ("g", {"type": "object", "properties": {"a": {"not": {}}}})], required=True, several=True
        )


HANG = "root ::= r0\n" + "".join(f"r{n} ::= r{n + 1} r{n + 1} | r{n + 1}\n" for n in range(40)) + 'r40 ::= "a"?\n'


def test_no_grammar_holds_the_model_up_for_others(tiny_gguf: Path, tmp_path: Path) -> None:
    with running([tiny_gguf], tmp_path, parallel=2) as made:
        made.chat("Go")
        schema = {"type": "string", "pattern": "^((((a?){6}){6}){6}){6}$"}
        bombs: list[dict[str, Any]] = [{"grammar": HANG}, {"json_schema": schema}]
        threads = [threading.Thread(target=lambda bomb=bomb: made.chat("Go", **bomb)) for bomb in bombs]
        for thread in threads:
            thread.start()
        assert made.chat("Go")[0] == 200
        for thread in threads:
            thread.join()
        assert next(iter(made.service.pool.models.values())).restarts == 0


def test_an_engine_that_hangs_is_replaced_and_others_are_answered(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    monkeypatch.setattr(pool, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(pool, "ANSWER_SECONDS", 0.3)
    with running([tiny_gguf], tmp_path, parallel=2) as made:
        made.chat("Go")
        model = next(iter(made.service.pool.models.values()))
        assert model.engine is not None
        assert model.engine.pid is not None
        os.kill(model.engine.pid, signal.SIGSTOP)
        found: list[tuple[int, Any]] = []
        threads = [threading.Thread(target=lambda: found.append(made.chat("Go"))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert model.restarts == 1
        assert {status for status, _ in found} <= {200, 503}
        assert made.chat("Go on")[0] == 200


def test_a_request_that_ended_an_engine_is_not_tried_again(server: Running) -> None:
    model = next(iter(server.service.pool.models.values()))
    model.begin("one")
    model.begin("two")
    assert not asyncio.run(model.ended("one", None, reached=True)), "it was not alone"
    model.done("one")
    assert not asyncio.run(model.ended("two", None, reached=False)), "it had not begun"
    assert asyncio.run(model.ended("two", None, reached=True))
    model.done("two")
    model.require_harmless("one")
    with pytest.raises(Exception, match="over this very request"):
        model.require_harmless("two")
    asyncio.run(model.watch())


def test_an_engine_that_somebody_killed_is_no_fault_of_the_request(tiny_gguf: Path, tmp_path: Path) -> None:
    with running([tiny_gguf], tmp_path) as made:
        (model,) = made.service.pool.models.values()
        for _ in range(2):
            made.chat("Go")
            assert model.engine is not None
            killer = threading.Timer(0.05, os.kill, (model.engine.pid, signal.SIGKILL))
            killer.start()
            status, answer = made.chat("Go", max_tokens=300, logit_bias={"2": -100})
            # An answer that had begun is not begun anew; asked again, it comes.
            assert status == 200 or (status, "it is started anew" in answer["error"]["message"]) == (503, True)
            killer.join()
            engine = model.engine
            if engine is not None and not engine.alive:
                assert engine.killed()
                engine.replaced = True
                assert not engine.killed(), "one that was given up because it had hung is"
            assert made.chat("Go", max_tokens=300, logit_bias={"2": -100})[0] == 200


def test_a_long_answer_has_no_hidden_end(server: Running) -> None:
    schema = {"type": "array", "items": {"const": 1}, "minItems": 40}
    _, found = server.chat("Go", json_schema=schema, max_tokens=400)
    if found["choices"][0]["finish_reason"] == "stop":
        assert len(json.loads(found["choices"][0]["message"]["content"])) >= 40
    assert "160" not in json_grammar({"type": "string"})


def test_whoever_leaves_a_grammar_is_seen_at_once() -> None:
    watch = Watch(json_grammar({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}))
    assert all(map(watch.takes, ('{"a"', ': "ä', "", '漢"')))
    assert not watch.takes('", ')
    assert watch.takes("}")
    assert not watch.takes(" and more")
    free = Watch(tool_grammar([("w", None)], required=False, several=False))
    assert free.takes("A text\nof any kind")
    call = Watch(tool_grammar([("w", None)], required=True, several=False))
    assert not call.takes("A text")


def test_a_call_that_was_cut_off_is_the_same_streamed_or_not(server: Running) -> None:
    """Neither says a piece of it as text."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
    body = {"messages": [{"role": "user", "content": "Go"}], "tools": [tool], "tool_choice": "required", "seed": 1}
    for most in (1, 2, 6):
        said = {**body, "max_tokens": most}
        choice = server.ask("POST", "/v1/chat/completions", said)[1]["choices"][0]
        assert choice["finish_reason"] == "length"
        streamed = "".join(
            each["delta"].get("content") or ""
            for event in server.stream("/v1/chat/completions", said)
            for each in event.get("choices", ())
        )
        assert (choice["message"]["content"] or "") == streamed == ""
