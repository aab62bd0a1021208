"""Rows of JSON Lines, CSV, Parquet and datasets to documents, in the shapes that people write.

| shape | keys |
|---|---|
| messages | ``messages`` (with ``tools``), ``conversations`` as ShareGPT has it |
| text | ``text`` |
| preference | ``prompt``, ``chosen``, ``rejected``: the chosen side is learned |
| prompt and completion | text, where white space is between them; otherwise a chat. The completion is learned |
| question and answer | a chat of two turns: the pairs of :data:`PAIRS` |
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from stillroom.core.errors import CorpusError, StillroomError
from stillroom.core.plain import shown
from stillroom.corpus.documents import Document, clean, common_start, kind_of, unforeseen
from stillroom.corpus.messages import MEDIA, Message, messages_of, require_entries, text_of_content, tools_of
from stillroom.corpus.tally import Tally

CONVERSATIONS = ("messages", "conversations", "conversation")
"""Keys that hold a chat."""
PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("problem", "solution"),
    ("input", "output"),
    ("inputs", "targets"),
)
"""Keys of a question and of its answer, in the order in which they are looked for."""
SYSTEM = ("system", "system_prompt")
BESIDE = ("input", "context")
"""Keys of what a question is about; it is written below the question."""
REFUSED = (*MEDIA, "choices", "options", "answers", "chat_template_kwargs")
"""Keys without which a row would say something else."""
TOOLS = ("tools", "functions")
KNOWN = frozenset(
    {"text", "prompt", "completion", "chosen", "rejected", "history"}.union(
        CONVERSATIONS, SYSTEM, BESIDE, REFUSED, TOOLS, *PAIRS
    )
)
"""Every key by which a row has something to learn, or to refuse."""
LABEL = "label"
"""Key that tells, beside an answer, whether the answer is wanted; beside a plain text it is any key."""
_WANTED = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
UNWANTED = "answers marked as unwanted (`label: false`) that are not learned"
PREFERENCE = "preference pairs, the chosen side"

Row = Mapping[str, Any]


@dataclass
class _Reading:
    """One row while it is read."""

    row: Row
    where: str
    ignore: Collection[str]
    tally: Tally | None
    used: set[str] = field(default_factory=set)
    as_chat: bool = False

    def get(self, key: str) -> Any:
        """A value that is to be in the document; None where there is none."""
        value = self.row.get(key) if key not in self.ignore else None
        if value is not None:
            self.used.add(key)
        return value

    def has(self, *keys: str) -> bool:
        return all(key not in self.ignore and self.row.get(key) is not None for key in keys)

    def words(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str):
            raise CorpusError(
                f"{self.where}: `{key}` holds {kind_of(value)}, not text.",
                f"Write text there, or leave it out with `ignore: [{key}]`.",
            )
        return clean(value, self.where, self.tally)

    def messages(self, key: str) -> tuple[Message, ...]:
        return messages_of(self.get(key), self.where, key, self.tally, self.ignore)

    def is_chat(self, key: str) -> bool:
        """Whether a value is a list of messages; one in which only some entries are mappings is refused."""
        value = self.row.get(key)
        if not _has_mappings(value):
            return False
        require_entries(value, self.where, key)
        return True

    def first(self, keys: Collection[str]) -> str | None:
        return next((key for key in keys if self.has(key)), None)


def document_of(
    row: Row,
    text_key: str | None,
    messages_key: str | None,
    where: str,
    *,
    ignore: Collection[str] = (),
    tally: Tally | None = None,
) -> Document:
    """The document in a row of JSON Lines, CSV, Parquet or a dataset.

    A value that is null is an empty document.

    Args:
        row: The row.
        text_key: Key of plain text, or None to find the row's shape.
        messages_key: Key of messages, or None to find the row's shape.
        where: File and line.
        ignore: Keys of rows and messages that the recipe leaves out.
        tally: Counts shapes and keys that are in no text.

    Raises:
        CorpusError: No shape fits, a key is missing or a value is not as it should be.
    """
    reading = _Reading(row, where, ignore, tally)
    try:
        shape, document = _shaped(reading, text_key, messages_key)
        if shape not in ("text", "empty"):
            chat = shape in ("messages", "ShareGPT conversations")
            _refuse_unread(reading, (*MEDIA, "chat_template_kwargs") if chat else REFUSED)
            # Of two answers the chosen one is wanted, whatever else a label means there.
            if not document.is_empty and not shape.startswith(PREFERENCE) and not _is_wanted(reading):
                document = Document(where=where)
    except StillroomError as error:
        # Keys are named in messages; half a character in one could not be shown.
        raise type(error)(shown(error.what), shown(error.todo)) from None
    except Exception as error:
        raise unforeseen(error, where) from error
    if tally is not None:
        tally.shapes[shape] += 1
        tally.unused.update(
            str(key) for key, value in row.items() if value not in (None, "", [], {}) and key not in reading.used
        )
    return document


def _is_wanted(reading: _Reading) -> bool:
    """Whether a row's answer is to be learned as far as its label tells.

    Raises:
        CorpusError: The label is neither true nor false.
    """
    value = reading.get(LABEL)
    if value is None or (isinstance(value, str) and not value.strip()):
        return True
    wanted = _WANTED.get(str(value).strip().lower()) if isinstance(value, (bool, int, float, str)) else None
    if wanted is None:
        shown = repr(value)
        raise CorpusError(
            f"{reading.where}: the row has the `{LABEL}` {shown if len(shown) <= 80 else shown[:80] + '…'} beside an answer.",
            "An answer is wanted (1 or true) or not (0 or false): write one of these. If the label is about something else, "
            f"leave it out: `ignore: [{LABEL}]`.",
        )
    if not wanted and reading.tally is not None:
        reading.tally.notes[UNWANTED] += 1
    return wanted


def _shaped(reading: _Reading, text_key: str | None, messages_key: str | None) -> tuple[str, Document]:
    row, where = reading.row, reading.where
    named = messages_key or text_key
    if named is not None:
        if named not in row:
            raise _no_key(reading, named)
        if row[named] is None:
            return "empty", Document(where=where)
        if messages_key is None:
            _trap(reading, named)
            return _text(reading, named)
        return "messages", _chat(reading, reading.messages(named))
    # A table has a field for every key; an empty one says nothing of the row's shape.
    there = [key for key in (*CONVERSATIONS, "text") if reading.has(key)]
    filled = [key for key in there if row[key] not in ("", [])]
    if filled:
        return _whole(reading, filled[0])
    found = _pair_shape(reading)
    if found is not None:
        document = found[1](reading)
        return found[0] + (", as chats" if reading.as_chat else ""), document
    if there:
        return _whole(reading, there[0])
    if any(key in row and row[key] is None for key in ("text", *CONVERSATIONS)):
        return "empty", Document(where=where)
    unanswered = _unanswered(reading)
    if unanswered is not None:
        return unanswered
    raise _no_key(reading, "text")


def _whole(reading: _Reading, key: str) -> tuple[str, Document]:
    """The document of a row that has it whole under one key: a text, or a conversation."""
    if key == "text":
        return _text(reading, key)
    sharegpt = reading.is_chat(key) and any("from" in entry for entry in reading.row[key])
    return "ShareGPT conversations" if sharegpt else "messages", _chat(reading, reading.messages(key))


def _unanswered(reading: _Reading) -> tuple[str, Document] | None:
    """A row whose answer is null: its prompt, of which nothing is learned; empty where that is null too."""
    row = reading.row
    for question, answer in (("prompt", "chosen"), ("prompt", "completion"), *PAIRS):
        if answer in reading.ignore or question in reading.ignore or row.get(answer, "") is not None:
            continue
        if question not in row:
            continue
        # The row is left out as a whole, and no key of it by itself.
        reading.used |= KNOWN
        if row[question] is None:
            return "empty", Document(where=reading.where)
        shape = f"`{question}` without `{answer}`"
        if reading.is_chat(question):
            messages = reading.messages(question)
            return shape, _learn_from(reading, messages, len)
        words = reading.words(question)
        return shape, Document(words, (), reading.where, (), len(words))
    return None


def _text(reading: _Reading, key: str) -> tuple[str, Document]:
    value = reading.get(key)
    if reading.is_chat(key):
        return "messages", _chat(reading, reading.messages(key))
    if not isinstance(value, str):
        raise CorpusError(
            f"{reading.where}: `{key}` holds {kind_of(value)}, not text.", "Name another key as `text_key`."
        )
    return "text", Document(text=clean(value, reading.where, reading.tally), where=reading.where)


def _chat(reading: _Reading, messages: tuple[Message, ...], text: str = "", given: int = 0) -> Document:
    """A chat with the row's system message and tools."""
    system = reading.first(SYSTEM)
    if system is not None and messages and str(reading.row[system]).strip():
        words = reading.words(system)
        if messages[0]["role"] in ("system", "developer"):
            raise CorpusError(
                f"{reading.where}: `{system}` and the first message are both a system message.",
                f"Leave one of them out: `ignore: [{system}]`.",
            )
        messages = ({"role": "system", "content": words}, *messages)
    tools: tuple[Mapping[str, Any], ...] = ()
    for key in TOOLS:
        if reading.has(key) and messages:
            tools += tools_of(reading.get(key), reading.where, key)
    return Document(text, messages, reading.where, tools, given)


