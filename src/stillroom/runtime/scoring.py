"""Log-probabilities of a given text: the engine is made to write it, one token after the other.

llama.cpp says nothing of a prompt's own tokens. A grammar of token ids leaves it one choice each time, and the
log-probabilities that it reports are those from before the grammar. Two kinds of tokens cannot be written by force: it stops at
those that end a text, and it leaves out those that end within a character. They are looked up among all of the alternatives
to a token that can.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.runtime import transport
from stillroom.runtime.engine import Engine

SPAN = 256
"""Tokens that are written by one request: a client that leaves ends the work after that many."""
LIKELY, EVERY = 1024, 1 << 20
"""Alternatives among which a token is looked up: first those that it most often is among, then more than any vocabulary has."""


def token_grammar(ids: Sequence[int]) -> str:
    """The grammar (GBNF) of one sequence of tokens."""
    return "root ::= " + " ".join(f"<[{number}]>" for number in ids)


async def prompt_logprobs(
    engine: Engine, slot: int, ids: Sequence[int], top: int, cached: bool
) -> list[dict[str, Any]]:
    """What the model thinks of each token but the first.

    Args:
        engine: The engine.
        slot: The slot that does it.
        ids: The text, as ids of tokens.
        top: Alternatives to each token, at least one.
        cached: Whether the slot may go on from what it holds.

    Returns:
        One entry for each token after the first: ``id``, ``token``, ``bytes``, ``logprob`` and ``top_logprobs``.

    Raises:
        EngineGone: It ended.
        EngineRefused: It does not take the text, which may be too long or have a token that there is not.
        EngineFailed: Its log-probabilities are not numbers.
    """
    found: list[dict[str, Any]] = []
    plain = await _plain(engine)
    span = SPAN
    while len(found) < len(ids) - 1:
        begin = len(found) + 1
        wanted = list(ids[begin : begin + span])
        body = {"prompt": list(ids[:begin]), "temperature": 0, "id_slot": slot, "cache_prompt": cached or begin > 1}
        forced = {"max_tokens": len(wanted), "logprobs": top, "grammar": token_grammar(wanted)}
        try:
            entries = await _entries(engine, {**body, **forced})
        except transport.EngineRefused as error:
            if error.error.get("type") == "exceed_context_size_error":
                raise
            if span > 1:
                # A token that ends texts is somewhere among them.
                span //= 2
                continue
            entries = []
        same = next((at for at, entry in enumerate(entries) if entry["id"] != wanted[at]), len(entries))
        found += entries[:same]
        if same == len(wanted):
            span = min(SPAN, 2 * span)
            continue
        before, known = ids[: begin + same], cached or begin + same > 1
        found.append(await _looked_up(engine, slot, before, wanted[same], top, plain, cached=known))
        span = max(8, 2 * same)
    return found


async def _plain(engine: Engine) -> int:
    """A token that ends no text and is whole characters."""
    wanted = {"content": "a", "add_special": False}
    token: int = (await transport.call(engine.socket, engine.key, "POST", "/tokenize", wanted))["tokens"][0]
    return token


async def _looked_up(
    engine: Engine, slot: int, before: Sequence[int], wanted: int, top: int, plain: int, *, cached: bool
) -> dict[str, Any]:
    """The entry of a token that cannot be written by force: from the list that comes with ``plain``, which can."""
    body = {"prompt": list(before), "temperature": 0, "id_slot": slot, "cache_prompt": cached, "max_tokens": 1}
    for count in (LIKELY, EVERY):
        forced = {"logprobs": count, "grammar": token_grammar([plain])}
        entries = await _entries(engine, {**body, **forced})
        every = entries[0].get("top_logprobs", []) if entries else []
        entry = next((each for each in every if each.get("id") == wanted), None)
        if entry is not None:
            return {**entry, "top_logprobs": every[:top]}
        body["cache_prompt"] = True
    raise transport.EngineRefused(400, {"message": f"The vocabulary has no token {wanted}."})


@dataclass
class Written:
    """What an engine wrote, told token by token.

    Attributes:
        text: The text, up to a stop.
        entries: One for each token, those of the stop too, as :func:`prompt_logprobs` has them.
        finish: Why it ended, in the words of the OpenAI API.
        timings: The engine's own, which count its tokens.
    """

    text: str
    entries: list[dict[str, Any]]
    finish: str
    timings: dict[str, Any]


async def written_logprobs(
    engine: Engine, slot: int, ids: Sequence[int], settings: dict[str, Any], top: int
) -> Written:
    """Have an engine write, and say what the model thinks of each token that it wrote.

    In a stream, and in what it lists at the end, llama.cpp leaves out tokens that end within a character, and some of those
    before a stop. The ids that it returns are all of them: those that it does not list are looked up.

    Args:
        engine: The engine.
        slot: The slot that does it.
        ids: The prompt.
        settings: Of the request, without prompt and log-probabilities.
        top: Alternatives to each token, at least one.

    Raises:
        EngineGone: It ended.
        EngineRefused: It does not take the request.
        EngineFailed: Its log-probabilities are not numbers.
    """
    stop = settings.get("stop", [])
    body = {
        **settings,
        "stop": [stop] if isinstance(stop, str) else stop,
        "prompt": list(ids),
        "id_slot": slot,
        "n_probs": top,
        "return_tokens": True,
    }
    answer = await transport.call(engine.socket, engine.key, "POST", "/completion", body)
    tokens, listed = answer.get("tokens", []), deque(answer.get("completion_probabilities") or [])
    engine.require_finite(listed)
    entries: list[dict[str, Any]] = []
    plain, tail = await _plain(engine), b""
    for at, token in enumerate(tokens):
        entry = None
        if listed and listed[0]["id"] == token and not _cut_off(tail + bytes(listed[0]["bytes"])):
            entry = listed.popleft()
            ends = at + 1 == len(tokens) and answer.get("stop_type") == "eos"
            if (body["stop"] and not ends) or _cut_off(tail):
                entry = await _own_text(engine, entry)
        if entry is None:
            entry = await _looked_up(engine, slot, [*ids, *tokens[:at]], token, top, plain, cached=True)
        entries.append(entry)
        tail = (tail + bytes(entry["bytes"]))[-4:]
    # What of a character was written when the answer had to end is no text.
    text = answer["content"].removesuffix("\ufffd") if _cut_off(tail) else answer["content"]
    finish = "stop" if answer.get("stop_type") in ("eos", "word") else "length"
    return Written(text, entries, finish, answer.get("timings") or {})


async def _own_text(engine: Engine, entry: dict[str, Any]) -> dict[str, Any] | None:
    """An entry with its token's own text, where llama.cpp lists the text that it held back until then, or none of it yet; None
    where the text cannot be told from the token alone.
    """
    same = next((each for each in entry["top_logprobs"] if each["id"] == entry["id"]), None)
    if same is not None:
        return {**entry, "token": same["token"], "bytes": same["bytes"]}
    text = (await transport.call(engine.socket, engine.key, "POST", "/detokenize", {"tokens": [entry["id"]]}))[
        "content"
    ]
    return None if "\ufffd" in text else {**entry, "token": text, "bytes": list(text.encode())}


def _cut_off(data: bytes) -> bool:
    """Whether a text ends within a character, as llama.cpp sees it: it lists no token there."""
    for back in range(1, min(3, len(data)) + 1):
        lead = data[-back]
        size = 4 if lead >> 3 == 0b11110 else 3 if lead >> 4 == 0b1110 else 2 if lead >> 5 == 0b110 else 1
        if back < size:
            return True
    return False


async def _entries(engine: Engine, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = await transport.call(engine.socket, engine.key, "POST", "/v1/completions", body)
    choice = (answer.get("choices") or [{}])[0]
    entries: list[dict[str, Any]] = (choice.get("logprobs") or {}).get("content") or []
    engine.require_finite(entries)
    return entries
