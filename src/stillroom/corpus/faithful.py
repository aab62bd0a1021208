"""Whether a chat template renders what a chat holds: what it leaves out is refused by name, never lost."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from stillroom.core.errors import CorpusError

Messages = Sequence[Mapping[str, Any]]
Apply = Callable[[Messages], str]
"""Renders messages with the chat's tools."""
_NO_LETTER = re.compile(r"[\W_]+")
_TODO = "Leave this chat out, or give the teacher a chat template that renders it."


def holds(text: str, words: str) -> bool:
    """Whether a text holds some words, as they are, as JSON writes them, or with other white space and punctuation."""
    words = words.strip()
    forms = (words, json.dumps(words, ensure_ascii=False)[1:-1], json.dumps(words)[1:-1])
    if any(form in text for form in forms):
        return True
    letters = _NO_LETTER.sub("", text)
    return any(form and form in letters for form in (_NO_LETTER.sub("", form) for form in forms))


def left_out(where: str, what: str, key: str | None = None) -> CorpusError:
    """The refusal of a chat of which a template leaves something out."""
    return CorpusError(
        f"{where}: the teacher's chat template leaves out {what}.",
        f"Write `ignore: [{key}]` for this source to train without it, or give the teacher a chat template that renders it."
        if key
        else _TODO,
    )


def require_contents(messages: Messages, whole: str, apply: Apply, where: str) -> None:
    """Check that the words of system, user and tool messages are in the text.

    They are replaced by markers, all at once: so two messages of the same words cannot stand for each other.

    Raises:
        CorpusError: A message is left out or changed.
    """
    others = [i for i, m in enumerate(messages) if m["role"] != "assistant" and str(m["content"]).strip()]
    marked = [dict(message) for message in messages]
    for index in others:
        marked[index]["content"] = f"q{index}z7k"
    try:
        text = apply(marked) if others else ""
        lost = [index for index in others if f"q{index}z7k" not in text]
    except CorpusError:
        # The template reads these words (as JSON, say): each is left out for itself.
        lost = others
    for index in lost:
        without = [dict(message) for message in messages]
        without[index]["content"] = ""
        try:
            same = apply(without) == whole
        except CorpusError:
            same = False
        if same:
            raise left_out(where, f"the {messages[index]['role']}'s words of message {index + 1}")
    for index in others:
        if not holds(whole, str(messages[index]["content"])):
            raise CorpusError(
                f"{where}: the teacher's chat template changes the {messages[index]['role']}'s words of message {index + 1}.",
                _TODO,
            )


def require_tools(tools: Sequence[Mapping[str, Any]], whole: str, without: Callable[[], str], where: str) -> None:
    """Check that tools are in the text: their names, what they are for, and the names of their parameters.

    Raises:
        CorpusError: Something of them is left out.
    """
    if not tools:
        return
    try:
        lost = without() == whole
    except CorpusError:
        lost = False
    if lost:
        raise left_out(where, "the chat's tools", "tools")
    for tool in tools:
        function = tool["function"]
        parameters = function.get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
        for what, words in (
            ("the name", function["name"]),
            ("the description", function.get("description") or ""),
            *(
                (f"the parameter `{name}`", name)
                for name in (properties if isinstance(properties, (Mapping, list)) else ())
            ),
        ):
            if not holds(whole, str(words)):
                raise left_out(where, f"{what} of the tool `{function['name']}`", "tools")


def says_calls(text: str, calls: Sequence[Mapping[str, Any]]) -> bool:
    """Whether calls of tools are in a text: names, and arguments as JSON or each by itself, but not as Python writes them."""
    for call in calls:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        if name not in text:
            return False
        written = [
            json.dumps(arguments, ensure_ascii=ascii_, separators=separators)
            for ascii_ in (False, True)
            for separators in ((", ", ": "), (",", ":"))
        ]
        if any(form in text for form in written):
            continue
        if arguments and str(arguments) in text:
            return False
        if json.dumps(written[0])[1:-1] in text or not all(holds(text, leaf) for leaf in _leaves(arguments)):
            return False
    return True


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield str(key)
            yield from _leaves(part)
    elif isinstance(value, list):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, str):
        yield value
    elif value is not None and not isinstance(value, bool):
        yield json.dumps(value)


def note_keys(messages: Messages, whole: str, apply: Apply, where: str, notes: Counter[str]) -> None:
    """Count keys of messages that a template does not read, such as ids of calls; refuse those that are words.

    Raises:
        CorpusError: A name is left out; or results of tools are in another order than their calls, without an id in the text.
    """
    core = {"role", "content", "tool_calls", "reasoning_content", "reasoning", "thinking"}
    for key in sorted({key for message in messages for key in message} - core):
        holders = [message for message in messages if key in message]
        try:
            same = apply([{name: part for name, part in m.items() if name != key} for m in messages]) == whole
        except CorpusError:
            continue
        if not same:
            continue
        speaker = next((message["role"] for message in holders if message["role"] != "tool"), None)
        if key == "name" and speaker is not None:
            raise left_out(where, f"the {speaker}'s `name`", "name")
        if key == "tool_call_id":
            _require_order(messages, where)
        notes[f"keys `{key}` of messages that the chat template does not read"] += len(holders)


def _require_order(messages: Messages, where: str) -> None:
    called: list[str] = []
    answered: list[str] = []
    for message in (*messages, {"role": "assistant"}):
        if message["role"] == "tool":
            answered.append(str(message.get("tool_call_id")))
        elif message["role"] == "assistant":
            known = [name for name in answered if name in called]
            if known != [name for name in called if name in known]:
                raise CorpusError(
                    f"{where}: results of tools are not in the order of their calls, and the chat template leaves out the ids.",
                    "Put each result in the order of the calls.",
                )
            called = [str(call.get("id")) for call in message.get("tool_calls", ())]
            answered = []
