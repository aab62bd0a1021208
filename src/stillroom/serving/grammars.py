"""Grammars of answers, by llguidance: schemas, patterns, choices, clients' own grammars, and calls of tools.

The engine takes a grammar of llguidance that it cannot compile for none at all, and goes on. So each is compiled here first,
by the same library within narrower limits: what it cannot hold is refused by name, never ignored.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any

from stillroom.serving.distinct import Distinct, pointed
from stillroom.serving.distinct import UnsupportedSchema as UnsupportedSchema

LONGEST_SCHEMA = 1 << 18
"""Characters of a schema, or of a client's grammar."""
DEEPEST = 64
"""Brackets within brackets of a grammar, a schema or a pattern: deeper ones cost the compilers their stack."""
MOST_CALLS = 32
"""Calls in one answer."""
MOST_ITEMS = 10_000
"""What minItems and maxItems may say, and half of what all of them may: the engine writes each out, and more of them were seen
to end it."""
MOST_TIMES = 1 << 14
"""How often a pattern or a client's grammar may repeat a part, and a quarter of all its repeats: with more the engine gave the
grammar up, or took seconds."""
MOST_PERMUTED = 4
"""Values of a list without repeats whose orders are all written out."""
_OF_LISTS = {"type", "items", "minItems", "maxItems", "uniqueItems"}
HEAD = "%llguidance {}\n"
OPEN, CLOSE = "<tool_call>", "</tool_call>"
FORMATS = {
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid",
}  # fmt: skip
"""Formats that are held to. Every other is a note to the reader, as JSON schema has it: `uri` too, whose grammar compiles, but
was seen to be too much for the engine while it wrote, which then went on without any."""
MOST_FUEL, MOST_SIZE, MOST_STATES = 400_000, 400_000, 100_000
"""Narrower than the engine's own limits."""
_INSIDE = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames", "additionalItems",
           "unevaluatedItems", "unevaluatedProperties")  # fmt: skip
_NOTES = {
    "x-guidance", "discriminator", "title", "description", "$comment", "default", "examples", "example", "deprecated",
    "readOnly", "writeOnly",
}  # fmt: skip
"""What demands nothing of a value, and what only llguidance would read."""
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def json_grammar(schema: Any = None) -> str:
    """The grammar of a schema's values; of any JSON object where there is none.

    Raises:
        UnsupportedSchema: Says which keyword.
    """
    return checked(f"{HEAD}start: %json {_document(schema)}\n")


def choice_grammar(choices: Sequence[str]) -> str:
    """The grammar of one text out of several.

    Raises:
        UnsupportedSchema: There is none.
    """
    if not choices or not all(choices):
        raise UnsupportedSchema("A choice needs at least one text, and none that is empty.")
    return checked(f"{HEAD}start: {' | '.join(_quote(choice) for choice in choices)}\n")


def regex_grammar(pattern: str) -> str:
    """The grammar of all texts that a pattern matches as a whole.

    Raises:
        UnsupportedSchema: It is no pattern, or one that cannot be held.
    """
    _require_shallow(pattern)
    _require_few_times(pattern, "The pattern")
    anchored = pattern.removeprefix("^")
    if anchored.endswith("$") and not anchored.endswith("\\$"):
        anchored = anchored[:-1]
    if "\n" in anchored:
        raise UnsupportedSchema("A pattern is one line.", r"Write \n for the end of a line.")
    escaped = re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", anchored)
    return checked(f"{HEAD}start: /{escaped}/\n")


def client_grammar(text: str) -> str:
    """A client's own grammar, in GBNF or in llguidance's form of Lark. It is of texts: what it says of tokens would depend on
    the model, and could not be watched (:class:`Watch`).

    Raises:
        UnsupportedSchema: It is not whole, or has what cannot be held.
    """
    from llguidance.gbnf_to_lark import any_to_lark

    _require_shallow(text)
    if text.lstrip().startswith("%llguidance"):
        return checked(_of_texts(text))
    try:
        converted = any_to_lark(text)
    except RecursionError:
        raise UnsupportedSchema("The grammar is nested too deeply.") from None
    except Exception as error:
        raise UnsupportedSchema(f"The grammar cannot be read: {str(error)[:200]}") from None
    return checked(_of_texts(converted if converted.lstrip().startswith("%llguidance") else HEAD + converted))


