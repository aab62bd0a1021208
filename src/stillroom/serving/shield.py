"""Contents are data: what somebody writes into a conversation never becomes the model's markup.

A chat template writes contents and markup into one text, and a tokenizer that looks for markup in it finds it in both. So
before a conversation is rendered, every text of a control token in a content is replaced by a stand-in that no client can
know; after it, the text is split at the stand-ins, and what they stand for is tokenized as plain text. A conversation without
such texts is rendered as it is.
"""

from __future__ import annotations

import functools
import re
import secrets

STANDIN = "stillroomStandIn"


@functools.lru_cache(maxsize=64)
def _pattern(texts: tuple[str, ...]) -> re.Pattern[str]:
    # The longest first, as tokenizers do. A pattern that matches nothing where there are none.
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or r"(?!)")


class Shield:
    """Stand-ins for one request.

    Args:
        control: Texts of the model's control tokens.
        markup: Texts of further tokens that only the template, or the assistant itself, may write.
    """

    def __init__(self, control: tuple[str, ...], markup: tuple[str, ...] = ()) -> None:
        self._control = _pattern(control)
        self._all = _pattern((*control, *markup))
        self._mark = f"{STANDIN}{secrets.token_hex(12)}n"
        self._found: list[str] = []
        self._finder = re.compile(f"{self._mark}([0-9]+)x")

    @property
    def used(self) -> bool:
        """Whether anything had to be replaced."""
        return bool(self._found)

    def protect(self, text: str, own: bool = False) -> str:
        """A content with stand-ins.

        Args:
            text: The content.
            own: It is the assistant's: tokens such as ``<think>``, which it writes itself, stay what they are.
        """
        return (self._control if own else self._all).sub(self._replace, text)

    def restore(self, text: str) -> str:
        """A text as it was before."""
        return self._finder.sub(lambda found: self._found[int(found[1])], text)

    def parts(self, text: str) -> list[tuple[str, bool]]:
        """A rendered text in parts: each with whether it is a content that must be tokenized as plain text."""
        pieces = self._finder.split(text)
        found = [(self._found[int(piece)], True) if index % 2 else (piece, False) for index, piece in enumerate(pieces)]
        return [(piece, data) for piece, data in found if piece]

    def _replace(self, found: re.Match[str]) -> str:
        self._found.append(found[0])
        return f"{self._mark}{len(self._found) - 1}x"
