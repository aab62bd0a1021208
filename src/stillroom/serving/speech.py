"""From the engine's stream of text to a chat's: reasoning apart from the answer, calls apart from both."""

from __future__ import annotations

from typing import Any

from stillroom.serving import tools

PAIRS = (
    ("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<thinking>", "</thinking>"), ("<seed:think>", "</seed:think>"),
)  # fmt: skip
"""What models write around their reasoning."""


def pair_of(template: str) -> tuple[str, str] | None:
    """The marks of reasoning that a chat template knows; None where it knows none."""
    return next((pair for pair in PAIRS if pair[1] in template), None)


class Reasoning:
    """Tells reasoning from the answer in a text that comes in pieces.

    Args:
        pair: The marks around it; None where there is none.
        opened: The prompt has opened it already.
    """

    def __init__(self, pair: tuple[str, str] | None, opened: bool) -> None:
        self._pair = pair
        self._state = "content" if pair is None else "reasoning" if opened else "start"
        self._held = ""
        self._strip = pair is not None

    def add(self, text: str, end: bool = False) -> tuple[str, str]:
        """One more piece; returns the reasoning and the content that are certain by now.

        Args:
            text: The piece.
            end: It is the last one.
        """
        self._held += text
        reasoning = content = ""
        if self._state == "start" and self._pair is not None:
            begun = self._held.lstrip()
            if begun.startswith(self._pair[0]):
                self._state, self._held = "reasoning", begun[len(self._pair[0]) :]
            elif end or not self._pair[0].startswith(begun):
                self._state, self._strip = "content", False
        if self._state == "reasoning" and self._pair is not None:
            if self._strip and self._held.lstrip("\n"):
                self._held, self._strip = self._held.lstrip("\n"), False
            before, found, after = self._held.partition(self._pair[1])
            if found:
                reasoning, self._held, self._state, self._strip = before.rstrip("\n"), after, "content", True
            else:
                kept = 0 if end else _tail(before, self._pair[1])
                reasoning, self._held = before[: len(before) - kept], before[len(before) - kept :]
        if self._state == "content":
            content, self._held = self._held, ""
            if self._strip:
                content = content.lstrip()
                self._strip = not content
        return reasoning, content


def _tail(text: str, mark: str) -> int:
    """How many characters at the end may be the beginning of a mark, or the line ends before it."""
    kept = next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-size:])), 0)
    while kept < len(text) and text[len(text) - kept - 1] == "\n":
        kept += 1
    return kept


class Speech:
    """Turns one answer's events of a completion into those of a chat.

    Args:
        pair: The marks of reasoning that the model's template knows.
        opened: The prompt has opened the reasoning already.
        top: Alternatives that a client wants for each token; None where it wants no log-probabilities.
    """

    def __init__(self, pair: tuple[str, str] | None, opened: bool, top: int | None) -> None:
        self._reasoning = Reasoning(pair, opened)
        self._top = top
        self._begun = False
        self.reasoning = ""
        self.content = ""

    def turn(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """The events that stand for one."""
        if "error" in event:
            return [event]
        head = {**event, "object": "chat.completion.chunk"}
        head.pop("choices", None)
        usage = head.pop("usage", None)
        found = []
        if not self._begun:
            self._begun = True
            found.append({**head, "choices": [_choice({"role": "assistant", "content": ""})]})
        for choice in event.get("choices", ()):
            finish = choice.get("finish_reason")
            reasoning, content = self._reasoning.add(choice.get("text") or "", end=finish is not None)
            self.reasoning += reasoning
            self.content += content
            logprobs = self._logprobs(choice.get("logprobs"))
            delta: dict[str, Any] = {}
            if reasoning:
                delta |= {"reasoning_content": reasoning, "reasoning": reasoning}
            if content:
                delta["content"] = content
            if delta or logprobs:
                found.append({**head, "choices": [_choice(delta, logprobs=logprobs)]})
            if finish is not None:
                found.append({**head, "choices": [_choice({}, finish)]})
        if usage is not None:
            found.append({**head, "choices": [], "usage": usage})
        return found

    def _logprobs(self, value: Any) -> dict[str, Any] | None:
        entries = (value or {}).get("content") if isinstance(value, dict) else None
        if self._top is None or not entries:
            return None
        return {"content": [{**entry, "top_logprobs": entry.get("top_logprobs", [])[: self._top]} for entry in entries]}


def _choice(delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
    made: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish}
    if logprobs is not None:
        made["logprobs"] = logprobs
    return made


class CallStream:
    """Turns the text of a stream into tool calls where it is one; other text goes through as it comes."""

    def __init__(self, old: bool = False) -> None:
        self._text = ""
        self._calls: bool | None = None
        self._old = old

    def turn(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """The events that stand for one event."""
        found = []
        for choice in event.get("choices", ()):
            content = choice.get("delta", {}).get("content")
            if content:
                if self._calls is None:
                    self._calls = content.startswith("<")
                if self._calls:
                    self._text += content
                    choice["delta"] = {key: value for key, value in choice["delta"].items() if key != "content"}
            if choice.get("finish_reason") and self._calls:
                calls = tools.parse_calls(self._text)
                for index, call in enumerate(calls):
                    delta = (
                        {"function_call": call["function"]} if self._old else {"tool_calls": [{"index": index, **call}]}
                    )
                    found.append({**event, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
                if calls and choice["finish_reason"] == "stop":
                    choice["finish_reason"] = "function_call" if self._old else "tool_calls"
        return [*found, event]