_LITERAL = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|#[^\n]*|(/(?:\\.|[^/\\\n])+/)')
"""Strings and comments of Lark, and its patterns, which are the group."""
_TIMES = re.compile(r"\{\s*([0-9]*)\s*,?\s*([0-9]*)\s*\}|~\s*([0-9]+)(?:\s*\.\.\s*([0-9]+))?")


def _of_texts(lark: str) -> str:
    """The grammar, if it is of texts alone, and of no more repeats than can be held.

    Raises:
        UnsupportedSchema: It is not.
    """
    _require_few_times(_LITERAL.sub(lambda found: found[1] or '""', lark), "The grammar")
    bare = _LITERAL.sub('""', lark)
    if "<" in bare:
        raise UnsupportedSchema("Tokens named by <…> cannot be held.", "Write the text that they stand for.")
    if re.search(r"\bmax_tokens\s*=", bare):
        raise UnsupportedSchema("max_tokens in a grammar cannot be held.", "Use the request's max_tokens.")
    for found in re.finditer(r"%json\s*", lark):
        with contextlib.suppress(ValueError, RecursionError):  # the compiler says what it thinks of others
            schema = json.JSONDecoder().raw_decode(lark, found.end())[0]
            _require_countable(_parts(_mapped(schema, lambda part: _plainer(part, schema))))  # noqa: B023 - called here
    return lark


def _require_few_times(text: str, what: str) -> None:
    """Refuse a text of patterns in which a part is repeated too often, or all parts together are."""
    in_all = 0
    for found in _TIMES.finditer(text):
        most = max((int(number[:9]) for number in found.groups() if number), default=0)
        in_all += most
        if most > MOST_TIMES:
            raise UnsupportedSchema(
                f"{what} repeats a part up to {found[0][:40]} times; at most {MOST_TIMES:,} are held."
            )
    if in_all > 4 * MOST_TIMES:
        raise UnsupportedSchema(f"{what}: {in_all:,} repeats in all; at most {4 * MOST_TIMES:,} are held.")


def tool_grammar(tools: Iterable[tuple[str, Any]], *, required: bool, several: bool) -> str:
    """The grammar of answers that are calls of tools.

    Args:
        tools: The name of each, and the schema of its arguments; None for no arguments.
        required: The answer is a call, and not a text.
        several: It may be more calls than one.

    Raises:
        UnsupportedSchema: The parameters of a tool cannot be held.
    """
    rules, names = [], []
    for number, (name, parameters) in enumerate(tools):
        begin = _quote(f'{OPEN}{{"name": {json.dumps(name)}, "arguments": ')
        try:
            document = _document(arguments_schema(parameters))
            checked(f"{HEAD}start: %json {document}\n")
        except UnsupportedSchema as error:
            raise UnsupportedSchema(f"The parameters of {name}: {error}") from None
        rules.append(f'call{number}: {begin} args{number} "}}{CLOSE}"\nargs{number}: %json {document}')
        names.append(f"call{number}")
    more = f' ("\\n" call){{0,{MOST_CALLS - 1}}}' if several else ""
    start = f"call{more}" if required else f"(call{more} | TEXT)?"
    rules += [f"call: {' | '.join(names)}", *([] if required else [r"TEXT: /[^<](.|\n)*/"])]
    return checked(HEAD + "\n".join([f"start: {start}", *rules]) + "\n")


def arguments_schema(parameters: Any) -> Any:
    """The schema of a tool's arguments: of an object, where its root does not say otherwise, with no names but its own."""
    if parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(parameters, dict):
        return parameters
    if any(key in parameters for key in ("anyOf", "oneOf", "allOf", "$ref", "enum", "const")):
        return parameters
    if parameters.get("type", "object") != "object":
        return parameters
    closed = (
        {} if "patternProperties" in parameters or "propertyNames" in parameters else {"additionalProperties": False}
    )
    return {"type": "object", **closed, **parameters}


@functools.lru_cache(maxsize=32)
def checked(grammar: str) -> str:
    """A grammar that compiles within the limits.

    Raises:
        UnsupportedSchema: Says why it does not.
    """
    from llguidance import LLMatcher, LLParserLimits

    if len(grammar) > 2 * LONGEST_SCHEMA:
        raise UnsupportedSchema(
            f"The grammar has {len(grammar):,} characters; at most {2 * LONGEST_SCHEMA:,} are taken."
        )
    limits = LLParserLimits(initial_lexer_fuel=MOST_FUEL, max_grammar_size=MOST_SIZE, max_lexer_states=MOST_STATES)
    wrong, notes = LLMatcher.validate_grammar_with_warnings(grammar, limits=limits)
    if wrong:
        said = "; ".join(notes) if notes else "it does not compile"
        raise UnsupportedSchema(f"It cannot be guaranteed: {_reason(said)}")
    _require_lasting(grammar)
    return grammar


