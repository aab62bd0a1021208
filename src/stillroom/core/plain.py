"""Text from files, models and networks as it may be shown on a terminal: control characters are written out, not sent.

A terminal obeys what it is sent: it can be told to move the cursor, to draw over what is there, to set titles and the
clipboard. Signs that change the direction of writing make a name read otherwise than it is.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

_CONTROL = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and line feed, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction of writing
    "\u2028\u2029\ufeff\ufff9-\ufffb"  # line and paragraph separators, marks of interlinear notes
    "\ud800-\udfff"  # halves of characters
    "\U000e0000-\U000e007f"  # tags, which no one sees
)
_SENT = re.compile(f"[{_CONTROL}]")
_SENT_IN_LINE = re.compile(f"[{_CONTROL}\n]")


def shown(text: str, *, one_line: bool = False) -> str:
    r"""A text with its control characters written out (``\u001b``, ``\u202e``).

    Args:
        text: Any text.
        one_line: Write out line feeds as well: for a value within a line, which must not begin another.
    """
    return (_SENT_IN_LINE if one_line else _SENT).sub(_written, text)


def _written(found: re.Match[str]) -> str:
    if found[0] == "\n":
        return "\\n"
    # As JSON writes them, so that a text of JSON stays the same value.
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def guard_terminal() -> None:
    """Let every text that commands print, and every text of a table, pass :func:`shown`; what draws colours stays."""
    import typer

    original = typer.echo
    if getattr(original, "guarded", False):
        return

    def echo(message: Any = None, *arguments: Any, **options: Any) -> None:
        if message is not None and not isinstance(message, bytes | bytearray):
            message = shown(str(message))
        original(message, *arguments, **options)

    echo.guarded = True  # type: ignore[attr-defined]
    typer.echo = echo


def guard_tables() -> None:
    """The same for the texts that Rich draws: it takes out five control characters and leaves the rest."""
    import rich.text

    rich.text.strip_control_codes = shown  # type: ignore[attr-defined, assignment]


def public_name(value: str) -> str:
    """A text as it may be published: of an absolute path only its last part."""
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(value)
        if "\n" not in value and (path.is_absolute() or value.startswith(("~/", "~\\"))):
            return path.name or "PATH"
    return value
