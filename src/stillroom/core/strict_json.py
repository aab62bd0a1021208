"""Reads JSON from elsewhere: bounded, without duplicate keys."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from stillroom.core.errors import InspectionRefused


class _Wrong(ValueError):
    pass


def parse_json(data: bytes, name: str, offset: int = 0, *, infinities: bool = False) -> Any:
    """A JSON value.

    Args:
        data: The document.
        name: What messages call it.
        offset: Where it begins in its file, for messages.
        infinities: Take ``NaN`` and ``Infinity``, which configs of some families hold.

    Raises:
        InspectionRefused: Not JSON, a key stands twice, or nested too deep; says where.
    """
    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=_pairs, parse_constant=float if infinities else _constant
        )
    except UnicodeDecodeError as error:
        raise InspectionRefused(f"{name}: not UTF-8 at byte {offset + error.start}.", "Get the file again.") from None
    except json.JSONDecodeError as error:
        raise InspectionRefused(
            f"{name}: not JSON at byte {offset + len(error.doc[: error.pos].encode('utf-8', 'replace'))}: {error.msg}.",
            "Get the file again.",
        ) from None
    except _Wrong as error:
        key = str(error)
        raise InspectionRefused(
            f"{name}: the key {key!r} stands twice (byte {offset + _second(data, key)}); readers would disagree.",
            "Get the file from its owner again.",
        ) from None
    except RecursionError:
        raise InspectionRefused(f"{name}: nested too deep.", "No model needs this; do not use it.") from None
    except ValueError as error:
        raise InspectionRefused(f"{name}: {str(error)[:120]}.", "No model needs this; do not use it.") from None


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Wrong(key[:120])
            seen.add(key)
    return found


def _second(data: bytes, key: str) -> int:
    """Where a key stands the second time; where it is written with escapes, where it stands at all."""
    quoted = json.dumps(key, ensure_ascii=False).encode("utf-8", "surrogatepass")
    first = data.find(quoted)
    second = data.find(quoted, first + 1)
    return max(first, second, 0)


def _constant(text: str) -> NoReturn:
    raise ValueError(f"the number {text} is not JSON")