def _pair_shape(reading: _Reading) -> tuple[str, Callable[[_Reading], Document], tuple[str, str]] | None:
    """The shape of a question with its answer: its name, what reads it, and its keys."""
    if reading.has("chosen"):
        return PREFERENCE, _preference, ("prompt", "chosen")
    if reading.has("prompt", "completion"):
        return "prompts with completions", _completion, ("prompt", "completion")
    for question, answer in PAIRS:
        if reading.has(question, answer):
            name = f"`{question}` with `{answer}`"
            return name, functools.partial(_question, question=question, answer=answer), (question, answer)
    return None


def _preference(reading: _Reading) -> Document:
    if reading.has("rejected"):
        reading.get("rejected")
        if reading.tally is not None:
            reading.tally.notes["rejected answers that are not learned"] += 1
    if reading.has("prompt") and not (reading.is_chat("chosen") and _begins_with(reading)):
        return _completion(reading, "chosen")
    if reading.is_chat("chosen"):
        return _learn_from(reading, reading.messages("chosen"), _last_answer)
    text = reading.words("chosen")
    given = 0
    if isinstance(reading.row.get("rejected"), str):
        # Both sides begin with the same prompt: what they share, up to its last white space, is given.
        shared = common_start(text, clean(reading.row["rejected"], reading.where))
        # Where all of it begins the other, its last word is learned.
        given = max(0, min(shared, len(text.rstrip()) - 1))
        while given and not text[given - 1].isspace():
            given -= 1
    return Document(text, (), reading.where, (), given)


