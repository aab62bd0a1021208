"""Reads JSON from elsewhere: the one strict reader, bounded and without surprises."""

from __future__ import annotations

import json
from typing import Any, Literal, NoReturn

from stillroom.core.errors import InspectionRefused

Mistake = Literal["size", "encoding", "syntax", "key", "depth", "number"]


class NotStrict(ValueError):
    """What is wrong with a JSON document. Its text is a message; the attributes let a caller write its own.

    Attributes:
        kind: What is wrong.
        detail: The reader's reason for a mistake of syntax, the key that is there twice, or the number.
        byte: Where in the document, from 0.
        line: The line of a mistake of syntax, from 1.
        column: Its column, from 1.
    """

    def __init__(
        self, kind: Mistake, message: str, detail: str = "", byte: int = 0, line: int = 0, column: int = 0
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.detail = detail
        self.byte = byte
        self.line = line
        self.column = column


class Twice(ValueError):
    """An object holds a key twice. The text is the key."""


def read_strict(data: bytes, *, limit: int | None = None, infinities: bool = False, key_twice: bool = False) -> Any:
    """A JSON value.

    Nesting is bounded by Python's limit of recursion, far above what any document of ours or of a model needs.

    Args:
        data: The document, in UTF-8.
        limit: Bytes that it may have at the most.
        infinities: Take ``NaN`` and ``Infinity``, which are not JSON.
        key_twice: Take an object that holds a key twice; the last one counts.

    Raises:
        NotStrict: Says what is wrong and where.
    """
    if limit is not None and len(data) > limit:
        raise NotStrict("size", f"larger than {limit:,} bytes", byte=limit)
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=None if key_twice else once_each,
            parse_constant=float if infinities else _constant,
        )
    except UnicodeDecodeError as error:
        raise NotStrict("encoding", f"not UTF-8 at byte {error.start}", byte=error.start) from None
    except json.JSONDecodeError as error:
        byte = len(error.doc[: error.pos].encode("utf-8", "replace"))
        raise NotStrict("syntax", str(error), error.msg, byte, error.lineno, error.colno) from None
    except Twice as error:
        key = str(error)
        raise NotStrict("key", f"the key {key[:80]!r} is there twice", key, _second(data, key)) from None
    except RecursionError:
        raise NotStrict("depth", "it is nested too deeply") from None
    except ValueError as error:
        raise NotStrict("number", str(error), str(error)) from None


def parse_json(data: bytes, name: str, offset: int = 0, *, infinities: bool = False) -> Any:
    """A JSON value of a model's file: :func:`read_strict` with messages about that file.

    Args:
        data: The document.
        name: What messages call it.
        offset: Where it begins in its file, for messages.
        infinities: Take ``NaN`` and ``Infinity``, which configs of some families hold.

    Raises:
        InspectionRefused: Not JSON, a key is there twice, or nested too deep; says where.
    """
    try:
        return read_strict(data, infinities=infinities)
    except NotStrict as error:
        place = f"byte {offset + error.byte}"
        what, advice = {
            "encoding": (f"not UTF-8 at {place}", "Get the file again."),
            "syntax": (f"not JSON at {place}: {error.detail}", "Get the file again."),
            "key": (
                f"the key {error.detail[:120]!r} is there twice ({place}); readers would disagree",
                "Get the file from its owner again.",
            ),
            "depth": ("nested too deep", "No model needs this; do not use it."),
        }.get(error.kind, (str(error)[:120], "No model needs this; do not use it."))
        raise InspectionRefused(f"{name}: {what}.", advice) from None


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON from its keys and values, for ``object_pairs_hook``.

    Raises:
        Twice: A key is there twice.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise Twice(key)
            seen.add(key)
    return found


def _second(data: bytes, key: str) -> int:
    """Where a key is the second time; where it is written with escapes, where it is at all."""
    quoted = json.dumps(key, ensure_ascii=False).encode("utf-8", "surrogatepass")
    first = data.find(quoted)
    second = data.find(quoted, first + 1)
    return max(first, second, 0)


def _constant(text: str) -> NoReturn:
    raise ValueError(f"the number {text} is not JSON")
