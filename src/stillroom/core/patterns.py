"""Patterns in a source's path and of a folder's files: one reading of them, for what is read and for what is digested."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath

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
    wanted = re.compile("|".join(_expression(pattern) for pattern in patterns), re.IGNORECASE)
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
            # fnmatch's star reaches over folders; here it stays in one.
            own = fnmatch.translate(part).removeprefix("(?s:").removesuffix(r")\Z").removesuffix(r")\z")
            found += own.replace(".*", "[^/]*") + ("" if last else "/")
    return f"(?:{found})"