def _begins_with(reading: _Reading) -> bool:
    """Whether a chosen chat repeats its prompt."""
    chosen, prompt = reading.row["chosen"], reading.row["prompt"]
    first = next(
        (entry for entry in chosen if entry.get("role", entry.get("from")) not in ("system", "developer")), None
    )
    if first is None or first.get("role", first.get("from")) not in ("user", "human"):
        return False
    content = first.get("content", first.get("value"))
    words = text_of_content(content, reading.where, "user", ignore=reading.ignore).strip()
    if not isinstance(prompt, (list, tuple)):
        same = reading.words("prompt").strip() == words
    else:
        same = len(prompt) <= len(chosen) and list(prompt) == list(chosen[: len(prompt)])
    if same:
        reading.get("prompt")
        return True
    raise CorpusError(
        f"{reading.where}: `chosen` begins with a user's message that is not `prompt`.",
        "Leave the prompt out, where `chosen` is the whole chat: `ignore: [prompt]`.",
    )


def _completion(reading: _Reading, answer: str = "completion") -> Document:
    """A prompt and what follows it: text as it is, or messages."""
    if reading.is_chat("prompt") or reading.is_chat(answer):
        return _joined(reading, "prompt", answer)
    prompt, words = reading.words("prompt"), reading.words(answer)
    if prompt and words and not prompt[-1].isspace() and not words[0].isspace():
        # No one wrote these to be one behind the other.
        reading.as_chat = True
        return _asked(reading, [], prompt, words)
    return Document(prompt + words, (), reading.where, (), len(prompt))


def _joined(reading: _Reading, question: str, answer: str) -> Document:
    """A chat of two keys, of which at least one holds messages; the second is learned."""
    before = (
        reading.messages(question)
        if reading.is_chat(question)
        else ({"role": "user", "content": reading.words(question)},)
    )
    after = (
        reading.messages(answer)
        if reading.is_chat(answer)
        else ({"role": "assistant", "content": reading.words(answer)},)
    )
    return _learn_from(reading, (*before, *after), lambda _: len(before))


def _last_answer(messages: tuple[Message, ...]) -> int:
    """Where the last answer begins: behind the last message of a user."""
    return max((index + 1 for index, message in enumerate(messages) if message["role"] == "user"), default=0)


def _learn_from(
    reading: _Reading, messages: tuple[Message, ...], begins: Callable[[tuple[Message, ...]], int]
) -> Document:
    begin = begins(messages)
    marked = tuple(
        {**message, "train": False} if index < begin and message["role"] == "assistant" else message
        for index, message in enumerate(messages)
    )
    return _chat(reading, marked)