_REPEATS = re.compile(r"\{\s*,?\s*[0-9]|~\s*[0-9]")
REHEARSED = 48
"""Bytes of an answer that are written beforehand."""


def _require_lasting(grammar: str) -> None:
    """Refuse a grammar that compiles and becomes too large as soon as something is written: the engine would drop it then.

    What is written first is tried, and each pattern of a schema by itself, however far behind in the schema it is.

    Raises:
        UnsupportedSchema: It does.
    """
    if not _REPEATS.search(grammar):
        return  # without repeats nothing grows
    _rehearse(grammar, "The grammar")
    patterns = []
    for found in re.finditer(r"%json ", grammar):
        with contextlib.suppress(ValueError, RecursionError):
            for part in _parts(json.JSONDecoder().raw_decode(grammar, found.end())[0]):
                names = part.get("patternProperties")
                patterns += [part.get("pattern"), *(names if isinstance(names, dict) else ())]
    for pattern in dict.fromkeys(each for each in patterns if isinstance(each, str) and _REPEATS.search(each)):
        document = json.dumps({"type": "string", "pattern": pattern})
        _rehearse(f"{HEAD}start: %json {document}\n", f"The pattern {pattern[:60]}")


def _rehearse(grammar: str, what: str) -> None:
    from llguidance import LLMatcher

    for last in (False, True):
        matcher: Any = LLMatcher(_bytes_as_tokens(), grammar, log_level=0)
        for _ in range(REHEARSED):
            mask = int.from_bytes(matcher.compute_bitmask(), "little") & ((1 << 256) - 1)
            if mask and not matcher.is_error():
                matcher.consume_token(mask.bit_length() - 1 if last else (mask & -mask).bit_length() - 1)
            if matcher.is_error():
                raise UnsupportedSchema(
                    f"{what} becomes too large while it is written.",
                    "Repeat fewer parts, or parts that are never empty.",
                )
            if not mask:
                break


@functools.cache
def _bytes_as_tokens() -> Any:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


class Watch:
    """Looks on while an engine writes, which takes a grammar that becomes too much for it for none at all.

    Args:
        grammar: The grammar that was asked for.
    """

    def __init__(self, grammar: str) -> None:
        from llguidance import LLMatcher

        self._matcher: Any = LLMatcher(_bytes_as_tokens(), grammar, log_level=0)

    def takes(self, text: str) -> bool:
        """Whether the grammar allows what was written so far with this behind it. What cannot be told is let pass."""
        data = list(text.encode("utf-8", "replace"))
        matcher = self._matcher
        if matcher is None or not data:
            return True
        whole = bool(matcher.validate_tokens(data) == len(data))
        if matcher.is_error() or (whole and not matcher.consume_tokens(data)):
            self._matcher = None  # too much for this one as well
            return True
        return whole

    def may_end(self) -> bool:
        """Whether the grammar allows what was written so far as the whole answer."""
        return self._matcher is None or bool(self._matcher.is_accepting())


def require_writable(grammar: str, control: Iterable[str]) -> str:
    """A grammar, if its texts hold none of a model's control tokens: the engine writes such a text as the token itself, which
    has no text in an answer, or ends it.

    Raises:
        UnsupportedSchema: Names the text.
    """
    bare = grammar.replace(OPEN, "").replace(CLOSE, "")
    texts = tuple(control)
    # A pattern in a schema has each of its escapes escaped once more.
    told = [bare, *(_unescaped(each) for each in (bare, bare.replace("\\\\", "\\"))), _forced(grammar)] if texts else []
    for text in texts:
        if any(each in place for place in told for each in (text, json.dumps(text)[1:-1])):
            raise UnsupportedSchema(f"{text!r} is a control token of the model, which cannot be written as a text.")
    return grammar


