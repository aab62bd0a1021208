"""Stop texts where the answer may be a call of a tool: the engine would cut off calls by them, so they are looked for here."""

from __future__ import annotations

import itertools
from typing import Any

from stillroom.serving.grammars import OPEN
from stillroom.serving.scoring import usage_of


class Stops:
    """Ends a text answer before the first of the stop texts; calls are left whole.

    Args:
        texts: The stop texts, none of them empty.
    """

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts
        self._held = ""
        self._is_call: bool | None = None
        self._last: dict[str, Any] = {}
        self._through = 0
        self.found = False

    def turn(self, event: dict[str, Any]) -> dict[str, Any]:
        """An event of the engine, without text that may belong to a stop."""
        self._last = {**event, "choices": []}
        for choice in event.get("choices", ()):
            text = choice.get("text") or ""
            if self._is_call is None and text:
                self._is_call = text.startswith(OPEN[0])
            if not self._is_call:
                choice["text"] = self._before_stop(text, end=bool(choice.get("finish_reason")))
                if self.found:
                    choice["finish_reason"] = "stop"
                    if choice.get("logprobs"):
                        # They come with the whole text in one event.
                        choice["logprobs"]["content"] = self._up_to_stop(choice["logprobs"]["content"])
        return event

    def last(self) -> dict[str, Any]:
        """The count of tokens of an answer that ended here, as the engine's last event would have it."""
        return {**self._last, "usage": usage_of(self._last.get("timings", {}))}

    def _before_stop(self, text: str, *, end: bool) -> str:
        """The text that is certain by now."""
        self._held += text
        at = min((at for stop in self._texts if (at := self._held.find(stop)) >= 0), default=-1)
        self.found = at >= 0
        if self.found:
            certain = at
            ends = (at + len(stop) for stop in self._texts if self._held.startswith(stop, at))
            self._through = len(self._held[: min(ends)].encode())
        else:
            certain = len(self._held) - (0 if end else self._open())
        said, self._held = self._held[:certain], self._held[certain:]
        return said

    def _up_to_stop(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Of the tokens of an answer that came whole, those up to the end of the stop."""
        starts = itertools.accumulate((len(entry["bytes"]) for entry in entries), initial=0)
        return [entry for entry, start in zip(entries, starts, strict=False) if start < self._through]

    def _open(self) -> int:
        """How many characters at the end may begin a stop."""
        longest = max(map(len, self._texts)) - 1
        sizes = range(min(longest, len(self._held)), 0, -1)
        return next((size for size in sizes if any(stop.startswith(self._held[-size:]) for stop in self._texts)), 0)
