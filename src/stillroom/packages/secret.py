"""Asks for a passphrase: a file descriptor, an environment variable or a prompt."""

from __future__ import annotations

import os
import sys

from stillroom.core.errors import UsageError

VARIABLE = "STILLROOM_PASSPHRASE"


def passphrase(descriptor: int | None = None, *, again: bool = False) -> str:
    """The passphrase of a ring. It is never shown, logged or written.

    Args:
        descriptor: An open file descriptor to read it from, up to the first line end.
        again: Ask twice, for a new passphrase.

    Raises:
        UsageError: There is no way to ask, or both answers differ.
    """
    if descriptor is not None:
        try:
            with os.fdopen(os.dup(descriptor), encoding="utf-8") as stream:
                return stream.readline().rstrip("\r\n")
        except (OSError, UnicodeDecodeError):
            raise UsageError(
                f"The file descriptor {descriptor} gives no passphrase.", "Open it: `--passphrase-fd 3 3<file`."
            ) from None
    if VARIABLE in os.environ:
        return os.environ[VARIABLE]
    if not sys.stdin.isatty():
        raise UsageError(
            "A passphrase is needed, and this is not a terminal.", f"Set {VARIABLE}, or give --passphrase-fd."
        )
    import getpass

    said = getpass.getpass("Passphrase: ")
    if again and said != getpass.getpass("Again: "):
        raise UsageError("The two passphrases differ.", "Give the command again.")
    return said
