"""Chats to text, with the spans of the assistant's words.

Templates seldom say which words are the assistant's, so it is found out: the conversation is rendered once more with a
marker in place of each of the assistant's contents. What is between the markers is the template's own text, and the
true rendering must be made of exactly that text and the contents. Where a template treats a content specially (it removes
thoughts out, say), the renderings of the conversation's beginnings are compared instead. Turns that call tools or think are
found by what changes where their calls, thoughts and words are replaced.

What a chat holds and the template leaves out is refused by name (:mod:`stillroom.corpus.faithful`).
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillroom.core.errors import CorpusError, StillroomError
from stillroom.corpus.documents import THOUGHTS, Document, common_end, common_start, unforeseen
from stillroom.corpus.faithful import holds, left_out, note_keys, require_contents, require_tools, says_calls
from stillroom.inspection.template import render_chat
from stillroom.models.tokenizer import control_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TODAY = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
"""The date that templates are told: a corpus is the same on every day."""

THOUGHTLESS = "answers that are not learned, since the chat template leaves out their thoughts"
_INSIDE = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)

Span = tuple[int, int]
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Rendered:
    """A chat's text.

    Attributes:
        text: What the template makes of it.
        spans: For each of the assistant's turns the characters that the model has to say.
        learned: For each of them whether it is learned.
    """

    text: str
    spans: list[Span]
    learned: list[bool]


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        tokenizer: Its template and special tokens are read.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        template = tokenizer.chat_template
        if isinstance(template, Mapping):
            template = template.get("default")
        self.text: str | None = template or None
        self._variables = {"bos_token": tokenizer.bos_token or "", "eos_token": tokenizer.eos_token or ""}
        self._special = sorted(control_texts(tokenizer), key=lambda token: (-len(token), token))
        self._tools: list[dict[str, Any]] | None = None
        self.notes: Counter[str] = Counter()

    def render_document(self, document: Document) -> Rendered:
        """A chat with its tools, calls and thoughts; every part of it is in the text.

        What is left out where the model's own chats leave it out too (ids of calls, thoughts of earlier turns) is counted in
        ``notes``; an answer whose thought is left out is not learned.

        Raises:
            CorpusError: As in :meth:`render`; or the template leaves out or changes a part of the chat.
        """
        where = document.where
        learned = [bool(m.get("train", True)) for m in document.messages if m["role"] == "assistant"]
        messages: list[dict[str, Any]] = [
            {key: value for key, value in message.items() if key != "train"} for message in document.messages
        ]
        self._tools = [dict(tool) for tool in document.tools] or None
        try:
            messages = self._with_keys(messages, where)
            if any(key in message for message in messages for key in ("tool_calls", *THOUGHTS)):
                messages, thoughtless = self._readable(messages, where)
                text, spans = self._rich(messages, where)
                turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
                learned = [known and index not in thoughtless for known, index in zip(learned, turns, strict=True)]
            else:
                text, spans = self.render(messages, where)
                spans = self._with_spaces(messages, text, spans)
            learned = self._with_thoughts(messages, text, spans, learned)
            require_contents(messages, text, lambda changed: self._apply(changed, where), where)
            note_keys(messages, text, lambda changed: self._apply(changed, where), where, self.notes)
            if self._tools is not None:
                tools, self._tools = self._tools, None
                require_tools(tools, text, lambda: self._apply(messages, where), where)
        except StillroomError:
            raise
        except Exception as error:
            raise unforeseen(error, where) from error
        finally:
            self._tools = None
        return Rendered(text, spans, learned)

    def _with_keys(self, messages: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
        """Thoughts that are written inside the words, under the key by which the template writes the same text."""
        parts = [_thought(message) for message in messages]
        if self.text is None or not any(parts):
            return messages
        last = max(index for index, part in enumerate(parts) if part)
        with contextlib.suppress(CorpusError):
            whole = self._apply(messages, where)
            for key in THOUGHTS:
                changed = [
                    message | {key: part[0], "content": part[1]} if part else message
                    for message, part in zip(messages, parts, strict=True)
                ]
                read = holds(self._apply(changed[: last + 1], where), str(changed[last][key]))
                if read and self._apply(changed, where) == whole:
                    return changed
        return messages

    def _with_thoughts(self, messages: Messages, text: str, spans: list[Span], learned: list[bool]) -> list[bool]:
        """What is learned, without answers of which the template left out the thought that is written inside them."""
        turns = [message for message in messages if message["role"] == "assistant"]
        found = []
        for message, (begin, end), known in zip(turns, spans, learned, strict=True):
            part = _thought(message)
            lost = part is not None and not holds(text[begin:end], part[0])
            if lost:
                self.notes[THOUGHTLESS] += 1
            found.append(known and not lost)
        return found

    def _with_spaces(self, messages: Messages, text: str, spans: list[Span]) -> list[Span]:
        """Spans with the space before them, where the template has no prompt for an answer: the model has to say it."""
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        found = []
        for index, (begin, end) in zip(turns, spans, strict=True):
            if text[begin - 1 : begin] == " ":
                plain, prompt = self._prompt(messages[:index])
                if plain and plain == prompt and text.startswith(plain) and not text[len(plain) : begin].strip(" "):
                    begin = min(begin, len(plain))
            found.append((begin, end))
        return found

    def render(self, messages: Messages, where: str) -> tuple[str, list[Span]]:
        """The text of a chat, and for each of the assistant's turns the characters that the model has to say.

        A span begins where the prompt for an answer ends and closes with the token that ends the turn, if the template
        has one.

        Raises:
            CorpusError: There is no template, it refuses the chat, or the assistant's words are not in its text.
        """
        self._require_template(where)
        whole = self._apply(messages, where)
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        words = self._words(messages, turns, whole, where)
        spans: list[Span] = []
        for number, index in enumerate(turns):
            plain, prompt = self._prompt(messages[:index])
            if words is not None:
                begin, end = words[number]
                # What a template puts before the words, behind the prompt, is for the model to say (an empty thought).
                if prompt != plain and whole.startswith(prompt) and len(prompt) <= begin:
                    begin = len(prompt)
            else:
                begin, end = self._difference(messages[: index + 1], prompt, whole, where)
            spans.append((begin, self._closed(whole, end, prompt[len(plain) :])))
        return whole, spans

    def _require_template(self, where: str) -> None:
        if self.text is None:
            raise CorpusError(
                f"{where}: a chat, and the teacher's tokenizer has no chat template.",
                "Use a chat model as the teacher, or give plain text.",
            )

    def _readable(self, messages: list[dict[str, Any]], where: str) -> tuple[list[dict[str, Any]], set[int]]:
        """The messages with calls and thoughts as the template reads them, and the turns whose thoughts it leaves out."""
        self._require_template(where)
        messages = self._with_arguments(messages, where)
        thinking = [i for i, m in enumerate(messages) if any(m.get(key) for key in THOUGHTS)]
        if not thinking:
            return messages, set()
        last = thinking[-1]
        own = next(key for key in THOUGHTS if messages[last].get(key))
        for key in (own, *(key for key in THOUGHTS if key != own)):
            renamed = [
                {key if name in THOUGHTS else name: part for name, part in message.items()} for message in messages
            ]
            if holds(self._apply(renamed[: last + 1], where), str(renamed[last][key])):
                break
        else:
            raise left_out(where, f"what the assistant thinks (`{own}`)", own)
        whole = self._apply(renamed, where)
        lost: set[int] = set()
        for index in thinking:
            without = [dict(message) for message in renamed]
            del without[index][key]
            if self._apply(without, where) != whole:
                if not holds(whole, str(renamed[index][key])):
                    raise CorpusError(
                        f"{where}: the chat template changes what the assistant thinks in message {index + 1}.",
                        f"Write `ignore: [{own}]` for this source to train without it.",
                    )
                continue
            # As in the model's own chats: what it thought before a later question is left out.
            if not holds(self._apply(renamed[: index + 1], where), str(renamed[index][key])):
                raise left_out(where, f"what the assistant thinks (`{own}`)", own)
            renamed = without
            lost.add(index)
            self.notes[THOUGHTLESS + " in earlier turns"] += 1
        return renamed, lost

    def _with_arguments(self, messages: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
        """Arguments of calls as a mapping, or as JSON text, whichever the template writes as JSON."""
        calls = [call for message in messages for call in message.get("tool_calls", ())]
        if not calls:
            return messages
        refusal: CorpusError | None = None
        for form in (dict, _as_text):
            changed = [
                message
                | {"tool_calls": [_called(call, form(call["function"]["arguments"])) for call in message["tool_calls"]]}
                if "tool_calls" in message
                else message
                for message in messages
            ]
            # A template that looks at other messages' content may insist on a null beside calls, or on none.
            for words in (False, True):
                if words:
                    changed = [
                        message | {"content": None} if "tool_calls" in message and not message["content"] else message
                        for message in changed
                    ]
                try:
                    text = self._apply(changed, where)
                except CorpusError as error:
                    refusal = refusal or error
                    continue
                if says_calls(text, calls):
                    return changed
        raise refusal or left_out(where, "calls of tools, or changes them")

    def _rich(self, messages: list[dict[str, Any]], where: str) -> tuple[str, list[Span]]:
        """The text of a chat with calls or thoughts, and the spans of the assistant's turns."""
        whole = self._apply(messages, where)
        spans: list[Span] = []
        floor = 0
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            begin, end = self._turn(messages, index, whole, floor, where)
            said = whole[begin:end]
            calls = message.get("tool_calls", ())
            thoughts = [str(message[key]) for key in THOUGHTS if message.get(key)]
            if begin < floor or not says_calls(said, calls):
                raise self._unknown_turn(index, where)
            if not all(holds(said, part) for part in (*thoughts, str(message["content"] or "")) if part.strip()):
                kept = str(message["content"] or "").rpartition("</think>")[2]
                if not kept.strip() or not holds(said, kept):
                    raise CorpusError(
                        f"{where}: the chat template leaves out or changes the assistant's words in message {index + 1}.",
                        "Leave this chat out, or give the teacher another chat template.",
                    )
            spans.append((begin, end))
            floor = end
        return whole, spans

    def _turn(self, messages: list[dict[str, Any]], index: int, whole: str, floor: int, where: str) -> Span:
        """Where one of the assistant's turns begins, behind the prompt for it, and where it is closed.

        The turn is rendered with other words, calls and thoughts: what follows the last change is the template's own text, of
        which the turn has as much as where it is the last one.
        """
        changed = [dict(message) for message in messages]
        changed[index] = _other(messages[index])
        other = self._apply(changed, where)
        if other == whole:
            raise left_out(where, f"the assistant's turn in message {index + 1}")
        last = len(whole) - common_end(whole, other)
        alone, alone_other = self._apply(messages[: index + 1], where), self._apply(changed[: index + 1], where)
        closing = alone[len(alone) - common_end(alone, alone_other) :].rstrip()
        end = last + common_start(closing, whole[last:])
        plain, prompt = self._prompt(messages[:index])
        if not prompt:
            # A template that refuses a chat which begins with the assistant still tells how its turns begin.
            plain, prompt = self._prompt([{"role": "user", "content": "q"}])
        begin = common_start(prompt, whole)
        if not plain or begin < len(plain) or index == 0:
            first = common_start(whole, other)
            tail = prompt[len(plain) :] if prompt.startswith(plain) else ""
            for header in (tail, tail.partition("\n")[0] + "\n"):
                found = whole.rfind(header, floor, first) if header.strip() else -1
                if found >= 0:
                    return found + len(header), self._closed(whole, end, tail)
            raise self._unknown_turn(index, where)
        # A prompt that goes on otherwise than this turn does (with a thought, say) is left at its last whole mark.
        while begin < len(prompt) and begin > len(plain) and not prompt[:begin].endswith((*self._special, "\n", ">")):
            begin -= 1
        return begin, self._closed(whole, end, prompt[len(plain) :])

    def _unknown_turn(self, index: int, where: str) -> CorpusError:
        return CorpusError(
            f"{where}: the teacher's chat template does not show which words of message {index + 1} are the assistant's.",
            "Leave this chat out, or give the teacher another chat template.",
        )

    def _words(self, messages: Messages, turns: list[int], whole: str, where: str) -> list[Span] | None:
        """The spans of the assistant's contents, or None where ``whole`` is not the template's text around them."""
        between = self._between(messages, turns, where)
        if between is None or not whole.startswith(between[0]):
            return None
        at = len(between[0])
        spans: list[Span] = []
        for number, index in enumerate(turns):
            content, following = messages[index]["content"], between[number + 1]
            last = number + 1 == len(turns)
            for words in (content, content.strip(), content.lstrip(), content.rstrip()):
                end = at + len(words)
                if whole.startswith(words + following, at) and (not last or end + len(following) == len(whole)):
                    break
            else:
                # The template left something out of the content: what it kept reaches to its own next text.
                end = len(whole) - len(following) if last else whole.find(following, at)
                kept = whole[at:end].strip()
                if end < at or not following or not whole.startswith(following, end) or not kept or kept not in content:
                    return None
            spans.append((at, end))
            at = end + len(following)
        return spans

    def _between(self, messages: Messages, turns: list[int], where: str) -> list[str] | None:
        """The template's own text before, between and behind the assistant's contents."""
        mark = "m" + hashlib.sha256(repr(messages).encode("utf-8", "surrogatepass")).hexdigest()[:24]
        marked = [dict(message) for message in messages]
        for index in turns:
            marked[index]["content"] = f"{mark}n{index}e"
        rest = self._apply(marked, where)
        between = []
        for index in turns:
            before, found, rest = rest.partition(f"{mark}n{index}e")
            if not found or mark in before:
                return None
            between.append(before)
        return None if mark in rest else [*between, rest]

    def _difference(self, messages: Messages, prompt: str, whole: str, where: str) -> Span:
        """The last turn as the difference between two renderings: with it, and as a prompt for it."""
        upto = self._apply(messages, where).rstrip()
        content = messages[-1]["content"].strip()
        begin, end = len(prompt), len(upto)
        if prompt and upto.startswith(prompt) and whole.startswith(upto) and content[-32:] in upto[begin:]:
            return begin, end
        raise CorpusError(
            f"{where}: the chat template leaves out or changes the assistant's words.",
            "Leave this chat out, or give the teacher another chat template.",
        )

    def _prompt(self, messages: Messages) -> tuple[str, str]:
        """A conversation's beginning as it is, and with the prompt for an answer; empty where the template refuses."""
        try:
            return self._apply(messages, ""), self._apply(messages, "", prompt=True)
        except CorpusError:
            return "", ""

    def _closed(self, whole: str, end: int, prompt: str) -> int:
        """The end of a span with the token that ends the turn."""
        following = whole[end:].lstrip()
        for token in self._special:
            if following.startswith(token) and token not in prompt and not whole[:end].endswith(token):
                return len(whole) - len(following) + len(token)
        return end

    def _apply(self, messages: Messages, where: str, *, prompt: bool = False) -> str:
        return render_chat(
            str(self.text),
            [dict(message) for message in messages],
            where=where,
            add_generation_prompt=prompt,
            strftime_now=TODAY,
            tools=self._tools,
            **self._variables,
        )


