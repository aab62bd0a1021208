"""Patterns in a source's path and of a folder's files: one reading of them, for what is read and for what is digested."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath

WILDCARD = re.compile(r"(\[!?\]?[^\]]*\]|\*+|\?)")
"""A wildcard of a pattern's part: a set of characters, stars, or a question mark."""
PACKED = (".gz", ".zst")
"""Endings of packed files; what is before them tells what is inside."""


def divided(path: Path) -> tuple[Path, str] | None:
    """The folder before a path's first wildcard, and the pattern inside it; None where there is no wildcard."""
    wild = next((index for index, part in enumerate(path.parts) if glob.has_magic(part)), None)
    return None if wild is None else (Path(*path.parts[:wild]), "/".join(path.parts[wild:]))


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a name, relative to a folder, fits one of the patterns, in either case, packed or not.

    ``**/`` is any number of folders; other wildcards stay in one. Hidden names fit as others do.
    """
    wanted = re.compile("|".join(_expression(pattern) for pattern in patterns), re.IGNORECASE | re.DOTALL)
    return lambda name: bool(wanted.fullmatch(unpacked_name(name)) or wanted.fullmatch(name))


def unpacked_name(name: str) -> str:
    """A file's name without ``.gz`` or ``.zst``."""
    suffix = PurePath(name).suffix
    return name[: -len(suffix)] if suffix.lower() in PACKED else name


def _expression(pattern: str) -> str:
    parts = pattern.split("/")
    found = ""
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if part == "**":
            found += ".*" if last else "(?:.*/)?"
        else:
            found += "".join(map(_inside_a_name, WILDCARD.split(part))) + ("" if last else "/")
    return f"(?:{found})"


def _inside_a_name(piece: str) -> str:
    """A wildcard, or what is between two, as an expression that never reaches over the end of a folder's name."""
    if WILDCARD.fullmatch(piece) is None:
        return re.escape(piece)
    if piece.startswith("*"):
        return "[^/]*"
    if piece == "?":
        return "[^/]"
    # A set has the slash where it leaves other characters out, or by a range.
    return "(?!/)" + fnmatch.translate(piece).removeprefix("(?s:").removesuffix(r")\Z").removesuffix(r")\z")
