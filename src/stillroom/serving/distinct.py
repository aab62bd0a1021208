"""Lists whose values may not repeat (``uniqueItems``), where all of them are too many for a grammar.

A grammar cannot remember what a list holds. So the answer is held back until it is whole, and a value that repeats an earlier
one of its list is left out of it, with a word about how many were. A list that loses repeats keeps every other promise of its
schema only where the schema does not count: whatever else may apply to such a list is looked at before anything is written,
and refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from stillroom.core.errors import UsageError

_COUNTING = ("oneOf", "not", "if", "contains", "unevaluatedItems", "unevaluatedProperties", "dependentSchemas",
             "$dynamicRef", "$recursiveRef")  # fmt: skip
_MOST_PLACES = 2000
DECODER = json.JSONDecoder(parse_float=Decimal, parse_int=Decimal)
_BLANK = re.compile(r"[ \t\n\r]*")

Place = tuple[dict[str, Any], ...]
"""All parts of a schema that may describe one place of a value."""


class UnsupportedSchema(UsageError):
    """A schema or grammar that cannot be held, or that nothing can satisfy."""


class Distinct:
    """Leaves repeats out of values of one schema.

    Args:
        document: The schema, in words that llguidance knows but for `uniqueItems`.

    Raises:
        UnsupportedSchema: Such a list cannot be promised.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._root = self._place([document])
        self._require_uncounted()

    @classmethod
    def of_checked(cls, document: dict[str, Any]) -> Distinct:
        """The same of a schema that was looked at before."""
        found = cls.__new__(cls)
        found._document = document
        found._root = found._place([document])
        return found

    @property
    def document(self) -> dict[str, Any]:
        """The schema."""
        return self._document

    def text(self, text: str, at: int = 0) -> tuple[str, int, int]:
        """A value without its repeats, how many were left out, and where the value ended in the text.

        Raises:
            ValueError: It is no JSON.
        """
        made, _, left, end = self._value(text, at, self._root)
        return made, left, end

    def _require_uncounted(self) -> None:
        """Refuse a schema in which leaving a value out may break another promise."""
        seen: set[tuple[int, ...]] = set()
        todo = [self._root]
        while todo:
            place = todo.pop()
            known = tuple(sorted(map(id, place)))
            if known in seen:
                continue
            seen.add(known)
            if len(seen) > _MOST_PLACES:
                raise UnsupportedSchema("uniqueItems in a schema of too many places.", "Make it simpler.")
            for part in place:
                for key in _COUNTING:
                    if key in part:
                        raise UnsupportedSchema(f"uniqueItems cannot be guaranteed beside {key}.", f"Leave {key} out.")
                fixed = [part["const"]] if "const" in part else part.get("enum", [])
                if any(_repeats(value) for value in fixed):
                    raise UnsupportedSchema("uniqueItems cannot be guaranteed beside values of enum that repeat.")
            if _demanded(place):
                for part in place:
                    for key in ("prefixItems", "enum", "const"):
                        if key in part:
                            raise UnsupportedSchema(f"uniqueItems cannot be guaranteed beside {key}.")
                    least = part.get("minItems", 0)
                    if isinstance(part.get("items"), list) or not isinstance(least, int) or least > 1:
                        raise UnsupportedSchema(
                            f"uniqueItems cannot be guaranteed for lists of at least {least} values.",
                            "Leave uniqueItems or minItems out, or name all values by an enum of a few.",
                        )
            todo += self._inside(place)

    def _inside(self, place: Place) -> Iterator[Place]:
        names = {name for part in place for name in _map(part, "properties")}
        for name in names:
            yield self._named(place, name)
        yield self._place(
            [
                each
                for part in place
                for each in (*_map(part, "patternProperties").values(), part.get("additionalProperties"))
            ]
        )
        longest = max((len(_first(part)) for part in place), default=0)
        for index in range(longest + 1):
            yield self._at(place, index)

    def _place(self, schemas: list[Any]) -> Place:
        """Everything that schemas say of one place: themselves, their branches, and what they refer to."""
        found: dict[int, dict[str, Any]] = {}
        todo = list(schemas)
        while todo:
            part = todo.pop()
            if not isinstance(part, dict) or id(part) in found:
                continue
            found[id(part)] = part
            for key in ("anyOf", "allOf", "oneOf"):
                todo += part.get(key, ()) if isinstance(part.get(key), list) else ()
            if isinstance(part.get("$ref"), str):
                target = pointed(self._document, part["$ref"]) if part["$ref"].startswith("#") else None
                if target is None:
                    raise UnsupportedSchema(
                        f"uniqueItems cannot be guaranteed beside the reference {part['$ref'][:100]}."
                    )
                todo.append(target)
        return tuple(found.values())

    def _named(self, place: Place, name: str) -> Place:
        found: list[Any] = []
        for part in place:
            properties = _map(part, "properties")
            found += [each for pattern, each in _map(part, "patternProperties").items() if _matches(pattern, name)]
            found.append(properties[name] if name in properties else part.get("additionalProperties"))
        return self._place(found)

    def _at(self, place: Place, index: int) -> Place:
        found: list[Any] = []
        for part in place:
            first = _first(part)
            rest = part.get("additionalItems") if isinstance(part.get("items"), list) else part.get("items")
            found.append(first[index] if index < len(first) else rest)
        return self._place(found)

    def _value(self, text: str, at: int, place: Place) -> tuple[str, Any, int, int]:
        """A value's text without repeats, what it is equal by, how many were left out, and its end."""
        at = _after_blank(text, at)
        if text.startswith("{", at):
            return self._object(text, at + 1, place)
        if text.startswith("[", at):
            return self._list(text, at + 1, place)
        value, end = DECODER.raw_decode(text, at)
        return text[at:end], (type(value).__name__, value), 0, end

    def _object(self, text: str, at: int, place: Place) -> tuple[str, Any, int, int]:
        pieces: list[str] = []
        same: dict[str, Any] = {}
        left = 0
        at = _after_blank(text, at)
        while not text.startswith("}", at):
            begun = at
            name, at = DECODER.raw_decode(text, at)
            written = text[begun:at]
            at = _after(text, at, ":")
            made, same[name], count, at = self._value(text, at, self._named(place, name))
            pieces.append(f"{written}: {made}")
            left += count
            at = _after_blank(text, at)
            if not text.startswith("}", at):
                at = _after_blank(text, _after(text, at, ","))
        return "{" + ", ".join(pieces) + "}", ("object", frozenset(same.items())), left, at + 1

    def _list(self, text: str, at: int, place: Place) -> tuple[str, Any, int, int]:
        pieces: list[str] = []
        same: list[Any] = []
        held: set[Any] = set()
        left = index = 0
        once = _demanded(place)
        at = _after_blank(text, at)
        while not text.startswith("]", at):
            made, key, count, at = self._value(text, at, self._at(place, index))
            if once and key in held:
                left += 1
            else:
                pieces.append(made)
                same.append(key)
                held.add(key)
                left += count
            index += 1
            at = _after_blank(text, at)
            if not text.startswith("]", at):
                at = _after_blank(text, _after(text, at, ","))
        return "[" + ", ".join(pieces) + "]", ("list", tuple(same)), left, at + 1


