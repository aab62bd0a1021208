"""A conversation with a model, and a single question."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Any

from stillroom.core.errors import StillroomError, UsageError
from stillroom.runtime.engine import Engine, EngineOptions
from stillroom.runtime.facts import GgufFacts, read_facts
from stillroom.serving.models import open_model
from stillroom.serving.shield import Shield
from stillroom.serving.speech import pair_of
from stillroom.switch import require_on


class Chat:
    """A conversation with a model, which runs in a process of its own until it is closed. Use it as a context manager.

    Args:
        model: A package, a run or its folder, or a GGUF file.
        system: What the model is told before the conversation.
        context: Tokens of context, rounded up to a multiple of 256.

    Attributes:
        messages: What was said so far, each with ``role`` and ``content``.
        name: What the model is called.
        engine: The model's process.
        facts: What the model's file says of itself.

    Raises:
        SwitchedOff: The owner's switch is off.
        StillroomError: The model cannot be opened, or its weights are damaged.
    """

    def __init__(self, model: str | os.PathLike[str], *, system: str | None = None, context: int = 2048) -> None:
        require_on("chat")
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        with contextlib.ExitStack() as stack:
            self._model = stack.enter_context(open_model(Path(model)))
            self.engine = stack.enter_context(Engine(self._model.gguf, EngineOptions(context=context)))
            self.engine.require_numbers()
            self._stack = stack.pop_all()
        self.name = self._model.name
        self.facts = read_facts(self._model.gguf)

    def passport(self) -> dict[str, Any]:
        """What is known of the model, and who says so."""
        return self._model.passport()

    def say(self, prompt: str, *, temperature: float = 0.7, max_tokens: int = 256, seed: int = 0) -> str:
        """Say something; returns the whole answer, and keeps both for what follows."""
        return "".join(self.stream(prompt, temperature=temperature, max_tokens=max_tokens, seed=seed))

    def stream(
        self, prompt: str, *, temperature: float = 0.7, max_tokens: int = 256, seed: int = 0
    ) -> Generator[str, None, None]:
        """Say something; yields the answer as it is written. Closing the generator stops the answer; what was written is kept.

        What was said is kept with it, unless nothing was answered because of an error, such as a context that is full.

        Args:
            prompt: What is said.
            temperature: 0 always takes the most probable token.
            max_tokens: Longest answer, in tokens.
            seed: Seed of the sampling.
        """
        require_on("chat")
        said = {"role": "user", "content": prompt}
        written: list[str] = []
        prompt_ids = rendered(self.engine, self.facts, [*self.messages, said])
        tokens = self.engine.stream_prompt(
            prompt_ids, temperature=temperature, max_tokens=max_tokens, seed=seed, **kept(self.facts)
        )
        try:
            for text in tokens:
                written.append(text)
                yield text
        except StillroomError:
            if not written:
                said = {}
            raise
        finally:
            if isinstance(tokens, Generator):
                tokens.close()
            if said:
                self.messages += [said, {"role": "assistant", "content": "".join(written)}]

    def clear(self, system: str | None = None) -> None:
        """Begin anew, with another text in front of the conversation if one is given."""
        kept_system = [message for message in self.messages if message["role"] == "system"]
        self.messages = [{"role": "system", "content": system}] if system else kept_system

    def close(self) -> None:
        """End the model's process."""
        self._stack.close()

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


def answer(
    model: str | os.PathLike[str], prompt: str, max_tokens: int = 128, temperature: float = 0.0, seed: int = 0
) -> str:
    """Ask a model once: what :func:`stillroom.answer` does."""
    with open_model(Path(model)) as opened, Engine(opened.gguf, EngineOptions()) as engine:
        engine.require_numbers()
        facts = read_facts(opened.gguf)
        asked = rendered(engine, facts, [{"role": "user", "content": prompt}])
        tokens = engine.stream_prompt(asked, max_tokens=max_tokens, temperature=temperature, seed=seed, **kept(facts))
        return "".join(tokens).strip()


def kept(facts: GgufFacts) -> dict[str, Any]:
    """The marks of reasoning are shown, also where they are control tokens."""
    pair = pair_of(facts.template)
    return {"preserved_tokens": list(pair)} if pair is not None else {}


def rendered(engine: Engine, facts: GgufFacts, messages: list[dict[str, str]]) -> str | list[Any]:
    """A conversation as a prompt, by the model's own template; what is written in it is never markup.

    Raises:
        UsageError: A message has a lone surrogate: half a character, which no tokenizer takes.
        EngineFailed: The template takes no such conversation.
    """
    for message in messages:
        _require_characters(message["content"])
    shield = Shield(facts.control, facts.markup)
    shielded = [
        {**message, "content": shield.protect(message["content"], own=message["role"] == "assistant")}
        for message in messages
    ]
    prompt: str = engine.call("POST", "/apply-template", {"messages": shielded})["prompt"]
    if not shield.used:
        return prompt
    parts: list[Any] = []
    for piece, is_content in shield.parts(prompt):
        if not is_content:
            parts.append(piece)
            continue
        for part in filter(None, (piece[:1], piece[1:])):
            wanted = {"content": part, "add_special": False, "parse_special": False}
            parts += engine.call("POST", "/tokenize", wanted)["tokens"]
    return parts if parts and isinstance(parts[0], str) else ["", *parts]


def _require_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"The text has half a character at position {error.start} (a lone surrogate, {text[error.start]!a}): its bytes "
            "were not UTF-8.",
            "Give the text in UTF-8.",
        ) from None
