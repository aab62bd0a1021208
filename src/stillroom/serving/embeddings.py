"""Embeddings of texts by a model that has them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from typing import Any

from stillroom.core.errors import EngineFailed, UsageError
from stillroom.runtime import transport as local
from stillroom.runtime.engine import Engine
from stillroom.serving.answers import ContextFull
from stillroom.serving.pool import Pool, ServedModel
from stillroom.serving.requests import EmbeddingRequest


class WrongKind(UsageError):
    """A model was asked for what it does not do."""


def require_kind(model: ServedModel, embeddings: bool) -> ServedModel:
    """The model, if it does what it is asked for.

    Raises:
        WrongKind: It writes text and is asked for embeddings, or the other way round.
    """
    if model.embedding != embeddings:
        does, asked = ("embeddings", "text") if model.embedding else ("text", "embeddings")
        raise WrongKind(f"{model.name} is a model of {does}, not of {asked}.", "Serve one that is.")
    return model


async def embed(pool: Pool, model: ServedModel, asked: EmbeddingRequest, owner: str = "") -> dict[str, Any]:
    """One embedding a text, in the words of the OpenAI API; in the turn of whose request it is.

    Raises:
        ContextFull: A text is longer than the context.
        EngineFailed: The engine could not be started, or ended over this request.
        UsageError: Embeddings of another length were asked for, or an id is no token of the model's.
    """
    texts = asked.texts()
    await _require_tokens(model, [index for text in texts if isinstance(text, list) for index in text])
    wanted = {"input": texts, "encoding_format": asked.encoding_format or "float"}
    fingerprint = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    model.require_harmless(fingerprint)
    async with model.slot("", owner=owner):
        try:
            found = await _embedded(pool, model, wanted, fingerprint)
        except local.EngineRefused as error:
            # A text is embedded in one step, and the step is as long as the context.
            if "too large to process" in str(error) or "context size" in str(error):
                raise ContextFull(
                    f"A text is longer than the context of {model.options.context} tokens.",
                    model.if_too_long,
                ) from None
            raise
    _require_long(found, asked.dimensions)
    found["model"] = model.name
    return found


async def _embedded(pool: Pool, model: ServedModel, wanted: dict[str, Any], fingerprint: str) -> dict[str, Any]:
    """The engine's answer. An engine that dies is started again, once; not for a request that may be what killed it."""
    for again in (True, False):
        engine = await pool.running(model)
        model.begin(fingerprint)
        try:
            wanted = {**wanted, "input": [await _plain(engine, model, text) for text in wanted["input"]]}
            return await local.call(engine.socket, engine.key, "POST", "/v1/embeddings", wanted)
        except local.EngineGone as gone:
            alone = await model.ended(fingerprint, engine, reached=not isinstance(gone, local.EngineUnreached))
            await model.lost(engine)
            model.switch.require_on()
            if alone:
                raise EngineFailed(
                    f"The runtime process of {model.name} ended over this request.", "It is not tried again: change it."
                ) from None
            if not again:
                break
        finally:
            model.done(fingerprint)
    raise EngineFailed(f"The runtime process of {model.name} ended.", "Ask again; it is started anew.")


async def _plain(engine: Engine, model: ServedModel, text: str | list[int]) -> str | list[int]:
    """A text as the engine takes it: what spells a control token is tokenized as the plain text that it is."""
    if isinstance(text, list) or not any(token in text for token in model.facts.control):
        return text
    asked = {"content": text, "add_special": True, "parse_special": False}
    ids: list[int] = (await local.call(engine.socket, engine.key, "POST", "/tokenize", asked))["tokens"]
    return ids


async def _require_tokens(model: ServedModel, ids: list[int]) -> None:
    """Refuse ids that the model's vocabulary does not have.

    Raises:
        UsageError: Names the first.
    """
    size = await asyncio.to_thread(model.vocabulary) if ids else 0
    if unknown := next((index for index in ids if index >= size), None):
        raise UsageError(f"input: the vocabulary has no token {unknown}.", f"Ids are below {size}.")


def _require_long(found: dict[str, Any], wanted: int | None) -> None:
    """Refuse embeddings of another length than was asked for: they are as long as the model makes them.

    Raises:
        UsageError: They are of another length.
    """
    for each in found.get("data", ())[:1] if wanted is not None else ():
        value = each["embedding"]
        length = len(value) if isinstance(value, list) else len(base64.b64decode(value)) // 4
        if length != wanted:
            raise UsageError(f"dimensions: this model's embeddings have {length}, not {wanted}.", "Leave it out.")
