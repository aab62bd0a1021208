"""Documents: what a source gives, before any tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.core.errors import CorpusError

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Document:
    """One document: plain text, or the messages of a chat.

    Attributes:
        text: Plain text. A chat's is what it says where a tokenizer has no chat template; empty if that is an error.
        messages: Chat messages, ``{"role": …, "content": …}``; empty for plain text.
        where: File and line, for messages to the user.
    """

    text: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    where: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to learn: only white space, or a chat without an assistant's words."""
        if self.messages:
            return not any(m["role"] == "assistant" and str(m["content"]).strip() for m in self.messages)
        return not self.text.strip()

    @property
    def digest(self) -> str:
        """SHA-256 of the content: what duplicates and the split go by."""
        content = json.dumps(self.messages, sort_keys=True, ensure_ascii=False) if self.messages else self.text
        return hashlib.sha256(content.encode()).hexdigest()


def document_of(row: Mapping[str, Any], text_key: str | None, messages_key: str | None, where: str) -> Document:
    """The document in a row of JSON Lines, Parquet or a dataset.

    A value that is null is an empty document.

    Args:
        row: The row.
        text_key: Key of plain text, or None to look for ``text`` unless messages are there.
        messages_key: Key of messages, or None to look for ``messages``.
        where: File and line.

    Raises:
        CorpusError: A key is missing or a value has the wrong shape.
    """
    if messages_key is None and text_key is None:
        messages_key = "messages" if "messages" in row else None
        text_key = "text" if messages_key is None else None
    key = messages_key or text_key or "text"
    if key not in row:
        raise CorpusError(
            f"{where}: no key `{key}`; there are: {', '.join(map(str, row)) or 'none'}.",
            "Name the right one as `text_key` or `messages_key` in the recipe.",
        )
    value = row[key]
    if value is None:
        return Document(where=where)
    if key != messages_key:
        if not isinstance(value, str):
            raise CorpusError(f"{where}: `{key}` holds {_kind(value)}, not text.", "Name another key as `text_key`.")
        return Document(text=whole_text(value, where), where=where)
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(m, Mapping) for m in value):
        raise CorpusError(
            f"{where}: `{key}` holds {_kind(value)}, not a list of messages.",
            'A message looks like {"role": "user", "content": "…"}.',
        )
    return Document(messages=tuple(_message(message, where) for message in value), where=where)


def _message(message: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    if "role" not in message or "content" not in message:
        keys = ", ".join(f"`{key}`" for key in message) or "nothing"
        raise CorpusError(
            f"{where}: a message has {keys} where `role` and `content` are needed.",
            'A message looks like {"role": "user", "content": "…"}.',
        )
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise CorpusError(f"{where}: a message has the role {role!r}.", f"Roles are: {', '.join(ROLES)}.")
    if not isinstance(content, str):
        raise CorpusError(
            f"{where}: the {role}'s message has {_kind(content)} as its `content`.", "Give the words as one text."
        )
    return {"role": role, "content": whole_text(content, where)}


def whole_text(text: str, where: str) -> str:
    """The text, if it can be written as UTF-8.

    Raises:
        CorpusError: It has half a character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"{where}: character {error.start} of the text is half a character (\\u{ord(text[error.start]):04x}).",
            "Write the text again with whole characters.",
        ) from None
    return text


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", int: "a number", float: "a number", bool: "true or false"}
    return "nothing" if value is None else names.get(type(value), f"a {type(value).__name__}")
