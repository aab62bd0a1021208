"""Lists whose values may not repeat: what is left out, what is refused, and that the rest of an answer stays as it is."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from serve_support import Running

from stillroom.serving.grammars import UnsupportedSchema, arguments_schema, distinct, json_grammar
from stillroom.serving.repeats import Repeats

ROW = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}


@pytest.mark.parametrize(
    ("schema", "before", "after"),
    [
        (ROW, "[1, 2, 1, 1.0, 3]", "[1, 2, 3]"),
        ({"type": "array", "items": ROW, "uniqueItems": True}, "[[1, 1], [1], [2]]", "[[1], [2]]"),
        (
            {"properties": {"v": {"anyOf": [ROW, {"type": "null"}]}, "w": {}}},
            '{"v": [1, 1], "w": [1, 1]}',
            '{"v": [1], "w": [1, 1]}',
        ),
        (
            {"$defs": {"s": ROW}, "properties": {"a": {"$ref": "#/$defs/s"}}},
            '{"a": [5, 5], "b": [1, 1]}',
            '{"a": [5], "b": [1, 1]}',
        ),
        (
            {"additionalProperties": ROW, "properties": {"a": {}}},
            '{"a": [1, 1], "b": [1, 1]}',
            '{"a": [1, 1], "b": [1]}',
        ),
        ({"prefixItems": [ROW, {}], "items": ROW}, "[[1, 1], [1, 1], [2, 2]]", "[[1], [1, 1], [2]]"),
        ({**ROW, "items": {}}, "[true, 1, 1e0, {}, {}, null]", "[true, 1, {}, null]"),
        ({**ROW, "items": {}}, '["a", "\\u0061", 0.10, 1E400, 0.1]', '["a", 0.10, 1E400]'),
    ],
)
def test_repeats_are_left_out_and_nothing_else(schema: Any, before: str, after: str) -> None:
    values = distinct(schema)
    assert values is not None
    made, left, end = values.text(before)
    assert made == after
    assert left == json.dumps(json.loads(before)).count(",") - json.dumps(json.loads(after)).count(",")
    assert end == len(before)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({**ROW, "minItems": 2}, "at least 2"),
        ({"oneOf": [ROW, {"type": "null"}]}, "oneOf"),
        ({"anyOf": [ROW, {"type": "array", "minItems": 3}]}, "at least 3"),
        ({"allOf": [ROW, {"prefixItems": [{}, {}]}]}, "prefixItems"),
        ({"anyOf": [{"properties": {"a": ROW}}, {"properties": {"a": {"enum": [[1, 1]]}}}]}, "enum"),
        ({"properties": {"a": ROW, "b": {"not": {}}}}, "not"),
        ({"properties": {"a": ROW, "b": {"$ref": "#/$defs/none"}}}, "none"),
    ],
)
def test_what_a_list_without_repeats_could_break_is_refused(schema: Any, named: str) -> None:
    with pytest.raises(UnsupportedSchema, match=named):
        json_grammar(schema)


def test_whatever_was_valid_but_for_repeats_is_valid_after() -> None:
    draw = random.Random(11)

    def schema(depth: int) -> dict[str, Any]:
        kind = draw.choice(["int", "row", "object", "any"] if depth else ["int"])
        if kind == "int":
            return {"type": "integer", "maximum": 2}
        if kind == "row":
            return {
                "type": "array",
                "items": schema(depth - 1),
                **({"uniqueItems": True} if draw.random() < 0.7 else {}),
            }
        if kind == "any":
            return {"anyOf": [schema(depth - 1), schema(depth - 1)]}
        return {"type": "object", "properties": {name: schema(depth - 1) for name in "ab"}}

    def value(kind: dict[str, Any]) -> Any:
        if "anyOf" in kind:
            return value(draw.choice(kind["anyOf"]))
        if kind["type"] == "integer":
            return draw.randint(0, 2)
        if kind["type"] == "array":
            return [value(kind["items"]) for _ in range(draw.randint(0, 4))]
        return {name: value(inner) for name, inner in kind["properties"].items()}

    cleaned = 0
    for _ in range(300):
        made = schema(4)
        if (values := distinct(made)) is not None:
            text, left, _ = values.text(json.dumps(value(made)))
            jsonschema.validate(json.loads(text), made)
            cleaned += left > 0
    assert cleaned > 50


def test_calls_lose_repeats_by_the_schema_of_their_tool() -> None:
    values = distinct(arguments_schema({"properties": {"a": ROW}}))
    assert values is not None
    repeats = Repeats({"f": values})
    call = '<tool_call>{"name": "%s", "arguments": {"a": [1, 1]}}</tool_call>'
    event = {"choices": [{"text": call % "f" + "\n" + call % "g", "finish_reason": "stop"}]}
    text = repeats.turn(event)["choices"][0]["text"]
    assert text == call.replace("[1, 1]", "[1]") % "f" + "\n" + call % "g"
    assert event["stillroom"] == {"generated": True, "repeats_left_out": 1}


def test_a_set_is_answered_streamed_and_whole_alike(server: Running) -> None:
    schema = {
        "type": "object",
        "properties": {"v": {**ROW, "items": {"enum": [1, 2, 3, 4, 5]}, "maxItems": 9}},
        "required": ["v"],
    }
    body = {
        "messages": [{"role": "user", "content": "Go"}], "max_tokens": 200, "seed": 3, "temperature": 1.5,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }  # fmt: skip
    status, whole, _ = server.ask("POST", "/v1/chat/completions", body)
    assert status == 200, whole
    text = whole["choices"][0]["message"]["content"]
    jsonschema.validate(json.loads(text), schema)
    parts = list(server.stream("/v1/chat/completions", body))
    assert "".join(choice["delta"].get("content") or "" for part in parts for choice in part.get("choices", ())) == text
    assert any(part.get("stillroom") == whole["stillroom"] for part in parts)
    status, answer, _ = server.ask("POST", "/v1/chat/completions", {**body, "logprobs": True})
    assert (status, answer["error"]["code"]) == (400, "unsupported_schema")
