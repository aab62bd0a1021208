"""Reduces what identifies people and what they wrote to keyed digests.

Every digest is keyed BLAKE2b with 64 bits under the store's own secret: equal values are seen to be equal inside one store, and
no one without the key can try values against them. A prompt becomes two digests and one flag:

- *skeleton*: of the first words of the system message and of the last user message, after numbers, quoted text, addresses and
  capitalised words inside a sentence were masked. Requests that were made from one template share it;
- *fill*: of the whole text, apart from case and white space. It says whether the same text was sent again, no matter by whom;
- *asks for reasoning*: whether the text asks the model to show its steps.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from dataclasses import dataclass

HEAD_WORDS = 6
"""Words of each message that make its skeleton."""
TEXT_LIMIT = 20_000
"""Characters of a text of which the fill is made; its length is part of the fill."""
_MASKS = re.compile(
    r"(?P<quoted>\"[^\"\n]{0,400}\"|“[^”\n]{0,400}”|`[^`\n]{0,400}`)|(?P<url>\bhttps?://\S+|\S+@\S+)|(?P<number>\d[\d.,:/%-]*)"
)
_NAME = re.compile(r"(?<=[a-z,;] )[A-Z]\w+")
_REASONING = re.compile(
    r"step[ -]by[ -]step|chain[ -]of[ -]thought|show (?:all )?(?:your|the) (?:work|reasoning|steps|thinking)"
    r"|explain your (?:reasoning|thinking)|think (?:aloud|out loud|through)|reasoning (?:trace|steps|process)"
    r"|schritt f[uü]r schritt|paso a paso|[eé]tape par [eé]tape|一步一步|逐步|思维链|ステップ",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Text:
    """What is kept of a request's text.

    Attributes:
        skeleton: Digest of the masked beginning.
        fill: Digest of the whole.
        cot: Whether it asks for the model's reasoning.
        masked: The masked beginning itself, for stores that keep it.
    """

    skeleton: int
    fill: int
    cot: bool
    masked: str


class Redactor:
    """Makes keyed digests.

    Args:
        key: The store's secret, 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.value = functools.lru_cache(maxsize=200_000)(self._value)

    def _value(self, kind: str, text: str) -> int:
        """The digest of a value of a kind, from 1 to 2^64 - 1; 0 stands for "not in the log"."""
        data = f"{kind}\0{text}".encode("utf-8", "replace")
        return int.from_bytes(hashlib.blake2b(data, key=self._key, digest_size=8).digest(), "little") or 1

    def text(self, system: str, user: str) -> Text:
        """What is kept of a request's text: of its system message and its last user message."""
        masked = " | ".join(part for part in (skeleton(system), skeleton(user)) if part)
        # A product's fixed system message says more about its requests than the users' words do.
        family = skeleton(system) if system else skeleton(user)
        whole = f"{len(user)} {' '.join(user[:TEXT_LIMIT].lower().split())}"
        return Text(
            self.value("skeleton", family),
            self._value("fill", whole),
            bool(_REASONING.search(user[:TEXT_LIMIT]) or _REASONING.search(system[:TEXT_LIMIT])),
            masked,
        )


def skeleton(text: str) -> str:
    """The first words of a text with what varies inside a template masked."""
    head = text[:800]
    masked = _MASKS.sub(lambda found: {"quoted": "Q", "url": "U", "number": "#"}[str(found.lastgroup)], head)
    masked = _NAME.sub("N", masked)
    return " ".join(masked.lower().split()[:HEAD_WORDS])


def printable(text: str, limit: int = 80) -> str:
    """A name from a log as it may be shown: one line, no control or formatting characters, of bounded length."""
    shown = "".join(
        character if unicodedata.category(character)[0] not in "CZ" or character == " " else "�"
        for character in text[: limit + 1]
    )
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"
