"""Collects checks: each is a name and a function that fails by an exception. Nothing but the standard library."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Ulm", "Bern"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": CITY}}
USER = [{"role": "user", "content": "Say something short."}]
found: list[dict[str, Any]] = []


def check(name: str) -> Callable[[Callable[[], Any]], None]:
    """Run a function at once and note whether it failed."""

    def run(function: Callable[[], Any]) -> None:
        try:
            function()
            found.append({"check": name, "passed": True})
        except Exception:
            found.append({"check": name, "passed": False, "why": traceback.format_exc(limit=3)[-800:]})

    return run


def is_city(text: str) -> None:
    """The text is a value of the schema."""
    assert json.loads(text)["city"] in ("Ulm", "Bern"), text


def done() -> None:
    """Print what was found."""
    sys.stdout.write("\n" + json.dumps(found) + "\n")


def arguments() -> tuple[str, str, str]:
    """The server's address, the model and the key."""
    return sys.argv[1], sys.argv[2], sys.argv[3]
