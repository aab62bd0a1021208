"""Tool calls in answers: how tools are offered, what counts as a call, and whether it is the right one.

A call is read from JSON (``{"name": …, "arguments": {…}}``, in a list or alone, also inside ``<tool_call>`` tags or a code
fence) or from Python's own form (``name(key=value)``). Only a call of an offered tool counts as one.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

Call = tuple[str, dict[str, Any]]
Tools = tuple[dict[str, Any], ...]


def instructions(tools: Tools) -> str:
    """The system message that offers tools."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        "You can call functions. If one of them answers the request, reply only with JSON of this form: "
        '{"name": "function_name", "arguments": {"key": "value"}}. '
        "If none of them fits, do not call any; say so in words.\n\nFunctions:\n" + listed
    )


def calls_in(answer: str, tools: Tools) -> list[Call]:
    """Every call of an offered tool in an answer."""
    names = {_plain(tool["name"]) for tool in tools}
    found = [call for call in _json_calls(answer) if _plain(call[0]) in names]
    return found or [call for call in _python_calls(answer) if _plain(call[0]) in names]


def is_right_call(truth: dict[str, dict[str, list[Any]]], tools: Tools) -> Callable[[str], bool]:
    """Whether an answer is exactly one call, of the right tool, with accepted values and nothing besides.

    Args:
        truth: Name, and for each parameter the accepted values; "" among them says that it may be left out.
        tools: What was offered.
    """
    (name, accepted), *_ = truth.items()
    required: list[str] = next((tool["parameters"].get("required", []) for tool in tools if tool["name"] == name), [])

    def check(answer: str) -> bool:
        calls = calls_in(answer, tools)
        if len(calls) != 1 or _plain(calls[0][0]) != _plain(name):
            return False
        given = calls[0][1]
        if any(key not in accepted for key in given):
            return False
        for key, values in accepted.items():
            if key not in given:
                if key in required or "" not in values:
                    return False
            elif not any(_same(given[key], value) for value in values):
                return False
        return True

    return check


def makes_no_call(tools: Tools) -> Callable[[str], bool]:
    """Whether an answer says something and calls nothing."""
    return lambda answer: bool(answer.strip()) and not calls_in(answer, tools)


def _plain(name: str) -> str:
    return str(name).replace(".", "_")


def _same(given: object, accepted: object) -> bool:
    """Equal values: numbers by value, texts without case, spaces and punctuation, lists and objects by their parts."""
    if isinstance(given, bool) or isinstance(accepted, bool):
        return given is accepted
    if isinstance(given, int | float) and isinstance(accepted, int | float):
        return float(given) == float(accepted)
    if isinstance(given, str) and isinstance(accepted, str):
        return re.sub(r"[\s,./\-_*^']", "", given).lower() == re.sub(r"[\s,./\-_*^']", "", accepted).lower()
    if isinstance(given, list | tuple) and isinstance(accepted, list | tuple):
        return len(given) == len(accepted) and all(_same(a, b) for a, b in zip(given, accepted, strict=True))
    if isinstance(given, dict) and isinstance(accepted, dict):
        # Each of an object's values is itself a list of accepted ones.
        return all(key in accepted for key in given) and all(
            any(_same(given[key], value) for value in values) if key in given else "" in values
            for key, values in accepted.items()
            if isinstance(values, list)
        )
    return bool(given == accepted)


def _json_calls(answer: str) -> Iterator[Call]:
    decoder = json.JSONDecoder()
    place = 0
    while True:
        starts = [at for at in (answer.find("{", place), answer.find("[", place)) if at >= 0]
        if not starts:
            return
        begin = min(starts)
        try:
            value, place = decoder.raw_decode(answer, begin)
        except (json.JSONDecodeError, RecursionError):
            place = begin + 1
            continue
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, dict):
                entry = entry.get("function", entry) if isinstance(entry.get("function"), dict) else entry
                arguments = entry.get("arguments", entry.get("parameters", {}))
                if isinstance(entry.get("name"), str) and isinstance(arguments, dict):
                    yield entry["name"], arguments


def _python_calls(answer: str) -> Iterator[Call]:
    for match in re.finditer(r"[A-Za-z_][\w.]*\(", answer):
        depth = 0
        for end in range(match.end() - 1, min(len(answer), match.end() + 2000)):
            depth += {"(": 1, ")": -1}.get(answer[end], 0)
            if depth == 0:
                call = _parsed(answer[match.start() : end + 1])
                if call is not None:
                    yield call
                break


def _parsed(text: str) -> Call | None:
    try:
        node = ast.parse(text, mode="eval").body
        if not isinstance(node, ast.Call) or node.args:
            return None
        return ast.unparse(node.func), {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg}
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