_ESCAPED = re.compile(
    r"\\(?:x\{([0-9a-fA-F]{1,6})\}|[uU]\{([0-9a-fA-F]{1,6})\}|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([^A-Za-z0-9\s]))"
)
_ONE_OF_ONE = re.compile(r"\[([^\]\\^])(?:-?\1)*\]")
_SEAMS = re.compile(r"\(\?(?:P?<\w+>|[a-z]*:)|[\"/]\s*[\"/]|[()\"]|\{1(?:,1)?\}|(?<!\\)\{0\}")


def _unescaped(text: str) -> str:
    """A grammar with its patterns' escapes, classes of one character and groups written plainly, and neighbours joined.

    It is no grammar any more: it is what a text is looked for in, however it was written.
    """

    def plain(found: re.Match[str]) -> str:
        *codes, other = found.groups()
        code = next((int(each, 16) for each in codes if each), None)
        return other if code is None else chr(code) if code < 0x110000 else ""

    made = _ESCAPED.sub(plain, text)
    made = _ONE_OF_ONE.sub(r"\1", made)
    return _SEAMS.sub("", made)


def _forced(grammar: str) -> str:
    """What every answer begins with, whichever rules of the grammar it comes from."""
    from llguidance import LLMatcher

    matcher: Any = LLMatcher(_bytes_as_tokens(), grammar, log_level=0)
    return bytes(matcher.compute_ff_bytes()).decode("utf-8", "replace").replace(OPEN, "").replace(CLOSE, "")


def _reason(text: str) -> str:
    """What llguidance said, without its listing of the grammar."""
    first = re.sub(r"^at \d+\(\d+\): ", "", text.strip())
    return first.partition("\n  1 |")[0].partition("\n   1 |")[0].strip()[:300]


def _document(schema: Any) -> str:
    """A schema as llguidance is given it.

    Raises:
        UnsupportedSchema: It is none, too large, too deep, or has no finite value.
    """
    if schema is None:
        schema = {"type": "object"}
    try:
        text = json.dumps(schema, allow_nan=False)
    except (ValueError, RecursionError, TypeError):
        raise UnsupportedSchema("The schema is not JSON, or is nested too deeply.") from None
    if len(text) > LONGEST_SCHEMA:
        raise UnsupportedSchema(f"The schema has {len(text):,} characters; at most {LONGEST_SCHEMA:,} are taken.")
    _require_shallow(text)
    if not isinstance(schema, dict | bool):
        raise UnsupportedSchema("A schema is an object, or true or false.")
    # A grammar does not remember what a list holds: the code that answers leaves repeats out, where that can be promised.
    if '"uniqueItems"' in text:
        distinct(schema)
    made = _mapped(_mapped(schema, lambda part: _plainer(part, schema)), _repeating)
    parts = _parts(made)
    _require_countable(parts)
    if not any(_is_combined(part) for part in parts):
        # Names that a schema leaves to the model: a small one makes them up without end.
        made = _mapped(made, _closed)
    if made is not False and not _Finite(made).holds():
        raise UnsupportedSchema(
            "No finite value satisfies the schema: it refers to itself without an end.",
            "Make one of the references optional.",
        )
    if isinstance(made, dict):
        # One space, never more: a small model under a grammar that allows blanks writes them without end.
        made = {**made, "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
    return json.dumps(made)


def distinct(schema: Any) -> Distinct | None:
    """What leaves repeats out of values of a schema; None where a grammar holds all of it.

    Raises:
        UnsupportedSchema: A list may not repeat, and that cannot be promised.
    """
    if not isinstance(schema, dict):
        return None
    made = _mapped(schema, lambda part: _plainer(part, schema))
    return Distinct(made) if any(part.get("uniqueItems") is True for part in _parts(made)) else None


def _parts(schema: Any) -> list[dict[str, Any]]:
    """Every schema in a schema."""
    found: list[dict[str, Any]] = []
    _mapped(schema, lambda part: found.append(part) or part)  # type: ignore[func-returns-value]
    return found


def _repeating(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "uniqueItems" or value is not True}


def require_short(schema: Any) -> None:
    """Refuse a schema that is longer than any that is taken, before anything else is done with it.

    Raises:
        UnsupportedSchema: It is.
    """
    with contextlib.suppress(ValueError, RecursionError, TypeError):
        if (size := len(json.dumps(schema))) > LONGEST_SCHEMA:
            raise UnsupportedSchema(f"The schema has {size:,} characters; at most {LONGEST_SCHEMA:,} are taken.")


def _require_shallow(text: str) -> None:
    if len(text) > LONGEST_SCHEMA:
        raise UnsupportedSchema(f"The grammar has {len(text):,} characters; at most {LONGEST_SCHEMA:,} are taken.")
    depth = deepest = 0
    for char in text:
        if char in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in ")]}":
            depth = max(0, depth - 1)
    if deepest > 4 * DEEPEST:
        raise UnsupportedSchema(f"It is nested more than {4 * DEEPEST} deep.", "Make it flatter.")


def _mapped(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]], depth: int = 0) -> Any:
    """A schema with each schema inside it changed, innermost first."""
    if depth > DEEPEST:
        raise UnsupportedSchema(
            f"The schema is nested more than {DEEPEST} deep.", "Make it flatter, or use references."
        )
    if not isinstance(schema, dict):
        return schema

    def inner(value: Any) -> Any:
        return _mapped(value, change, depth + 1)

    made = dict(schema)
    for key in _INSIDE:
        if isinstance(made.get(key), dict):
            made[key] = inner(made[key])
    for key in (*_LISTS, "items"):
        if isinstance(made.get(key), list):
            made[key] = [inner(value) for value in made[key]]
    for key in _MAPS:
        if isinstance(made.get(key), dict):
            made[key] = {name: inner(value) for name, value in made[key].items()}
    return change(made)


