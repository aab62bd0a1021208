"""A task's problems and what counts as right."""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["choice", "exact", "code", "rolling", "check"]


@dataclass(frozen=True)
class Item:
    """One problem.

    Attributes:
        prompt: The context; for ``rolling`` the text itself.
        messages: The same as a chat, for models with a template; empty for a plain continuation.
        choices: Continuations to choose from.
        right: Index of the right choice, or the texts that are right.
        test: Program that checks an answer; ``{answer}`` is what was written.
        check: Says whether a written answer is right, for ``check``.
        tools: Tools that are offered.
    """

    prompt: str
    messages: tuple[dict[str, Any], ...] = ()
    choices: tuple[str, ...] = ()
    right: int | tuple[str, ...] = ()
    test: str = ""
    check: Callable[[str], bool] | None = None
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Task:
    """Problems of one kind.

    Attributes:
        name: Its name.
        kind: How answers are made and evaluated.
        items: The problems.
        source: Where they come from, for the report.
        stops: Texts that end an answer.
        max_tokens: Longest answer, or None for the recipe's.
        ignore_case: Compare exact answers without case and spare white space.
        ignore_punctuation: Compare exact answers without punctuation and spare white space.
        by_length: Choose by log-likelihood a byte of the choice (``acc_norm``) instead of the sum (``acc``).
        pattern: What of an answer is compared: its first group, or the whole match; the last one that is found.
        never_called: Problems that are right when nothing is called, so that a model that calls nothing gets them all.
        digest: Changes when the problems do.
    """

    name: str
    kind: Kind
    items: tuple[Item, ...]
    source: str
    stops: tuple[str, ...] = ()
    max_tokens: int | None = None
    ignore_case: bool = False
    ignore_punctuation: bool = False
    by_length: bool = False
    pattern: str | None = None
    never_called: bool = False
    digest: str = field(default="")

    @property
    def chance(self) -> float:
        """The share that is right without reading the problem: by guessing among choices, or by never calling."""
        if self.kind == "choice" and self.items:
            return sum(1 / len(item.choices) for item in self.items) / len(self.items)
        return 1.0 if self.never_called else 0.0


def choose(scores: list[float], choices: tuple[str, ...], by_length: bool) -> int:
    """The likeliest choice; the first of equals."""
    values = [
        score / max(1, len(choice.encode())) if by_length else score
        for score, choice in zip(scores, choices, strict=True)
    ]
    return max(range(len(values)), key=values.__getitem__)


def is_exact(answer: str, right: tuple[str, ...], task: Task) -> bool:
    """Whether an answer is one of the right ones."""
    if task.pattern is not None:
        found = list(re.finditer(task.pattern, answer))
        if not found:
            return False
        compared = found[-1].group(1) if found[-1].re.groups else found[-1].group()
        if compared is None:
            # The pattern is there, and its first group has no part in it.
            return False
        answer = compared
    return _compared(answer, task) in {_compared(text, task) for text in right}


def _compared(text: str, task: Task) -> str:
    """What of a text is compared."""
    if task.ignore_case:
        text = text.lower()
    if task.ignore_punctuation:
        text = text.translate(str.maketrans("", "", string.punctuation))
    return " ".join(text.split()) if task.ignore_case or task.ignore_punctuation else text.strip()
