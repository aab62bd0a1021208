"""Chats to text, with the spans of the assistant's words.

Templates seldom say which words are the assistant's, so it is found out: the conversation is rendered once more with a
marker in place of each of the assistant's contents. What stands between the markers is the template's own text, and the
true rendering must be made of exactly that text and the contents. Where a template treats a content specially (it cuts
thoughts out, say), the renderings of the conversation's beginnings are compared instead.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stillroom.core.errors import CorpusError
from stillroom.inspection.template import render_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TODAY = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
"""The date that templates are told: a corpus is the same on every day."""

Span = tuple[int, int]
Messages = Sequence[Mapping[str, Any]]


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
        added = tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        self._special = sorted(special, key=lambda token: (-len(token), token))

    def render(self, messages: Messages, where: str) -> tuple[str, list[Span]]:
        """The text of a chat, and for each of the assistant's turns the characters that the model has to say.

        A span begins where the prompt for an answer ends and closes with the token that ends the turn, if the template
        has one.

        Raises:
            CorpusError: There is no template, it refuses the chat, or the assistant's words are not in its text.
        """
        if self.text is None:
            raise CorpusError(
                f"{where}: a chat, and the teacher's tokenizer has no chat template.",
                "Use a chat model as the teacher, or give plain text.",
            )
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
            **self._variables,
        )


def find_turns(messages: Messages, text: str, spans: list[Span]) -> tuple[int, list[Span]]:
    """Where a chat may be cut, in characters of its text.

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
        words = text.find(following["content"].strip(), begin, answer)
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
