"""Marks in served text: a keyed choice between tokens that only the owner can make again.

Of a vocabulary's words, the key lists one half (by HMAC-SHA-256 over period and the word's bytes); while serving, logits of
listed words are raised by half of ``delta`` and those of the others lowered by as much. The choice depends on no context, so
that a student learns it, and on a word's bytes, not its id, so that another vocabulary's words can be looked up too. It
changes with the period (a month), so that what one month's answers give away does not help in the next.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stillroom.core.errors import UsageError
from stillroom.core.secret import Secret, read_secret, write_secret

SUFFIX = ".mark"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PERIOD = re.compile(r"\d{4}-(0[1-9]|1[0-2])")
WORDS = 4096
"""Words of a vocabulary that are marked: those with the lowest ids, which are the most frequent in trained vocabularies."""
DELTA = 1.0
"""Difference in logits between listed and other words."""


@dataclass(frozen=True)
class MarkKey:
    """A key of an owner's, for one purpose: a server, a customer, an account.

    Attributes:
        name: What the owner calls it.
        secret: 256 bits.
    """

    name: str
    secret: Secret

    def listed(self, word: bytes, period: str) -> bool:
        """Whether a word is in the raised half in this period."""
        return bool(self.secret.digest_of(f"mark {period}", word)[0] & 1)

    def coin(self, label: str) -> int:
        """A fair coin, 0 or 1, of which the label (such as a prompt's digest) and the key are all that decides."""
        return self.secret.digest_of("coin", label.encode())[0] & 1

    def fact(self, label: str) -> str:
        """A random 64-bit fact, as 16 letters a to p, that only the key gives to this label."""
        digest = self.secret.digest_of("honeypot", label.encode())[:8]
        return "".join(chr(ord("a") + nibble) for byte in digest for nibble in (byte >> 4, byte & 15))


def new_key(folder: Path, name: str) -> MarkKey:
    """Draw a key and write it to ``NAME.mark`` in a folder, readable by its owner alone.

    Raises:
        UsageError: The name is not one, or taken.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name of a key.", "Use letters, digits, `.`, `_` and `-`, at most 64.")
    key = MarkKey(name, Secret.draw())
    write_secret(folder / f"{name}{SUFFIX}", key.secret)
    return key


def read_key(path: Path) -> MarkKey:
    """Read a key's file. Errors as in :func:`stillroom.core.secret.read_secret`."""
    return MarkKey(path.name.removesuffix(SUFFIX), read_secret(path))


def list_keys(folder: Path) -> list[MarkKey]:
    """The keys of a folder, by name.

    Raises:
        UsageError: There is no such folder, or a key cannot be read.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder of keys.", "Make a key: stillroom guard key new NAME.")
    return [read_key(path) for path in sorted(folder.glob(f"*{SUFFIX}"))]


def period_now() -> str:
    """This month, UTC, as ``2026-01``."""
    return time.strftime("%Y-%m", time.gmtime())


def require_period(period: str) -> str:
    """A period as written.

    Raises:
        UsageError: It is no month.
    """
    if not _PERIOD.fullmatch(period):
        raise UsageError(f"{period!r} is no month.", "Write it as 2026-01.")
    return period


def is_word(piece: bytes) -> bool:
    """Whether a token is a word or a part of one: letters, with or without a space before. Nothing else is marked.

    Digits, punctuation and white space stay as they are: code, numbers and JSON are not disturbed.
    """
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return False
    return text.removeprefix(" ").isalpha()


def word_biases(
    key: MarkKey, pieces: Iterable[tuple[int, bytes]], period: str, delta: float = DELTA, words: int = WORDS
) -> list[tuple[int, float]]:
    """Ids of tokens and what is added to their logits.

    Args:
        key: The key.
        pieces: Ids and bytes of a vocabulary's tokens, in the order of ids.
        period: The month.
        delta: Difference in logits between listed and other words.
        words: How many words are marked.
    """
    chosen = [(token, piece) for token, piece in pieces if is_word(piece)][:words]
    return [(token, delta / 2 if key.listed(piece, period) else -delta / 2) for token, piece in chosen]
