"""From a regular expression to a grammar whose every sentence it matches.

The expression is read by Python's own parser; what a grammar cannot say (looking around, back references) is refused.
"""

from __future__ import annotations

import re
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

MOST = 32
"""Repeats of what a pattern leaves open."""
MOST_PARTS = 2000
FORMATS = {
    "date": "^(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])$",
    "time": "^([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$",
    "date-time": "^(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$",
    "uuid": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    "email": "^[a-z][a-z0-9]{0,20}@[a-z][a-z0-9]{0,20}[.][a-z]{2,6}$",
    "ipv4": "^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])[.]){3}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])$",
}
"""A pattern for each format of JSON schema that is held to; other formats are notes to the reader."""
NEVER_PLAIN = '"\\\\\\x00-\\x1F\\x7F-\\x9F\\uD800-\\uDFFF\\U00110000-\\U001FFFFF'
"""What no character of a string is as it stands, inside a class: it would have to be escaped, or is no character."""
_CLASSES = {"CATEGORY_DIGIT": "0-9", "CATEGORY_WORD": "a-zA-Z0-9_", "CATEGORY_SPACE": " "}


def quote(text: str) -> str:
    """Text as a literal of a grammar."""
    out = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    return f'"{out}"'


def pattern_rule(pattern: Any) -> str:
    """The expression for strings that a pattern matches, as JSON writes them.

    Raises:
        ValueError: The pattern is not one, or says what a grammar cannot.
    """
    if not isinstance(pattern, str) or len(pattern) > 500:
        raise ValueError("a regular expression of at most 500 characters is expected")
    try:
        parsed = list(_parser.parse(pattern))
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"not a regular expression: {error}") from None
    if (
        parsed
        and parsed[0][0] is _constants.AT
        and parsed[0][1] in (_constants.AT_BEGINNING, _constants.AT_BEGINNING_STRING)
    ):
        parsed = parsed[1:]
    if parsed and parsed[-1][0] is _constants.AT and parsed[-1][1] in (_constants.AT_END, _constants.AT_END_STRING):
        parsed = parsed[:-1]
    if _size(parsed) > MOST_PARTS:
        raise ValueError(f"it repeats more than {MOST_PARTS} parts")
    return _sequence(parsed) or '""'


def _size(parts: Any) -> int:
    """How many characters a pattern can stand for at most: repeats of repeats multiply."""
    total = 0
    for operation, value in parts:
        name = str(operation)
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            total += max(value[0], MOST if value[1] is _constants.MAXREPEAT else int(value[1])) * max(
                1, _size(value[2])
            )
        elif name == "SUBPATTERN":
            total += _size(value[3])
        elif name == "BRANCH":
            total += sum(_size(branch) for branch in value[1])
        else:
            total += 1
    return total


def _sequence(parts: Any) -> str:
    return " ".join(filter(None, (_part(operation, value) for operation, value in parts)))


def _part(operation: Any, value: Any) -> str:
    name = str(operation)
    if name == "LITERAL":
        return _literal(value)
    if name == "NOT_LITERAL":
        return f"[^{_in_class(value)}{NEVER_PLAIN}]"
    if name == "ANY":
        return f"[^{NEVER_PLAIN}]"
    if name == "IN":
        return _class(value)
    if name in ("MAX_REPEAT", "MIN_REPEAT"):
        least, most, inner = value
        if least > 500:
            raise ValueError("it repeats something more than 500 times")
        most = max(least, MOST) if most is _constants.MAXREPEAT else min(int(most), 500)
        return f"({_sequence(inner)}){{{least},{most}}}"
    if name == "SUBPATTERN":
        if value[1] or value[2]:
            raise ValueError("flags within it cannot be guaranteed")
        return "(" + (_sequence(value[3]) or '""') + ")"
    if name == "BRANCH":
        return "(" + " | ".join(_sequence(branch) or '""' for branch in value[1]) + ")"
    raise ValueError(f"{name.lower()} cannot be guaranteed")


def _literal(code: int) -> str:
    if code < 32 or 127 <= code < 160 or 0xD800 <= code < 0xE000:
        raise ValueError("it demands a control character")
    character = chr(code)
    return quote("\\" + character if character in '"\\' else character)


def _class(parts: Any) -> str:
    negated, pieces = False, []
    for operation, value in parts:
        name = str(operation)
        if name == "NEGATE":
            negated = True
        elif name == "LITERAL":
            pieces.append((value, value))
        elif name == "RANGE":
            pieces.append(value)
        elif name == "CATEGORY" and str(value) in _CLASSES:
            digits, word = [(48, 57)], [(97, 122), (65, 90), (48, 57), (95, 95)]
            pieces += {"CATEGORY_DIGIT": digits, "CATEGORY_WORD": word}.get(str(value), [(32, 32)])
        else:
            raise ValueError(f"{str(value).lower()} cannot be guaranteed in a class")
    if negated:
        inside = "".join(f"{_in_class(low)}-{_in_class(high)}" for low, high in pieces)
        return f"[^{inside}{NEVER_PLAIN}]"
    # A quote, a backslash and control characters would have to be escaped in JSON: leave them out.
    kept = [part for low, high in pieces for part in _without(low, high)]
    if not kept:
        raise ValueError("a class in it has only characters that JSON escapes")
    return (
        "["
        + "".join(f"{_in_class(low)}-{_in_class(high)}" if low != high else _in_class(low) for low, high in kept)
        + "]"
    )


def _without(low: int, high: int) -> list[tuple[int, int]]:
    found, start = [], max(low, 32)
    for code in (34, 92, 127):
        if start <= code <= high:
            if code > start:
                found.append((start, code - 1))
            start = code + 1
    if start <= high:
        found.append((start, high))
    return [(first, last) for first, last in found if not 0x80 <= first < 0xA0]


def _in_class(code: int) -> str:
    return f"\\U{code:08X}" if code > 0xFFFF else f"\\u{code:04X}" if code > 0x7E else f"\\x{code:02X}"