def _first(part: dict[str, Any]) -> list[Any]:
    for key in ("prefixItems", "items"):
        if isinstance(part.get(key), list):
            return list(part[key])
    return []


def _demanded(place: Place) -> bool:
    return any(part.get("uniqueItems") is True for part in place)


def _map(part: dict[str, Any], key: str) -> dict[str, Any]:
    value = part.get(key)
    return value if isinstance(value, dict) else {}


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error:
        return True


def _repeats(value: Any) -> bool:
    """Whether a list in a value holds a value twice."""
    if isinstance(value, dict):
        return any(map(_repeats, value.values()))
    if not isinstance(value, list):
        return False
    told = [json.dumps(each, sort_keys=True) for each in value]
    return len(set(told)) < len(told) or any(map(_repeats, value))


def _after_blank(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _after(text: str, at: int, mark: str) -> int:
    at = _after_blank(text, at)
    if not text.startswith(mark, at):
        raise ValueError(f"{mark} is expected")
    return at + 1


def pointed(document: Any, reference: str) -> Any:
    """What a reference within a document points at; None where there is nothing."""
    target = document
    for step in reference[1:].strip("/").split("/") if reference not in ("#", "#/") else []:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(target, dict) and step in target:
            target = target[step]
        elif isinstance(target, list) and step in map(str, range(len(target))):
            target = target[int(step)]
        else:
            return None
    return target