def _question(reading: _Reading, question: str, answer: str) -> Document:
    if reading.is_chat(question) or reading.is_chat(answer):
        return _joined(reading, question, answer)
    words = reading.words(question)
    for key in BESIDE:
        if key not in (question, answer) and reading.has(key) and str(reading.row[key]).strip():
            words += f"\n\n{reading.words(key)}"
    said = reading.words(answer)
    return _asked(reading, _history(reading), words, said)


def _asked(reading: _Reading, history: list[tuple[str, str]], words: str, said: str) -> Document:
    """A question and its answer as a chat, and as plain text for a tokenizer without a chat template."""
    turns: list[Message] = []
    for entry in history:
        # Only the answer that the row is about is learned.
        turns += [{"role": "user", "content": entry[0]}, {"role": "assistant", "content": entry[1], "train": False}]
    turns += [{"role": "user", "content": words}, {"role": "assistant", "content": said}]
    system = reading.first(SYSTEM)
    before = f"{reading.words(system)}\n\n" if system is not None else ""
    head = before + "".join(f"{turn['content']}\n\n" for turn in turns[:-1])
    return _chat(reading, tuple(turns), head + said + "\n", len(head))


def _history(reading: _Reading) -> list[tuple[str, str]]:
    """Earlier questions with their answers, as Alpaca's ``history`` has them."""
    history = reading.get("history") or []
    if not isinstance(history, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
        for pair in history
    ):
        raise CorpusError(
            f"{reading.where}: `history` is not a list of pairs of texts.", "Leave it out with `ignore: [history]`."
        )
    return [(clean(pair[0], reading.where), clean(pair[1], reading.where)) for pair in history]


def _trap(reading: _Reading, key: str) -> None:
    """Refuse a ``text_key`` under which one half of a question with its answer would be learned without the other."""
    found = _pair_shape(reading)
    if found is None or key not in found[2] or not reading.has(*found[2]):
        return
    question, answer = found[2]
    other = question if key == answer else answer
    raise CorpusError(
        f"{reading.where}: the row has `{question}` and `{answer}`; with `text_key: {key}` the `{other}` would be lost.",
        f"Leave `text_key` out, then both are read and the `{answer}` is learned. To train on `{key}` alone, write beside "
        f"it: `ignore: [{other}]`.",
    )


def _refuse_unread(reading: _Reading, keys: Collection[str]) -> None:
    for key in keys:
        value = reading.row.get(key)
        if key not in reading.used and key not in reading.ignore and value not in (None, "", [], {}):
            raise CorpusError(
                f"{reading.where}: the row has `{key}`, which is in no text.",
                f"Put it into the text, or leave it out on purpose: `ignore: [{key}]`.",
            )


def _no_key(reading: _Reading, key: str) -> CorpusError:
    row = reading.row
    missing = f"{reading.where}: no key `{key}`; there are: {', '.join(map(str, row)) or 'none'}."
    lists = {str(name): value for name, value in row.items() if isinstance(value, (list, tuple)) and value}
    table = next(iter(lists)) if len(lists) == 1 else ""
    if table and all(_is_row(entry) for entry in lists[table]):
        return CorpusError(
            missing,
            f"`{table}` holds a list of rows: write that list alone, from its `[` to its `]`, into a file that ends in "
            "`.json`, and name it as `path`.",
        )
    if table and all(isinstance(entry, str) for entry in lists[table]):
        return CorpusError(
            missing, f'`{table}` holds a list of texts: write each as a row of its own, {{"text": "…"}}.'
        )
    chats = [str(name) for name in row if _has_mappings(row[name]) or _written_chat(row[name])]
    texts = [
        str(name) for name, value in row.items() if isinstance(value, str) and len(value) > 0 and str(name) not in chats
    ]
    line = f"messages_key: {chats[0]}" if chats else f"text_key: {texts[0]}" if len(texts) == 1 else ""
    example = f", here `{line}`" if line else ""
    return CorpusError(
        missing,
        f"Name the right one as `text_key` or `messages_key` in the recipe{example}.",
    )


def _has_mappings(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, (list, tuple)) and any(isinstance(entry, Mapping) for entry in value)


def _is_row(entry: Any) -> bool:
    """Whether an entry of a list is a row, and no message of a chat."""
    return isinstance(entry, Mapping) and not {"role", "from"}.intersection(entry)


def _written_chat(value: Any) -> bool:
    """Whether a text is a chat as JSON: as a text it would be learned with its braces and quotes."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return False
    try:
        entries = json.loads(value)
    except (ValueError, RecursionError):
        return False
    return isinstance(entries, list) and any(isinstance(entry, Mapping) for entry in entries)
