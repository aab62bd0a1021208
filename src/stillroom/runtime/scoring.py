"""Log-probabilities of a given text: the engine is made to write it, one token after the other.

llama.cpp says nothing of a prompt's own tokens. A grammar of token ids leaves it one choice each time, and the
log-probabilities that it reports are those from before the grammar.
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
        EngineRefused: It does not take the text, which may be too long.
    """
    found: list[dict[str, Any]] = []
    while len(found) < len(ids) - 1:
        begin = len(found) + 1
        found += await _span(engine, slot, ids, begin, min(len(ids), begin + SPAN), top, cached or begin > 1)
    return found


async def _span(
    engine: Engine, slot: int, ids: Sequence[int], begin: int, end: int, top: int, cached: bool
) -> list[dict[str, Any]]:
    """Entries of the tokens from ``begin`` to before ``end``."""
    body = {"prompt": list(ids[:begin]), "temperature": 0, "logprobs": top, "id_slot": slot, "cache_prompt": cached}
    forced = {**body, "max_tokens": end - begin, "grammar": token_grammar(ids[begin:end])}
    try:
        entries = await _entries(engine, forced)
    except transport.EngineRefused as error:
        if error.status < 500 or error.error.get("type") == "exceed_context_size_error":
            raise
        entries = []
    if [entry.get("id") for entry in entries] == list(ids[begin:end]):
        return entries
    # A token that ends texts cannot be written by force: it is looked up among all of the alternatives.
    if end - begin > 1:
        middle = (begin + end) // 2
        first = await _span(engine, slot, ids, begin, middle, top, cached)
        return first + await _span(engine, slot, ids, middle, end, top, True)
    (entry, *_) = await _entries(engine, {**body, "max_tokens": 1, "logprobs": EVERY}) or [{}]
    every = entry.get("top_logprobs", [])
    wanted = next((each for each in every if each.get("id") == ids[begin]), None)
    if wanted is None:
        raise transport.EngineRefused(400, {"message": f"The vocabulary has no token {ids[begin]}."})
    return [{**wanted, "top_logprobs": every[:top]}]


async def _entries(engine: Engine, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = await transport.call(engine.socket, engine.key, "POST", "/v1/completions", body)
    choice = (answer.get("choices") or [{}])[0]
    entries: list[dict[str, Any]] = (choice.get("logprobs") or {}).get("content") or []
    return entries
