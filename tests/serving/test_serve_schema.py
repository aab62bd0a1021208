"""From schemas to grammars. The grammar is read by a small reader of our own, and its sentences are checked by jsonschema."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.serving.numerals import integers, numbers
from stillroom.serving.pattern import FORMATS, pattern_rule
from stillroom.serving.schema import UnsupportedSchema, json_grammar


class Sentences:
    """Random sentences of a grammar (the part of GBNF that is written here)."""

    def __init__(self, grammar: str, seed: int) -> None:
        self.rules = dict(line.split(" ::= ", 1) for line in grammar.splitlines())
        self.draw = random.Random(seed)

    def sentence(self) -> str:
        return self._alternatives(self.rules["root"])

    def _alternatives(self, text: str) -> str:
        options, position = self._parse(text, 0)
        assert position == len(text), text[position:]
        return self._choose(options)

    def _choose(self, options: list[Any]) -> str:
        return "".join(self._make(item) for item in self.draw.choice(options))

    def _make(self, item: Any) -> str:
        kind, value, least, most = item
        count = self.draw.randint(least, min(most, least + 3))
        return "".join(self._one(kind, value) for _ in range(count))

    def _one(self, kind: str, value: Any) -> str:
        if kind == "text":
            return str(value)
        if kind == "rule":
            return self._alternatives(self.rules[value])
        if kind == "group":
            return self._choose(value)
        negated, ranges = value
        if not negated:
            low, high = self.draw.choice(ranges)
            return chr(self.draw.randint(low, high))
        while True:
            character = chr(self.draw.choice([*range(32, 127), 233, 0x6F22]))
            if not any(low <= ord(character) <= high for low, high in ranges):
                return character

    def _parse(self, text: str, position: int) -> tuple[list[Any], int]:
        options: list[Any] = [[]]
        while position < len(text):
            character = text[position]
            if character == " ":
                position += 1
                continue
            if character == "|":
                options.append([])
                position += 1
                continue
            if character == ")":
                return options, position
            item: tuple[str, Any]
            if character == '"':
                end, out = position + 1, ""
                while text[end] != '"':
                    if text[end] == "\\":
                        out += {"n": "\n", "r": "\r", "t": "\t"}.get(text[end + 1], text[end + 1])
                        end += 2
                    else:
                        out += text[end]
                        end += 1
                item, position = ("text", out), end + 1
            elif character == "[":
                value, position = self._class(text, position + 1)
                item = ("class", value)
            elif character == "(":
                inner, position = self._parse(text, position + 1)
                item, position = ("group", inner), position + 1
            else:
                found = re.compile(r"[a-z0-9]+").match(text, position)
                assert found, text[position:]
                item, position = ("rule", found.group()), found.end()
            least, most = 1, 1
            if position < len(text) and text[position] == "?":
                least, position = 0, position + 1
            elif position < len(text) and text[position] == "{":
                end = text.index("}", position)
                low, _, high = text[position + 1 : end].partition(",")
                least, most, position = int(low), int(high or low), end + 1
            options[-1].append((*item, least, most))
        return options, position

    def _class(self, text: str, position: int) -> tuple[tuple[bool, list[tuple[int, int]]], int]:
        negated = text[position] == "^"
        position += negated
        codes: list[tuple[int, int]] = []

        def one(at: int) -> tuple[int, int]:
            if text[at] != "\\":
                return ord(text[at]), at + 1
            digits = {"x": 2, "u": 4, "U": 8}.get(text[at + 1])
            if digits:
                return int(text[at + 2 : at + 2 + digits], 16), at + 2 + digits
            return ord(text[at + 1]), at + 2

        while text[position] != "]":
            low, position = one(position)
            high = low
            if text[position] == "-" and text[position + 1] != "]":
                high, position = one(position + 1)
            codes.append((low, high))
        return (negated, codes), position + 1


names = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=5)
leaves = st.one_of(
    st.builds(
        lambda a, b: {"type": "string", "minLength": a, "maxLength": a + b}, st.integers(0, 5), st.integers(0, 9)
    ),
    st.builds(
        lambda a, b: {"type": "integer", "minimum": a, "maximum": a + b}, st.integers(-999, 999), st.integers(0, 999)
    ),
    st.builds(lambda a: {"type": "number", "exclusiveMinimum": a}, st.integers(-99, 99)),
    st.builds(
        lambda a: {"type": "number", "minimum": a, "maximum": a + 1.5}, st.floats(-9, 9).map(lambda x: round(x, 2))
    ),
    st.builds(
        lambda v: {"enum": v},
        st.lists(st.one_of(names, st.integers(), st.none(), st.booleans()), min_size=1, max_size=3),
    ),
    st.just({"type": ["boolean", "null"]}),
    st.sampled_from([{"type": "string", "format": name} for name in FORMATS]),
    st.just({"type": "string", "pattern": "^[A-Z][a-z]{1,3}(-[0-9]+)?$"}),
)


def _object(properties: dict[str, Any], mask: list[bool], closed: bool) -> dict[str, Any]:
    required = [name for name, needed in zip(properties, mask, strict=False) if needed]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        **({"additionalProperties": False} if closed else {}),
    }


small = st.integers(0, 2)


def _array(items: Any, least: int, more: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + more}


def _tuple(prefix: list[Any], items: Any, least: int) -> dict[str, Any]:
    return {"type": "array", "prefixItems": prefix, "items": items, "minItems": least}


schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(_array, inner, small, small),
        st.builds(_tuple, st.lists(inner, min_size=1, max_size=2), inner, st.integers(0, 3)),
        st.builds(
            _object,
            st.dictionaries(names, inner, max_size=3),
            st.lists(st.booleans(), min_size=3, max_size=3),
            st.booleans(),
        ),
        st.builds(lambda s: {"anyOf": s}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda s: {"type": "object", "additionalProperties": s}, inner),
    ),
    max_leaves=6,
)


@settings(max_examples=150)
@given(schema=schemas, seed=st.integers(0, 1 << 30))
def test_every_sentence_is_a_value_of_the_schema(schema: Any, seed: int) -> None:
    try:
        grammar = json_grammar(schema)
    except UnsupportedSchema:
        return  # refused is not wrong; that these kinds are not refused is tested below
    for number in range(3):
        text = Sentences(grammar, seed + number).sentence()
        jsonschema.validate(json.loads(text), schema)


@settings(max_examples=100)
@given(low=st.integers(-5000, 5000), width=st.integers(0, 5000), seed=st.integers(0, 1 << 30))
def test_integers_within_limits(low: int, width: int, seed: int) -> None:
    made = integers({"minimum": low, "maximum": low + width})
    assert made is not None
    text = Sentences(f"root ::= {made}\n", seed).sentence()
    assert low <= int(text) <= low + width
    assert str(int(text)) == text


@given(low=st.integers(0, 300), width=st.integers(0, 120))
@settings(max_examples=60)
def test_no_integer_is_left_out(low: int, width: int) -> None:
    made = integers({"minimum": low, "maximum": low + width})
    assert made is not None
    pattern = re.compile(made.replace('"', "").replace(" | ", "|").replace(" ", ""))
    found = {number for number in range(low + width + 50) if pattern.fullmatch(str(number))}
    assert found == set(range(low, low + width + 1))


def test_limits_without_a_number() -> None:
    assert integers({"minimum": 0.2, "maximum": 0.8}) is None
    assert integers({"exclusiveMinimum": 3, "exclusiveMaximum": 4}) is None
    assert numbers({"exclusiveMinimum": 3, "exclusiveMaximum": 4}) is not None


@pytest.mark.parametrize("pattern", ["^a{2,4}b?$", "[^x]y", r"\d{3}\w", "(ab|c)+", ".", *FORMATS.values()])
def test_sentences_of_a_pattern_match_it(pattern: str) -> None:
    rule = pattern_rule(pattern)
    for seed in range(20):
        text = json.loads('"' + Sentences(f"root ::= {rule}\n", seed).sentence() + '"')
        assert re.search(pattern, text)


@pytest.mark.parametrize(
    "pattern", ["(?=a)b", r"(a)\1", r"\bword", '^["\\\\]$', "a" * 501, "(a{99}){99}", "[", "\x01", 7]
)
def test_patterns_that_cannot_be_held(pattern: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        pattern_rule(pattern)


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"type": "object", "patternProperties": {"a": {}}}, "patternProperties"),
        ({"type": "integer", "multipleOf": 7}, "multipleOf"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "array", "contains": {"type": "integer"}}, "contains"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength"),
        ({"type": "complex"}, "complex"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"type": "string", "pattern": "a", "minLength": 3}, "pattern"),
        ({"enum": ["a"], "not": {"const": "a"}}, "not"),
        ({"allOf": [{"type": "integer"}, {"type": "string"}]}, "type"),
    ],
)
def test_what_cannot_be_held_is_named(schema: Any, word: str) -> None:
    with pytest.raises(UnsupportedSchema, match=word):
        json_grammar(schema)


def test_recursion_ends() -> None:
    node: dict[str, Any] = {
        "type": "object",
        "properties": {"v": {"type": "null"}, "next": {"$ref": "#"}},
        "required": ["v"],
    }
    for seed in range(30):
        jsonschema.validate(json.loads(Sentences(json_grammar(node), seed).sentence()), node)
    with pytest.raises(UnsupportedSchema, match="No value"):
        json_grammar({**node, "required": ["next"]})


def test_a_schema_as_deep_as_can_be_is_an_answer_and_not_a_crash() -> None:
    schema: Any = {"type": "null"}
    for _ in range(400):
        schema = {"type": "array", "items": schema}
    with pytest.raises(UnsupportedSchema):
        json_grammar(schema)


def test_constants_that_must_be_escaped() -> None:
    values = ['a"b', "c\\d", "é\n\t", "</script>", {"a": ['"']}]
    grammar = json_grammar({"enum": values})
    seen = {json.dumps(json.loads(Sentences(grammar, seed).sentence())) for seed in range(60)}
    assert seen == {json.dumps(value) for value in values}


def test_branches_that_refer_to_themselves_do_not_multiply_without_end() -> None:
    with pytest.raises(UnsupportedSchema, match="too many ways"):
        json_grammar({"anyOf": [*({"$ref": "#", "title": str(number)} for number in range(9)), {"type": "null"}]})
