"""From a JSON schema to a grammar (GBNF) whose every sentence is a value that the schema allows, and is finite.

What a grammar cannot hold is refused by name, never ignored: an answer under a schema is valid by construction or is
not begun. Lengths that a schema leaves open get a bound, and recursion a depth, so that every answer comes to an end.
"""

from __future__ import annotations

import json
import math
from itertools import permutations
from typing import Any

from stillroom.core.errors import UsageError
from stillroom.serving.numerals import integers, numbers
from stillroom.serving.pattern import FORMATS, NEVER_PLAIN, pattern_rule, quote

LONGEST_SCHEMA = 1 << 17
MOST_RULES = 4000
MOST_STEPS = 20_000
"""Parts of a schema that are looked at, references followed: branches that refer to themselves multiply."""
DEEPEST = 48
RECURSIONS = 5
"""How often references are followed on one path."""
LONGEST_STRING = 160
"""Characters of a string whose schema sets no limit."""
MOST_REPEATS = 800
MOST_ITEMS = 12
"""Items of an array whose schema sets no limit."""

_NOTES = {
    "title", "description", "default", "examples", "example", "$schema", "$id", "$comment", "deprecated", "readOnly",
    "writeOnly", "$defs", "definitions", "format", "contentMediaType", "contentEncoding", "strict",
}  # fmt: skip
_KEYWORDS = {
    "string": {"minLength", "maxLength", "pattern"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "array": {"items", "prefixItems", "minItems", "maxItems", "uniqueItems"},
    "object": {"properties", "required", "additionalProperties", "minProperties", "maxProperties"},
    "boolean": set(),
    "null": set(),
}
_TYPES = {
    "string": str, "boolean": bool, "null": type(None), "array": list, "object": dict,
}  # fmt: skip


class UnsupportedSchema(UsageError):
    """A schema that a grammar cannot hold, or that no value can satisfy."""


class _Impossible(Exception):
    """No value satisfies this part within the depth."""


def json_grammar(schema: Any = None) -> str:
    """The grammar of a schema; of any JSON object where there is none.

    Raises:
        UnsupportedSchema: Says which keyword, and where.
    """
    compiler = SchemaCompiler()
    root = compiler.add({"type": "object"} if schema is None else schema)
    return compiler.grammar(root)


class SchemaCompiler:
    """Collects the rules of one grammar, from one schema or several."""

    def __init__(self) -> None:
        self.rules: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._document: Any = None
        self._steps = 0

    def add(self, schema: Any) -> str:
        """Add a schema; returns the expression that stands for its values.

        Raises:
            UnsupportedSchema: Says which keyword, and where.
        """
        try:
            size = len(json.dumps(schema, allow_nan=False))
        except (ValueError, RecursionError, TypeError):
            raise UnsupportedSchema("The schema is not JSON, or is nested too deeply.") from None
        if size > LONGEST_SCHEMA:
            raise UnsupportedSchema(f"The schema has {size:,} characters; at most {LONGEST_SCHEMA:,} are taken.")
        self._document = schema
        self._names = {}
        try:
            return self._value(schema, "schema", 0, 0)
        except _Impossible as error:
            raise UnsupportedSchema(
                f"No value satisfies the schema: {error}", "Look for limits that contradict each other."
            ) from None

    def rule(self, expression: str) -> str:
        """Give an expression a name, the same for the same expression."""
        if len(self.rules) > MOST_RULES:
            raise UnsupportedSchema(f"The schema needs more than {MOST_RULES} rules.", "Make it smaller.")
        for_same = self._names.get(expression)
        if for_same is None:
            for_same = f"r{len(self.rules)}"
            self._names[expression] = for_same
            self.rules[for_same] = expression
        return for_same

    def grammar(self, root: str) -> str:
        """The whole grammar."""
        return "\n".join([f"root ::= {root}", *(f"{name} ::= {body}" for name, body in self.rules.items())]) + "\n"

    def _value(self, schema: Any, where: str, depth: int, turns: int) -> str:
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise UnsupportedSchema("The schema refers to itself in too many ways.", "Give it fewer branches.")
        if depth > DEEPEST:
            raise UnsupportedSchema(f"{where}: nested more than {DEEPEST} deep.")
        if schema is True or schema == {}:
            return self._anything(2)
        if schema is False:
            raise _Impossible(f"{where} is false")
        if not isinstance(schema, dict):
            raise UnsupportedSchema(f"{where}: a schema is an object or a boolean.")
        if "$ref" in schema:
            target = self._resolve(schema["$ref"], where)
            if turns >= RECURSIONS * 2:
                raise _Impossible(f"{where} refers to itself without end")
            rest = {key: value for key, value in schema.items() if key != "$ref" and key not in _NOTES}
            merged = _merge(target, rest, where) if rest else target
            return self.rule(self._value(merged, where, depth + 1, turns + 1))
        if "const" in schema:
            return self._listed([schema["const"]], schema, where)
        if "enum" in schema:
            return self._listed(schema["enum"], schema, where)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self._branches(schema, key, where, depth, turns)
        if "allOf" in schema:
            parts = _list(schema["allOf"], f"{where}.allOf")
            merged = {key: value for key, value in schema.items() if key != "allOf"}
            for part in parts:
                if isinstance(part, dict) and "$ref" in part:
                    part = _merge(
                        self._resolve(part["$ref"], where), {k: v for k, v in part.items() if k != "$ref"}, where
                    )
                merged = _merge(merged, part, f"{where}.allOf")
            return self._value(merged, where, depth + 1, turns + 1 if turns else turns)
        kind = schema.get("type")
        kinds = [kind] if isinstance(kind, str) else kind if kind is not None else [_guess(schema)]
        if not isinstance(kinds, list) or not kinds or not all(isinstance(name, str) for name in kinds):
            raise UnsupportedSchema(f"{where}.type: a name or a list of names.")
        choices: list[str] = []
        for name in kinds:
            if name == "any":
                self._require_known(schema, {"type"}, where)
                return self._anything(2)
            if name not in _KEYWORDS:
                raise UnsupportedSchema(f"{where}.type: {name!r} is no type of JSON schema.")
            self._require_known(schema, {"type"}.union(*(_KEYWORDS.get(other, set()) for other in kinds)), where)
            try:
                choices.append(self._typed(name, schema, where, depth, turns))
            except _Impossible:
                if len(kinds) == 1:
                    raise
        return self._either(choices, where)

    def _require_known(self, schema: dict[str, Any], known: set[str], where: str) -> None:
        for key in schema:
            if key not in known | _NOTES:
                raise UnsupportedSchema(
                    f"{where}: the keyword {key!r} cannot be guaranteed here.", "Leave it out, and check it yourself."
                )

    def _typed(self, name: str, schema: dict[str, Any], where: str, depth: int, turns: int) -> str:
        if name == "string":
            return self._string(schema, where)
        if name in ("integer", "number"):
            return self._number(schema, where, name == "integer")
        if name == "boolean":
            return self.rule('"true" | "false"')
        if name == "null":
            return '"null"'
        return (self._array if name == "array" else self._object)(schema, where, depth, turns)

    def _either(self, choices: list[str], where: str) -> str:
        if not choices:
            raise _Impossible(f"{where} has no branch left")
        return choices[0] if len(choices) == 1 else self.rule(" | ".join(dict.fromkeys(choices)))

    def _branches(self, schema: dict[str, Any], key: str, where: str, depth: int, turns: int) -> str:
        rest = {name: value for name, value in schema.items() if name != key and name not in _NOTES}
        branches = _list(schema[key], f"{where}.{key}")
        if key == "oneOf" and not _disjoint([self._seen_through(branch, where) for branch in branches]):
            raise UnsupportedSchema(
                f"{where}.oneOf: a value could satisfy two branches, and that cannot be ruled out.",
                "Say anyOf, or give each branch a type or a constant of its own.",
            )
        choices = []
        for number, branch in enumerate(branches):
            place = f"{where}.{key}[{number}]"
            try:
                merged = _merge(self._seen_through(branch, place), rest, place) if rest else branch
                choices.append(self._value(merged, place, depth + 1, turns))
            except _Impossible:
                continue
        return self._either(choices, where)

    def _seen_through(self, branch: Any, where: str) -> Any:
        if isinstance(branch, dict) and set(branch) - _NOTES == {"$ref"}:
            return self._resolve(branch["$ref"], where)
        return branch

    def _resolve(self, reference: Any, where: str) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise UnsupportedSchema(f"{where}: only references within the schema are followed.")
        found = self._document
        for part in reference[1:].split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and part.isdigit() and int(part) < len(found):
                found = found[int(part)]
            elif isinstance(found, dict) and part in found:
                found = found[part]
            else:
                raise UnsupportedSchema(f"{where}: {reference!r} leads nowhere.")
        return found

    def _listed(self, values: Any, schema: dict[str, Any], where: str) -> str:
        allowed = [value for value in _list(values, where) if _has_type(value, schema.get("type"))]
        extra = set(schema) - _NOTES - {"enum", "const", "type"}
        if "const" in schema and "enum" in schema:
            allowed = [value for value in allowed if value in schema["enum"]]
        if extra and not extra <= set().union(*_KEYWORDS.values()):
            raise UnsupportedSchema(f"{where}: {sorted(extra)[0]!r} beside a list of values cannot be guaranteed.")
        if extra and not (extra <= {"properties", "required"} and not any(isinstance(v, dict) for v in allowed)):
            raise UnsupportedSchema(f"{where}: {sorted(extra)[0]!r} beside a list of values cannot be guaranteed.")
        if not allowed:
            raise _Impossible(f"{where} lists no value of its type")
        return self.rule(" | ".join(quote(_compact(value)) for value in allowed))

    def _string(self, schema: dict[str, Any], where: str) -> str:
        least = _count(schema, "minLength", 0, where)
        most = _count(schema, "maxLength", max(LONGEST_STRING, least), where)
        if "pattern" in schema or ("format" in schema and schema["format"] in FORMATS):
            text = schema.get("pattern", FORMATS.get(str(schema.get("format")), ""))
            if (
                "minLength" in schema
                or "maxLength" in schema
                or ("pattern" in schema and schema.get("format") in FORMATS)
            ):
                raise UnsupportedSchema(f"{where}: a pattern together with another limit cannot be guaranteed.")
            try:
                return self.rule(f'"\\"" {pattern_rule(text)} "\\""')
            except ValueError as error:
                raise UnsupportedSchema(f"{where}.pattern: {error}") from None
        if least > most:
            raise _Impossible(f"{where}: minLength is above maxLength")
        if least > MOST_REPEATS:
            raise UnsupportedSchema(f"{where}.minLength: at most {MOST_REPEATS}.")
        character = self.rule(f'[^{NEVER_PLAIN}] | "\\\\" ["\\\\/bfnrt]')
        return self.rule(f'"\\"" {character}{{{least},{min(most, MOST_REPEATS)}}} "\\""')

    def _number(self, schema: dict[str, Any], where: str, whole: bool) -> str:
        bounds: dict[str, float] = {}
        for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if key in schema:
                value = schema[key]
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise UnsupportedSchema(f"{where}.{key}: a number is expected.")
                bounds[key] = value
        step = schema.get("multipleOf", 1)
        if whole and step not in (1, 1.0):
            raise UnsupportedSchema(f"{where}: the keyword 'multipleOf' cannot be guaranteed here.")
        made = integers(bounds) if whole else numbers(bounds)
        if made is None:
            raise _Impossible(f"{where}: no number lies within its limits")
        return self.rule(made)

    def _array(self, schema: dict[str, Any], where: str, depth: int, turns: int) -> str:
        fixed = _list(schema.get("prefixItems", []), f"{where}.prefixItems", empty=True)
        least = _count(schema, "minItems", 0, where)
        most = _count(schema, "maxItems", max(least, MOST_ITEMS, len(fixed)), where)
        if least > most:
            raise _Impossible(f"{where}: minItems is above maxItems")
        items = schema.get("items", True)
        if schema.get("uniqueItems") and most > 1:
            return self._unique(items, least, most, where)
        if least > MOST_REPEATS:
            raise UnsupportedSchema(f"{where}.minItems: at most {MOST_REPEATS}.")
        parts = []
        for number, part in enumerate(fixed[:most]):
            parts.append(self._value(part, f"{where}.prefixItems[{number}]", depth + 1, turns))
        more = max(0, min(most, MOST_REPEATS) - len(parts))
        rest = None
        if more:
            try:
                rest = self._value(items, f"{where}.items", depth + 1, turns)
            except _Impossible:
                if least > len(parts):
                    raise
        if not parts:
            if rest is None:
                return '"[]"'
            first = f'{rest} ("," " "? {rest}){{{max(0, least - 1)},{more - 1}}}'
            return self.rule(f'"[" {first} "]"' if least else f'"[" ({first})? "]"')
        # Written from the end: what follows an item is there only if the item is.
        tail = f'("," " "? {rest}){{{max(0, least - len(parts))},{more}}}' if rest else ""
        for number in reversed(range(len(parts))):
            comma = '"," " "? ' if number else ""
            tail = f"{comma}{parts[number]} {tail}".strip()
            if number >= least:
                tail = f"({tail})?"
            tail = self.rule(tail)
        return self.rule(f'"[" {tail} "]"')

    def _unique(self, items: Any, least: int, most: int, where: str) -> str:
        values = items.get("enum") if isinstance(items, dict) else None
        if isinstance(values, list) and len(values) <= 4 and set(items) - _NOTES <= {"enum", "type"}:
            different = {_compact(value): value for value in values if _has_type(value, items.get("type"))}
            rows = [
                list(row)
                for size in range(least, min(most, len(different)) + 1)
                for row in permutations(different.values(), size)
            ]
            if not rows:
                raise _Impossible(f"{where}: too few different values")
            return self.rule(" | ".join(quote(_compact(row)) for row in rows))
        if least > 1:
            raise UnsupportedSchema(f"{where}.uniqueItems: cannot be guaranteed for two items or more.")
        return self._array({"items": items, "minItems": least, "maxItems": 1}, where, 0, 1)

    def _object(self, schema: dict[str, Any], where: str, depth: int, turns: int) -> str:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        additional = schema.get("additionalProperties", True)
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise UnsupportedSchema(f"{where}: `properties` is an object and `required` a list.")
        least = _count(schema, "minProperties", 0, where)
        most = _count(schema, "maxProperties", 1 << 30, where)
        if not properties and not required:
            return self._map(additional, least, most, where, depth, turns)
        members: list[tuple[str, bool]] = []
        for name in dict.fromkeys([*properties, *(name for name in required if isinstance(name, str))]):
            needed = name in required
            inner = properties.get(name, additional)
            try:
                value = self._value(inner, f"{where}.{name}", depth + 1, turns)
            except _Impossible:
                if needed:
                    raise
                continue
            members.append((self.rule(f'{quote(json.dumps(name))} ":" " "? {value}'), needed))
        count = sum(needed for _, needed in members)
        if most < len(members) or least > count:
            # Whether optional members are there decides it; keep those that make it certain.
            wanted = max(least, count)
            if wanted > min(most, len(members)):
                raise _Impossible(f"{where}: minProperties and maxProperties cannot both hold")
            optional = [member for member, needed in members if not needed][: wanted - count]
            members = [(member, True) for member, needed in members if needed or member in optional]
        first, following = "", ""
        for member, needed in reversed(members):
            follow = f'"," " "? {member} {following}'.strip()
            begin = f"{member} {following}".strip()
            if needed:
                first, following = self.rule(begin), self.rule(follow)
            else:
                following = self.rule(f'("," " "? {member})? {following}'.strip())
                first = self.rule(f"{begin} | {first}" if first else f"({begin})?")
        return self.rule(f'"{{" {first} "}}"') if members else '"{}"'

    def _map(self, additional: Any, least: int, most: int, where: str, depth: int, turns: int) -> str:
        if least > 1:
            raise UnsupportedSchema(f"{where}.minProperties: different names cannot be guaranteed.")
        if most == 0 or additional is False:
            if least:
                raise _Impossible(f"{where}: no property is allowed and one is demanded")
            return '"{}"'
        try:
            value = self._anything(1) if additional in (True, {}) else self._value(additional, where, depth + 1, turns)
        except _Impossible:
            if least:
                raise
            return '"{}"'
        member = self.rule(f'"\\"" [a-zA-Z_] [a-zA-Z0-9_]{{0,23}} "\\":" " "? {value}')
        first = f'{member} ("," " "? {member}){{0,{min(most, MOST_ITEMS) - 1}}}'
        return self.rule(f'"{{" {first} "}}"' if least else f'"{{" ({first})? "}}"')

    def _anything(self, depth: int) -> str:
        simple = [self._string({}, ""), self.rule(numbers({}) or ""), self.rule('"true" | "false"'), '"null"']
        if depth:
            inner = self._anything(depth - 1)
            member = self.rule(f'"\\"" [a-zA-Z_] [a-zA-Z0-9_]{{0,23}} "\\":" " "? {inner}')
            simple.append(self.rule(f'"[" ({inner} ("," " "? {inner}){{0,{MOST_ITEMS - 1}}})? "]"'))
            simple.append(self.rule(f'"{{" ({member} ("," " "? {member}){{0,{MOST_ITEMS - 1}}})? "}}"'))
        return self.rule(" | ".join(simple))


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _list(value: Any, where: str, empty: bool = False) -> list[Any]:
    if not isinstance(value, list) or (not value and not empty):
        raise UnsupportedSchema(f"{where}: a list with something in it is expected.")
    return value


def _count(schema: dict[str, Any], key: str, default: int, where: str) -> int:
    value = schema.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UnsupportedSchema(f"{where}.{key}: a count is expected.")
    return value


def _guess(schema: dict[str, Any]) -> str:
    """The type that a schema without one is about; any value of it satisfies what the schema says."""
    for name in ("object", "array", "string", "number"):
        if _KEYWORDS[name] & set(schema) or (name == "string" and "format" in schema):
            return name
    return "any"


def _has_type(value: Any, kind: Any) -> bool:
    if kind is None or kind == "any":
        return True
    if isinstance(kind, list):
        return any(_has_type(value, name) for name in kind)
    if kind in ("integer", "number"):
        return (
            not isinstance(value, bool)
            and isinstance(value, int | float)
            and (kind == "number" or float(value).is_integer())
        )
    return isinstance(value, _TYPES.get(kind, ()))


def _disjoint(branches: list[Any]) -> bool:
    """Whether no value can satisfy two of the schemas, as far as types and constants tell."""
    return all(_apart(first, second) for number, first in enumerate(branches) for second in branches[:number])


def _apart(first: Any, second: Any) -> bool:
    if not isinstance(first, dict) or not isinstance(second, dict):
        return first is False or second is False
    mine, theirs = _values(first), _values(second)
    if mine is not None and theirs is not None:
        return not {_compact(value) for value in mine} & {_compact(value) for value in theirs}
    if (kinds := _kinds(first)) and (others := _kinds(second)):
        wide = {"number", "integer"}
        if not kinds & others and not (kinds & wide and others & wide):
            return True
    shared = set(first.get("required", ())) & set(second.get("required", ()))
    if _kinds(first) == _kinds(second) == {"object"}:
        return any(
            _apart(first.get("properties", {}).get(name), second.get("properties", {}).get(name)) for name in shared
        )
    return False


def _values(schema: dict[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def _kinds(schema: dict[str, Any]) -> set[str]:
    kind = schema.get("type")
    values = _values(schema)
    if kind is None and values is not None:
        return {name for name in _KEYWORDS if any(_has_type(value, name) for value in values)}
    return {kind} if isinstance(kind, str) else {str(name) for name in kind or ()}


def _merge(first: Any, second: Any, where: str) -> Any:
    """A schema whose values satisfy both."""
    if first in (True, {}):
        return second
    if second in (True, {}):
        return first
    if first is False or second is False:
        return False
    if not isinstance(first, dict) or not isinstance(second, dict):
        raise UnsupportedSchema(f"{where}: a schema is an object or a boolean.")
    merged = dict(first)
    for key, value in second.items():
        if key in _NOTES or key not in merged or merged[key] == value:
            merged.setdefault(key, value)
        elif key == "properties" and isinstance(value, dict) and isinstance(merged[key], dict):
            merged[key] = {
                **merged[key],
                **{name: _merge(merged[key].get(name, True), part, f"{where}.{name}") for name, part in value.items()},
            }
        elif key == "required" and isinstance(value, list):
            merged[key] = [*merged[key], *(name for name in value if name not in merged[key])]
        elif key in ("minimum", "minLength", "minItems", "minProperties", "exclusiveMinimum"):
            merged[key] = max(merged[key], value)
        elif key in ("maximum", "maxLength", "maxItems", "maxProperties", "exclusiveMaximum"):
            merged[key] = min(merged[key], value)
        else:
            raise UnsupportedSchema(f"{where}: two demands on {key!r} cannot be joined.")
    for part, other in ((first, second), (second, first)):
        closed = part.get("additionalProperties", True)
        if closed is not True and set(other.get("properties", {})) - set(part.get("properties", {})):
            raise UnsupportedSchema(f"{where}: additionalProperties of one part would reach into another.")
    return merged
