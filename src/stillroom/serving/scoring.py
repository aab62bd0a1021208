"""Log-probabilities as completions have them, of the prompt too."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from typing import Any

from stillroom.runtime import transport as local
from stillroom.runtime.engine import Engine
from stillroom.runtime.scoring import prompt_logprobs, written_logprobs
from stillroom.serving.pool import ServedModel, Slot


class Offsets:
    """Where each token of an answer begins in its text, in characters."""

    def __init__(self) -> None:
        self._bytes = b""
        self._at = 0

    def turn(self, event: dict[str, Any], top: int | None) -> dict[str, Any]:
        """An event of the engine with log-probabilities as completions have them; without, where none were asked for."""
        for choice in event.get("choices", ()):
            entries = (choice.get("logprobs") or {}).get("content")
            choice["logprobs"] = self.old(entries, top) if entries and top is not None else None
        return event

    def old(self, entries: list[dict[str, Any]], top: int) -> dict[str, list[Any]]:
        """The entries of some tokens that follow those before."""
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for entry in entries:
            found["tokens"].append(_name(entry))
            found["token_logprobs"].append(entry["logprob"])
            others = {_name(each): each["logprob"] for each in entry.get("top_logprobs", [])[:top]}
            found["top_logprobs"].append(others if entry["logprob"] is not None else None)
            found["text_offset"].append(self._at)
            self._bytes += bytes(entry.get("bytes") or b"")
            # A character that is not whole yet begins where its first token does.
            whole = self._bytes.decode(errors="ignore")
            self._at += len(whole)
            self._bytes = self._bytes[len(whole.encode()) :][-3:]
        return found


def _name(entry: dict[str, Any]) -> str:
    """A token's text; of one that is no whole character, its bytes."""
    data = bytes(entry.get("bytes") or b"")
    try:
        return data.decode() if data else str(entry.get("token", ""))
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


@dataclass
class Scored:
    """A prompt that was read, and what the model thinks of its tokens.

    Attributes:
        ids: Its tokens.
        text: Its text.
        entries: One for each token; None where no log-probabilities were asked for.
        echo: Whether it is a part of the answer.
        top: Alternatives to each token.
        usage: Its count of tokens.
    """

    ids: list[int]
    text: str
    entries: list[dict[str, Any]] | None
    echo: bool
    top: int
    usage: dict[str, Any] = field(default_factory=dict)

    def events(self, offsets: Offsets, ends: bool) -> Iterator[dict[str, Any]]:
        """The prompt as events of a completion; ``ends`` says that nothing follows."""
        logprobs = offsets.old(self.entries, self.top) if self.entries is not None and self.echo else None
        choice = {
            "index": 0,
            "text": self.text if self.echo else "",
            "logprobs": logprobs,
            "finish_reason": "length" if ends else None,
        }
        if ends or self.echo:
            yield {"object": "text_completion", "choices": [choice]}
        if ends:
            yield {"object": "text_completion", "choices": [], **self.usage}


def usage_of(timings: dict[str, Any]) -> dict[str, Any]:
    """The count of tokens that an engine's timings tell."""
    cached = int(timings.get("cache_n", 0))
    prompt, completion = cached + int(timings.get("prompt_n", 0)), int(timings.get("predicted_n", 0))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


async def told(
    engine: Engine, slot: Slot, ids: list[int], settings: dict[str, Any], top: int
) -> AsyncGenerator[dict[str, Any] | None]:
    """An answer with an entry for each of its tokens, as events of a completion, and None at its end. They come once the
    answer is whole: only then are the tokens known that end within a character. Errors as in :func:`written_logprobs`.
    """
    answer = await written_logprobs(engine, slot.number, ids, settings, max(1, top))
    head = {"id": f"cmpl-{secrets.token_hex(16)}", "object": "text_completion", "created": int(time.time())}
    choice = {
        "index": 0,
        "text": answer.text,
        "logprobs": {"content": answer.entries},
        "finish_reason": answer.finish,
    }
    yield {**head, "choices": [choice], "timings": answer.timings}
    yield {**head, "choices": [], "usage": usage_of(answer.timings), "timings": answer.timings}
    yield None


async def require_a_beginning(engine: Engine) -> None:
    """Refuse an empty prompt to a model whose texts begin with no token of their own: it predicts nothing from nothing.

    Raises:
        EngineRefused: It is such a model.
    """
    wanted = {"content": "", "add_special": True}
    if not (await local.call(engine.socket, engine.key, "POST", "/tokenize", wanted))["tokens"]:
        said = "prompt: it is empty, and this model has no token that begins a text; give it at least one character"
        raise local.EngineRefused(400, {"message": said})


async def scored(
    engine: Engine, model: ServedModel, slot: Slot, prompt: str | list[int], top: int | None, echo: bool
) -> Scored:
    """Read a prompt, and score its tokens where that is asked for.

    Raises:
        EngineGone: It ended.
        EngineRefused: The prompt is too long, or has a token that there is not.
    """
    ids, text = prompt, prompt
    if isinstance(prompt, str):
        wanted = {"content": prompt, "add_special": True, "parse_special": True}
        ids = (await local.call(engine.socket, engine.key, "POST", "/tokenize", wanted))["tokens"]
    else:
        text = (await local.call(engine.socket, engine.key, "POST", "/detokenize", {"tokens": prompt}))["content"]
    assert isinstance(ids, list)
    assert isinstance(text, str)
    if len(ids) > model.options.context:
        error = {"type": "exceed_context_size_error", "n_prompt_tokens": len(ids), "n_ctx": model.options.context}
        raise local.EngineRefused(400, error)
    entries = None
    if echo and top is not None and ids:
        piece = (await local.call(engine.socket, engine.key, "POST", "/detokenize", {"tokens": ids[:1]}))["content"]
        first = {"id": ids[0], "token": piece, "bytes": list(piece.encode()), "logprob": None}
        # The first is scored by nothing. Whatever the slot held before is no one's business here: it is read anew.
        entries = [first, *await prompt_logprobs(engine, slot.number, ids, max(1, top), cached=False)]
    counts = {"prompt_tokens": len(ids), "completion_tokens": 0, "total_tokens": len(ids)}
    return Scored(ids, text, entries, echo, top or 0, {"usage": counts})
