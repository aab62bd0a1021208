"""The beginning of the Universal Declaration of Human Rights, which Stillroom carries in 32 languages."""

from __future__ import annotations

import functools
import json
from importlib.resources import files as resources


@functools.cache
def samples() -> dict[str, tuple[str, str]]:
    """Name and text of every language, by its code."""
    content = json.loads(resources("stillroom.corpus").joinpath("udhr.json").read_text(encoding="utf-8"))
    return {code: (entry["name"], entry["text"]) for code, entry in content["languages"].items()}
