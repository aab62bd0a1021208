"""Documents: what a source gives, before any tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stillroom.core.errors import CorpusError, StillroomError, first_line, translate
from stillroom.corpus.tally import Tally

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Keys of what an assistant thought before it answered."""

LONGEST = 1 << 26
"""Most bytes of one document, of one line and of one unpacked file; longer ones are refused by name."""
LINE_ENDS = "texts whose line ends \\r\\n became \\n"
UNANSWERED = "chats and prompts without an answer to learn"
NO_ANSWER = f"{UNANSWERED}, counted as empty"
OLD_LINE_ENDS = "texts whose line ends \\r became \\n"


@dataclass(frozen=True)
class Document:
    """One document: plain text, or the messages of a chat.

    Attributes:
        text: Plain text. A chat's is what it says where a tokenizer has no chat template; empty if that is an error.
        messages: Chat messages, ``{"role": …, "content": …}`` and what else a chat template reads (``tool_calls``,
            ``reasoning_content``, ``name``, …); ``"train": False`` where an answer is not to be learned. Empty for plain text.
        where: File and line, for messages to the user.
        tools: The tools that a chat's assistant may call, as the chat template takes them.
        given: Characters at the beginning of ``text`` that are given and not learned, such as a prompt.
    """

    text: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    where: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
    given: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to learn: only white space, or a chat without an assistant's words or calls."""
        if self.messages:
            return not any(
                m["role"] == "assistant"
                and m.get("train", True)
                and (m.get("tool_calls") or any(str(m.get(key) or "").strip() for key in ("content", *THOUGHTS)))
                for m in self.messages
            )
        return not self.text[self.given :].strip()

    @property
    def lacks_answer(self) -> bool:
        """Whether it has words and none of them are to be learned: a chat in which no assistant says any, or a prompt alone."""
        words = [str(message["content"] or "") for message in self.messages] or [self.text]
        return self.is_empty and any(map(str.strip, words))

    @property
    def digest(self) -> str:
        """SHA-256 of the content: what duplicates and the split go by."""
        if self.tools:
            content = json.dumps([self.messages, self.tools], sort_keys=True, ensure_ascii=False)
        elif self.messages:
            content = json.dumps(self.messages, sort_keys=True, ensure_ascii=False)
        else:
            content = f"{self.given}\0{self.text}" if self.given else self.text
        return hashlib.sha256(content.encode()).hexdigest()


def clean(text: str, where: str, tally: Tally | None = None) -> str:
    """The text with line feeds alone for Windows' line ends, counted; errors as in :func:`whole_text`."""
    if "\r\n" in text:
        text = text.replace("\r\n", "\n")
        if tally is not None:
            tally.notes[LINE_ENDS] += 1
    return whole_text(text, where)


def has_old_line_ends(text: str) -> bool:
    """Whether the lines of a file end as those of old Macs: by carriage returns alone."""
    return "\r" in text.removesuffix("\r") and "\n" not in text


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


def unforeseen(error: Exception, where: str) -> StillroomError:
    """What to tell where reading a row or rendering a chat failed in a way that no check foresaw."""
    return translate(error, where) or CorpusError(
        f"{where}: cannot be read as it is ({type(error).__name__}): {first_line(error)}",
        "Look at the kinds of its values: one is not as the row's shape has it. Mend it, or leave the row out.",
    )


def kind_of(value: Any) -> str:
    """What a value of a row is, in words."""
    names = {dict: "a mapping", list: "a list", str: "text", int: "a number", float: "a number", bool: "true or false"}
    return "nothing" if value is None else names.get(type(value), f"a {type(value).__name__}")


def common_start(one: str, two: str) -> int:
    """How many characters two texts share at their beginnings."""
    low, high = 0, min(len(one), len(two))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == two[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def common_end(one: str, two: str) -> int:
    """How many characters two texts share at their ends."""
    return common_start(one[::-1], two[::-1])