def _thought(message: Mapping[str, Any]) -> tuple[str, str] | None:
    """The thought that is written inside an answer, as models write it, and the words behind it; None without one."""
    if message["role"] != "assistant" or any(message.get(key) for key in THOUGHTS):
        return None
    found = _INSIDE.fullmatch(str(message["content"] or ""))
    return (found[1].strip("\n"), found[2].lstrip("\n")) if found and found[1].strip() else None


def _as_text(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _called(call: Mapping[str, Any], arguments: Any) -> dict[str, Any]:
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _other(message: Mapping[str, Any]) -> dict[str, Any]:
    """A turn with other words, thoughts and arguments, in the same places."""
    mark = "m" + hashlib.sha256(repr(message).encode("utf-8", "surrogatepass")).hexdigest()[:24] + "e"
    found = dict(message)
    for key in ("content", *THOUGHTS):
        if str(found.get(key) or "").strip():
            found[key] = mark
    if not found["content"] and not found.get("tool_calls"):
        found["content"] = mark
    if "tool_calls" in found:
        text = any(isinstance(call["function"]["arguments"], str) for call in found["tool_calls"])
        arguments = {mark: mark}
        found["tool_calls"] = [
            _called(call, _as_text(arguments) if text else arguments) for call in found["tool_calls"]
        ]
    return found


def find_turns(messages: Messages, text: str, spans: list[Span]) -> tuple[int, list[Span]]:
    """Where a chat may be split, in characters of its text.

    A turn begins behind the answer before it, with the space that the template puts there left to that answer. What a template
    writes at the beginning of a user's turn is read off a later one, and tells where the head ends and the first one begins.

    Args:
        messages: The chat.
        text: It, rendered.
        spans: What the assistant has to say, of :meth:`ChatTemplate.render`.

    Returns:
        Where the head ends (system message, tools), 0 where that cannot be told; and of the first turn, and of each user's turn
        that follows an answer, where it begins and where its answer does.
    """
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    found: list[Span] = []
    opening: str | None = None
    for number, index in enumerate(answers):
        following = messages[index + 1] if index + 1 < len(messages) else None
        if following is None or following["role"] != "user":
            continue
        begin = spans[number][1]
        begin += len(text) - begin - len(text[begin:].lstrip())
        answer = spans[number + 1][0] if number + 1 < len(spans) else len(text)
        found.append((begin, answer))
        words = text.find(str(following["content"]).strip(), begin, answer)
        if opening is None and words >= 0:
            opening = text[begin:words]
    if not spans:
        return 0, []
    first = next((message for message in messages if message["role"] in ("user", "assistant")), None)
    head = 0
    if first is not None and first["role"] == "user":
        words = first["content"].strip()
        before = spans[0][0]
        # Without a later turn, or where the template begins the first one in another way, the head is all up to its words.
        begins = text.find(opening + words, 0, before + len(words)) if opening else -1
        head = begins if begins >= 0 else max(0, text.find(words, 0, before)) if words and opening is not None else 0
    return head, [(head, spans[0][0]), *found]
