"""An answer with lists whose values may not repeat: held back until it is whole, and rid of repeats (:mod:`.distinct`)."""

from __future__ import annotations

import json
import re
from typing import Any

from stillroom.serving.distinct import DECODER, Distinct
from stillroom.serving.grammars import OPEN

_HEAD = re.compile(r'\{"name": ("(?:[^"\\]|\\.)*"), "arguments": ')


class Repeats:
    """Holds an answer back until it is whole, and leaves its repeats out.

    Args:
        values: What leaves them out of a value; or of the arguments of calls, by the tool's name.
    """

    def __init__(self, values: Distinct | dict[str, Distinct]) -> None:
        self._values = values
        self.begin()

    def begin(self) -> None:
        """Forget what an engine wrote that ended before its answer did."""
        self._held = ""
        self.left_out = 0

    def turn(self, event: dict[str, Any]) -> dict[str, Any]:
        """An event of the engine, with its text held back until the last."""
        for choice in event.get("choices", ()):
            self._held += choice.get("text") or ""
            choice["text"] = ""
            if choice.get("finish_reason"):
                choice["text"] = self._held if choice["finish_reason"] == "length" else self._cleaned(self._held)
                if self.left_out:
                    event["stillroom"] = {"generated": True, "repeats_left_out": self.left_out}
        return event

    def _cleaned(self, text: str) -> str:
        try:
            if isinstance(self._values, Distinct):
                made, self.left_out, end = self._values.text(text)
                return made + text[end:]
            return self._calls(text, self._values)
        except (ValueError, RecursionError):
            return text  # a text between calls, or one that a stop cut off

    def _calls(self, text: str, values: dict[str, Distinct]) -> str:
        found, at = "", 0
        while text.startswith(OPEN, at):
            head = _HEAD.match(text, at + len(OPEN))
            if head is None:
                break
            found += text[at : head.end()]
            at = head.end()
            known = values.get(json.loads(head[1]))
            if known is not None:
                made, left, end = known.text(text, at)
                self.left_out += left
            else:
                end = DECODER.raw_decode(text, at)[1]
                made = text[at:end]
            after = text.find(OPEN, end)
            at = len(text) if after < 0 else after
            found += made + text[end:at]
        return found + text[at:]