def _plainer(schema: dict[str, Any], document: Any) -> dict[str, Any]:
    """A schema in words that llguidance knows, with the same values or fewer."""
    made = {key: value for key, value in schema.items() if key not in _NOTES}
    if isinstance(made.get("format"), str) and (made["format"] not in FORMATS or "pattern" in made):
        # Beside a pattern, which says more, a format is a note.
        del made["format"]
    _exact(made)
    if made.get("uniqueItems") is False or (made.get("uniqueItems") is True and made.get("maxItems") in (0, 1)):
        del made["uniqueItems"]
    if made.get("uniqueItems") is True and (rows := _permuted(made, document)) is not None:
        made = {key: value for key, value in made.items() if key not in _OF_LISTS} | {"enum": rows}
    if made.get("uniqueItems") is True and "maxItems" not in made and (values := _few_values(made, document)):
        made["maxItems"] = len(values)  # no list without repeats is longer
    if "anyOf" not in made and _told_apart(_listed(made, "oneOf"), document):
        # At most one branch holds: it is the same to say that any does, and llguidance sees no apartness through references.
        made["anyOf"] = made.pop("oneOf")
    for key, nothing in (("minContains", 0), ("minProperties", 0)):
        if made.get(key) == nothing and not isinstance(made.get(key), bool):
            del made[key]
    names = made.get("propertyNames")
    if names is True or names == {} or names == {"type": "string"}:
        del made["propertyNames"]
    elif isinstance(names, dict) and "properties" not in made and "patternProperties" not in made:
        value = made.get("additionalProperties", True)
        if (listed := _listed_names(names)) is not None:
            # Each name once and in one order: under a pattern the engine writes names that are required more than once.
            del made["propertyNames"]
            made |= {"properties": dict.fromkeys(listed, value), "additionalProperties": False}
        elif (pattern := _pattern_of_names(names)) is not None:
            del made["propertyNames"]
            made |= {"patternProperties": {pattern: value}, "additionalProperties": False}
    return made


def _require_countable(parts: list[dict[str, Any]]) -> None:
    """Refuse counts that the engine cannot hold, of all parts of a schema together: it writes each out."""
    listed, patterns = 0, []
    for part in parts:
        for key in ("minItems", "maxItems", "minProperties", "maxProperties"):
            count = part.get(key)
            if isinstance(count, int | float) and count > MOST_ITEMS:
                raise UnsupportedSchema(f"{key}: at most {MOST_ITEMS:,} can be held.", f"Leave {key} out, or lower it.")
        listed += max(int(part[key]) if isinstance(part.get(key), int) else 0 for key in ("minItems", "maxItems"))
        names = part.get("patternProperties")
        found = (part.get("pattern"), *(names if isinstance(names, dict) else ()))
        patterns += [each for each in found if isinstance(each, str)]
    if listed > 2 * MOST_ITEMS:
        raise UnsupportedSchema(
            f"minItems and maxItems of all lists are {listed:,} together; at most {2 * MOST_ITEMS:,} can be held."
        )
    _require_few_times("\n".join(patterns), "A pattern")


