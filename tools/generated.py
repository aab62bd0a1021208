"""Pages that programs write: written, or checked for being fresh (`--check`)."""

from __future__ import annotations

import sys
from pathlib import Path


def cell(text: str) -> str:
    """Text for a cell of a table, where a bar would end it: in code, too."""
    return " ".join(text.split()).replace("|", "\\|")


def write_or_check(target: Path, fresh: str) -> int:
    """Write a page, or say with `--check` on the command line that it is stale; returns the exit code."""
    if "--check" in sys.argv:
        if not target.is_file() or target.read_text(encoding="utf-8") != fresh:
            sys.stderr.write(f"{target.name} is stale; run `make docs`.\n")
            return 1
        return 0
    target.write_text(fresh, encoding="utf-8")
    return 0
