"""Log-probabilities of a given text: the engine is made to write it, one token after the other.

llama.cpp says nothing of a prompt's own tokens. A grammar of token ids leaves it one choice each time, and the
log-probabilities that it reports are those from before the grammar. Two kinds of tokens cannot be written by force: it stops at
those that end a text, and it leaves out those that end within a character. They are looked up among all of the alternatives
to a token that can.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stillroom.runtime import transport
from stillroom.runtime.engine import Engine

SPAN = 256
"""Tokens that are written by one request: a client that leaves ends the work after that many."""
EVERY = 1 << 20
"""More alternatives than any vocabulary has."""


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
    """
    found: list[dict[str, Any]] = []
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
        found.append(await _looked_up(engine, slot, ids[: begin + same], wanted[same], top, cached or begin + same > 1))
        span = max(8, 2 * same)
    return found


async def _looked_up(
    engine: Engine, slot: int, before: Sequence[int], wanted: int, top: int, cached: bool
) -> dict[str, Any]:
    """The entry of a token that cannot be written by force."""
    plain = await transport.call(engine.socket, engine.key, "POST", "/tokenize", {"content": "a", "add_special": False})
    body = {"prompt": list(before), "temperature": 0, "id_slot": slot, "cache_prompt": cached, "max_tokens": 1}
    forced = {"logprobs": EVERY, "grammar": token_grammar(plain["tokens"][:1])}
    entries = await _entries(engine, {**body, **forced})
    every = entries[0].get("top_logprobs", []) if entries else []
    entry = next((each for each in every if each.get("id") == wanted), None)
    if entry is None:
        raise transport.EngineRefused(400, {"message": f"The vocabulary has no token {wanted}."})
    return {**entry, "top_logprobs": every[:top]}


async def _entries(engine: Engine, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = await transport.call(engine.socket, engine.key, "POST", "/v1/completions", body)
    choice = (answer.get("choices") or [{}])[0]
    entries: list[dict[str, Any]] = (choice.get("logprobs") or {}).get("content") or []
    return entries