EXACT = (1 << 53) - 1
"""The largest integer up to which every one is a number of its own for the compiler, which reads numbers as doubles."""
_LARGEST_BOUND = (1 << 63) - 1024


def _exact(schema: dict[str, Any]) -> None:
    """Make a schema's numbers such that the compiler, which reads them as doubles, holds them: bounds become narrower.

    Raises:
        UnsupportedSchema: A value would be another one, or a bound cannot be held.
    """
    for value in (schema.get("const"), schema.get("enum")):
        for number in _numbers(value):
            if not _is_exact(number):
                raise UnsupportedSchema(f"The number {number} cannot be held exactly.", "Make it a text.")
    for key, up in (("minimum", True), ("exclusiveMinimum", True), ("maximum", False), ("exclusiveMaximum", False)):
        bound = schema.get(key)
        if isinstance(bound, bool) or not isinstance(bound, int) or abs(bound) <= EXACT:
            continue
        if (bound > _LARGEST_BOUND) if up else (bound < -_LARGEST_BOUND):
            raise UnsupportedSchema(f"{key}: {bound} cannot be held.", "Bounds are held up to 64 bits.")
        held = max(-_LARGEST_BOUND, min(_LARGEST_BOUND, bound))
        step = 1 << max(0, abs(held).bit_length() - 53)
        # An exclusive bound that is no double loses its neighbour, too: values or fewer.
        schema[key] = -(-held // step) * step if up else held // step * step


def _numbers(value: Any) -> Iterable[int | float]:
    todo = [value]
    while todo:
        each = todo.pop()
        if isinstance(each, list):
            todo += each
        elif isinstance(each, dict):
            todo += each.values()
        elif isinstance(each, int | float) and not isinstance(each, bool):
            yield each


def _is_exact(number: int | float) -> bool:
    """Whether the compiler reads a number as what it is: it multiplies its digits by a power of ten, both as doubles."""
    _, digits, exponent = Decimal(repr(number)).as_tuple()
    mantissa = int("".join(map(str, digits)))
    return mantissa <= EXACT >= abs(number) and isinstance(exponent, int) and exponent >= -22


def _is_combined(schema: dict[str, Any]) -> bool:
    """Whether properties are beside branches or a reference, so that one part may name what another allows."""
    beside = any(key in schema for key in ("anyOf", "oneOf", "$ref"))
    return "allOf" in schema or (beside and ("properties" in schema or "additionalProperties" in schema))


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """An object of named properties with no others, where the schema does not name others."""
    properties, required = schema.get("properties"), schema.get("required", [])
    speaks = ("additionalProperties", "patternProperties", "propertyNames", "minProperties", "unevaluatedProperties")
    if not isinstance(properties, dict) or not properties or any(key in schema for key in speaks):
        return schema
    if not isinstance(required, list) or not all(isinstance(name, str) and name in properties for name in required):
        return schema
    return {**schema, "additionalProperties": False}


def _few_values(schema: dict[str, Any], document: Any) -> list[Any] | None:
    """The values that a list's items are chosen from, by an enum or as booleans; None where they are not listed."""
    items = schema.get("items")
    if isinstance(items, dict) and set(items) - {"title", "description"} == {"$ref"} and isinstance(items["$ref"], str):
        items = pointed(document, items["$ref"]) if items["$ref"].startswith("#/") else None
    if schema.get("type") != "array" or not isinstance(items, dict) or "prefixItems" in schema or "enum" in schema:
        return None
    values = [True, False] if items.get("type") == "boolean" else items.get("enum")
    if not isinstance(values, list) or set(items) - {"enum", "type", "title", "description"}:
        return None
    kind = {"string": str, "integer": int, "boolean": bool}.get(str(items.get("type")))
    if "type" in items and (kind is None or any(type(value) is not kind for value in values)):
        return None
    return values


def _permuted(schema: dict[str, Any], document: Any) -> list[list[Any]] | None:
    """All lists of different values that a schema allows; None where there are too many to be written out."""
    values = _few_values(schema, document)
    if values is None or len(values) > MOST_PERMUTED:
        return None
    different = {json.dumps(value, sort_keys=True): value for value in values}
    least, most = schema.get("minItems", 0), schema.get("maxItems", len(different))
    if not isinstance(least, int) or not isinstance(most, int):
        return None
    sizes = range(least, min(most, len(different)) + 1)
    return [list(row) for size in sizes for row in itertools.permutations(different.values(), size)]


def _told_apart(branches: list[Any], document: Any) -> bool:
    """Whether branches are objects that one required property tells apart, each by values of its own."""
    if len(branches) < 2:
        return False
    tags: list[dict[str, set[str]]] = []
    for branch in branches:
        found = branch
        for _ in range(8):
            if isinstance(found, dict) and isinstance(found.get("$ref"), str) and found["$ref"].startswith("#/"):
                found = pointed(document, found["$ref"])
        if not isinstance(found, dict) or found.get("type") != "object":
            return False
        properties, required = found.get("properties"), found.get("required")
        if not isinstance(properties, dict) or not isinstance(required, list):
            return False
        told: dict[str, set[str]] = {}
        for name in required:
            part = properties.get(name) if isinstance(name, str) else None
            if isinstance(part, dict) and ("const" in part or isinstance(part.get("enum"), list)):
                values = [part["const"]] if "const" in part else part["enum"]
                if all(isinstance(value, str) for value in values):
                    told[name] = set(values)
        tags.append(told)
    for name in set.intersection(*map(set, tags)):
        values_of = [told[name] for told in tags]
        if sum(map(len, values_of)) == len(set.union(*values_of)):
            return True
    return False


def _demands_of_names(names: dict[str, Any]) -> dict[str, Any]:
    if names.get("type", "string") != "string":
        return {}
    return {key: value for key, value in names.items() if key not in ("type", "title", "description", "$schema")}


def _listed_names(names: dict[str, Any]) -> list[str] | None:
    """The names that `propertyNames` lists; None where it says more, or something else."""
    demands = _demands_of_names(names)
    values = (
        [demands["const"]] if set(demands) == {"const"} else demands.get("enum") if set(demands) == {"enum"} else None
    )
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        return None
    return values


def _pattern_of_names(names: dict[str, Any]) -> str | None:
    demands = _demands_of_names(names)
    pattern = demands.get("pattern")
    return pattern if set(demands) == {"pattern"} and isinstance(pattern, str) else None


class _Finite:
    """Whether a schema has a value that ends, as far as references go."""

    def __init__(self, document: Any) -> None:
        self._document = document
        self._known: set[str] = set()
        self._changed = True

    def holds(self) -> bool:
        """Whether it has one: references count as empty until one was seen to have a value (a least fixed point)."""
        found = False
        for _ in range(64):
            self._changed = False
            found = self._value(self._document, set())
            if found or not self._changed:
                break
        return found

    def _value(self, schema: Any, path: set[str]) -> bool:
        if not isinstance(schema, dict):
            return schema is not False
        reference = schema.get("$ref")
        if isinstance(reference, str) and not self._reference(reference, path):
            return False
        if not all(self._value(each, path) for each in _listed(schema, "allOf")):
            return False
        for key in ("anyOf", "oneOf"):
            branches = _listed(schema, key)
            if branches and not any(self._value(each, path) for each in branches):
                return False
        required = schema.get("required")
        properties = schema.get("properties")
        if isinstance(required, list) and isinstance(properties, dict) and "object" in _types(schema, "object"):
            wanted = [properties[name] for name in required if isinstance(name, str) and name in properties]
            if not all(self._value(each, path) for each in wanted) and _types(schema, "object") == ["object"]:
                return False
        least = schema.get("minItems")
        if isinstance(least, int) and least > 0 and _types(schema, "array") == ["array"]:
            first = _listed(schema, "prefixItems")[:least]
            rest = [schema["items"]] if len(first) < least and isinstance(schema.get("items"), dict) else []
            if not all(self._value(each, path) for each in (*first, *rest)):
                return False
        return True

    def _reference(self, reference: str, path: set[str]) -> bool:
        if reference in self._known:
            return True
        if reference in path:
            return False
        if not reference.startswith("#"):
            return True  # llguidance says what it thinks of others
        target = pointed(self._document, reference)
        if target is None:
            return True
        found = self._value(target, path | {reference})
        if found:
            self._known.add(reference)
            self._changed = True
        return found


def _listed(schema: dict[str, Any], key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []


def _types(schema: dict[str, Any], otherwise: str) -> list[str]:
    kind = schema.get("type", otherwise)
    return kind if isinstance(kind, list) else [kind]


def _quote(text: str) -> str:
    """Text as a literal of Lark, which reads it as JSON."""
    return json.dumps(text)
