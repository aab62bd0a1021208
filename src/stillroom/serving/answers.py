"""Answers of one model: from a request to the engine's stream, through queue, session, crash, full context and switch.

Conversations are rendered by the model's own template, inside the engine's process; what clients wrote is told from markup
on the way (:mod:`.shield`). What comes out is a stream of events in the words of the OpenAI API; a client that wants one answer
joins them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from stillroom.core.errors import EngineFailed
from stillroom.runtime import transport as local
from stillroom.runtime.engine import Engine
from stillroom.runtime.facts import GgufFacts
from stillroom.serving import grammars, scoring, tools
from stillroom.serving.pool import SOMEBODY, Pool, ServedModel, Slot, common, restore_slot, save_slot
from stillroom.serving.repeats import Repeats
from stillroom.serving.requests import ChatRequest, CompletionRequest, Form, Message, Schemas
from stillroom.serving.sessions import Session, SessionStore
from stillroom.serving.shield import Shield
from stillroom.serving.speech import Speech, pair_of
from stillroom.serving.stops import Stops
from stillroom.serving.turns import PIECE

CONTEXT_POLICY = (
    "In a session whose context is full, the oldest messages after the system message are left out, two at a time, and "
    "the answer says how many. Without a session, a prompt that is too long is refused."
)
_TOO_LONG = "exceed_context_size_error"


class ContextFull(EngineFailed):
    """The prompt is longer than the model's context."""


@dataclass
class Question:
    """What one request asks of an engine.

    Attributes:
        body: Its settings, without the prompt.
        owner: Whose request it is: contexts and sessions of others are out of its reach.
        messages: The conversation as texts with stand-ins; None for a completion.
        shield: What the stand-ins stand for.
        settings: What the chat template is told besides.
        prompt: The prompt of a completion.
        calls: Whether the answer may be tool calls; "old" for the form with one function.
        json: Whether the answer is one JSON value.
        top: Alternatives to each token that the client wants; None where it wants no log-probabilities.
        echo: Whether the prompt is a part of the answer.
        stops: Texts that end a text answer, where the engine is not told of them.
        session: The session that it goes on with.
        said: The messages that are new in the session.
        watched: Whether what the engine writes is held against the grammar.
        repeats: What leaves repeats out of lists that may hold none; None where there are no such lists.
        left_out: How many messages did not fit.
        reasoning: What the model thought, once it is answered.
        usage: Where its tokens are counted as they are sent, for the log of requests.
    """

    body: dict[str, Any]
    owner: str = ""
    messages: list[dict[str, str]] | None = None
    shield: Shield | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    prompt: str | list[int] = ""
    calls: bool | str = False
    json: bool = False
    top: int | None = None
    echo: bool = False
    stops: list[str] = field(default_factory=list)
    session: Session | None = None
    said: list[dict[str, Any]] = field(default_factory=list)
    watched: bool = False
    repeats: Repeats | None = None
    left_out: int = 0
    reasoning: str = ""
    usage: dict[str, int] = field(default_factory=dict)

    @property
    def constrained(self) -> bool:
        """Whether a grammar decides the answer's form."""
        return "grammar" in self.body

    @property
    def text(self) -> str:
        """All that it puts into a context, as one text that grows with the conversation."""
        if self.messages is not None and self.shield is not None:
            return self.shield.restore("".join(_turn(message["role"], message["content"]) for message in self.messages))
        return self.prompt if isinstance(self.prompt, str) else " ".join(map(str, self.prompt))

    def fingerprint(self) -> str:
        """What tells this request from others, no matter who sends it."""
        told = json.dumps([self.text, self.body, self.top, self.stops], sort_keys=True, default=str)
        return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()


def _turn(role: str, content: str) -> str:
    return f"{role}\n{content}\n"


def _held_to(form: Form) -> str:
    """The grammar of a form.

    Raises:
        UnsupportedSchema: It cannot be guaranteed.
    """
    try:
        if form.kind == "json":
            return grammars.json_grammar(form.value)
        if form.kind == "regex":
            return grammars.regex_grammar(form.value)
        return grammars.choice_grammar(form.value) if form.kind == "choice" else grammars.client_grammar(form.value)
    except grammars.UnsupportedSchema as error:
        raise grammars.UnsupportedSchema(f"{form.key}: {error}") from None


def _constrain(question: Question, request: Schemas, facts: GgufFacts) -> None:
    form = request.form()
    if form is not None:
        question.body["grammar"] = grammars.require_writable(_held_to(form), facts.control)
        question.json = form.kind == "json"
        question.watched = True
        distinct = grammars.distinct(form.value) if form.kind == "json" else None
        if distinct is not None:
            question.repeats = Repeats(distinct)
            _require_no_logprobs(question)


def _require_no_logprobs(question: Question) -> None:
    """Values may be left out of the answer: there is no saying which tokens are left.

    Raises:
        UnsupportedSchema: Log-probabilities were asked for.
    """
    if question.top is not None:
        raise grammars.UnsupportedSchema("uniqueItems is not available with logprobs.", "Leave one of them out.")


def chat_question(request: ChatRequest, session: Session | None, facts: GgufFacts, owner: str = "") -> Question:
    """What a chat completion asks.

    Raises:
        UnsupportedSchema: A schema cannot be guaranteed.
    """
    body = request.sampling()
    limit = request.max_completion_tokens or request.max_tokens
    if limit is not None:
        body["max_tokens"] = limit
    top = (request.top_logprobs or 0) if request.logprobs else None
    before = [Message.model_validate(message) for message in session.messages] if session else []
    shield = Shield(facts.control, facts.markup)
    question = Question(
        body,
        owner,
        messages=tools.plain_messages([*before, *request.messages], request, shield),
        shield=shield,
        settings={
            name: shield.protect(value) if isinstance(value, str) else value
            for name, value in request.template_settings().items()
        },
        calls=("old" if request.functions else True) if request.uses_tools() else False,
        top=top,
        session=session,
        said=[message.model_dump(exclude_none=True, exclude={"reasoning"}) for message in request.messages],
    )
    _constrain(question, request, facts)
    if request.uses_tools():
        body["grammar"] = grammars.require_writable(tools.grammar_of_calls(request), facts.control)
        question.watched = True
        stop = body.pop("stop", [])
        question.stops = [stop] if isinstance(stop, str) else stop
        question.repeats = _repeats_of_calls(request)
        if question.repeats is not None:
            _require_no_logprobs(question)
    if question.constrained:
        # The grammar holds from the first token on: there is no space for thoughts.
        question.settings["enable_thinking"] = False
        question.settings.pop("reasoning_effort", None)
    return question


def _repeats_of_calls(request: ChatRequest) -> Repeats | None:
    found = {}
    for tool in request.tools or []:
        distinct = grammars.distinct(grammars.arguments_schema(tool.function.parameters))
        if distinct is not None:
            found[tool.function.name] = distinct
    return Repeats(found) if found else None


def completion_question(
    request: CompletionRequest, prompt: str | list[int], facts: GgufFacts, owner: str = ""
) -> Question:
    """What a completion of one prompt asks.

    Raises:
        UnsupportedSchema: A schema cannot be guaranteed.
    """
    body = request.sampling()
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    question = Question(body, owner, prompt=prompt, top=request.logprobs, echo=bool(request.echo))
    _constrain(question, request, facts)
    return question


class Answerer:
    """Answers questions with the models of a pool.

    Args:
        pool: The models.
        sessions: The kept conversations.
    """

    def __init__(self, pool: Pool, sessions: SessionStore) -> None:
        self.pool = pool
        self.sessions = sessions
        # One at a time: each holds the interpreter for a part of its time.
        self._watches = ThreadPoolExecutor(1, "watch")
        self.tokens = {"prompt": 0, "completion": 0, "drafted": 0, "accepted": 0}

    async def events(self, model: ServedModel, question: Question) -> AsyncGenerator[dict[str, Any]]:
        """The engine's events, one at a time. An engine that dies before the first is started again, once; not for a request
        that was alone with it, which may be what killed it.

        Raises:
            SwitchedOff: The switch is off.
            QueueFull: Too many requests wait.
            ContextFull: The prompt is too long.
            EngineFailed: The engine died by this request, twice, or after the answer had begun.
        """
        session = question.session
        fingerprint = question.fingerprint()
        model.require_harmless(fingerprint)
        async with model.slot(question.text, session.id if session else None, question.owner) as slot:
            begun, again = False, True
            engine: Engine | None = None
            while True:
                speech: Speech | None = None
                sent = 0
                text: list[str] = []
                finish = ""
                if question.repeats is not None:
                    question.repeats.begin()
                # Compiled while the engine compiles and reads, and nowhere near the loop that answers.
                watching = self._watch(question.body["grammar"]) if question.watched else None
                watch: grammars.Watch | None = None
                try:
                    engine = await self.pool.running(model)
                    model.begin(fingerprint)
                    mine = slot.owner == question.owner
                    if session is not None and slot.session != session.id:
                        state = await asyncio.to_thread(self.sessions.load_state, session, model.digest)
                        if state is not None and await restore_slot(engine, slot, state):
                            mine = True
                    # A context of somebody else's is not gone on from: neither its time nor its count may tell of it.
                    body: dict[str, Any] = {**question.body, "id_slot": slot.number, "cache_prompt": mine}
                    known = common(question.text, slot.held) / max(1, len(question.text)) if mine else 0.0
                    # Until the engine has begun with this one, the slot still holds what it held.
                    slot.held, slot.session = question.text, None
                    slot.owner = question.owner if mine else SOMEBODY
                    prompt: Any = question.prompt
                    if question.messages is not None:
                        prompt, opened = await _rendered(engine, model, question)
                        speech = Speech(pair_of(model.facts.template), opened, question.top)
                        if (pair := pair_of(model.facts.template)) is not None:
                            body["preserved_tokens"] = list(pair)
                    else:
                        offsets = scoring.Offsets()
                        if prompt == "":
                            await scoring.require_a_beginning(engine)
                        if question.echo or question.body.get("max_tokens") == 0:
                            scored = await scoring.scored(engine, model, slot, prompt, question.top, question.echo)
                            begun = True
                            ends = question.body.get("max_tokens") == 0
                            if scored.entries is not None:
                                slot.owner = question.owner
                            for event in scored.events(offsets, ends):
                                yield event
                            if ends:
                                self._count(scored.usage, question, 0)
                                break
                            prompt, body["cache_prompt"] = scored.ids, scored.entries is not None or mine
                    ahead = await _read_ahead(engine, model, question, prompt, body, known) if model.shared else None
                    if ahead is not None:
                        prompt, body["cache_prompt"] = ahead.ids, True
                    stops = Stops(question.stops) if question.stops else None
                    async with (
                        _begun_in_turn(model, question) as turn,
                        _used(model, question, _size(prompt) - (ahead.read if ahead is not None else 0)) as use,
                        _answering(engine, slot, question, prompt, body) as answering,
                    ):
                        ended = False
                        async for found in answering:
                            model.heard()
                            await turn.aclose()
                            if not begun:
                                use.enter_context(model.turns.answering(question.owner))
                            if found is None:
                                ended = True
                                break
                            event = found
                            begun, slot.owner = True, question.owner
                            if ahead is not None:
                                ahead.correct(event)
                            text += (written := _texts(event))
                            # At least one token each: a client that hangs up before the engine's count leaves these.
                            if any(written):
                                sent += 1
                                _add_up(question.usage, "completion_tokens", 1)
                            self._count(event, question, sent)
                            if watching is not None:
                                watch, watching = await watching, None
                            if watch is not None and not watch.takes("".join(written)):
                                raise EngineFailed(
                                    "The engine left the form of the answer.", "Ask again, with a simpler schema."
                                )
                            if stops is not None:
                                event = stops.turn(event)
                            finish = next(
                                (c["finish_reason"] for c in event.get("choices", ()) if c.get("finish_reason")), finish
                            )
                            if question.repeats is not None:
                                event = question.repeats.turn(event)
                            for each in (
                                speech.turn(event) if speech is not None else [offsets.turn(event, question.top)]
                            ):
                                yield each
                            if stops is not None and stops.found:
                                break
                        if stops is not None and stops.found:
                            # Leaving the block stops the engine, which counted its tokens with each event.
                            model.suspect = True
                            event = stops.last()
                            if ahead is not None:
                                ahead.correct(event)
                            self._count(event, question, sent)
                            yield event
                        elif not ended:
                            raise local.EngineGone
                    stopped = bool(question.body.get("stop")) or (stops is not None and stops.found)
                    by_itself = finish == "stop" and not stopped
                    if by_itself and (
                        (question.json and not _is_json("".join(text))) or (watch is not None and not watch.may_end())
                    ):
                        raise EngineFailed(
                            "The engine left the form of the answer.", "Ask again, with a simpler schema."
                        )
                except local.EngineGone as gone:
                    alone = await model.ended(fingerprint, engine, reached=not isinstance(gone, local.EngineUnreached))
                    await model.lost(engine)
                    model.switch.require_on()
                    if alone and not begun:
                        raise EngineFailed(
                            f"The runtime process of {model.name} ended over this request.",
                            "It is not tried again: change it.",
                        ) from None
                    if begun or not again:
                        raise EngineFailed(
                            f"The runtime process of {model.name} ended.", "Ask again; it is started anew."
                        ) from None
                    again = False
                    continue
                except local.EngineRefused as error:
                    if error.error.get("type") == _TOO_LONG:
                        if session is not None and _leave_out(question):
                            continue
                        raise ContextFull(
                            f"The prompt has {error.error.get('n_prompt_tokens')} tokens, and the context "
                            f"{error.error.get('n_ctx')}.",
                            model.if_too_long,
                        ) from None
                    raise
                except (asyncio.CancelledError, GeneratorExit):
                    # A client that gave up may have left an engine behind that never comes to its next step.
                    model.suspect = True
                    raise
                finally:
                    model.done(fingerprint)
                    if watching is not None:
                        watching.cancel()
                break
            answer = speech.content if speech is not None else "".join(text)
            question.reasoning = speech.reasoning if speech is not None else ""
            slot.held += answer if question.messages is None else _turn("assistant", answer)
            if session is not None and engine is not None:
                await self._keep(engine, model, slot, question, answer)

    def _watch(self, grammar: str) -> asyncio.Future[grammars.Watch]:
        return asyncio.get_running_loop().run_in_executor(self._watches, grammars.Watch, grammar)

    async def several(self, model: ServedModel, questions: list[Question]) -> AsyncGenerator[dict[str, Any]]:
        """The events of several completions, one after the other, with one count of tokens for all. Errors as above."""
        usage: dict[str, Any] = {}
        head: dict[str, Any] = {"object": "text_completion"}
        for index, question in enumerate(questions):
            async with contextlib.aclosing(self.events(model, question)) as events:
                async for event in events:
                    usage = _sum(usage, event.pop("usage", None) or {})
                    for choice in event.get("choices", ()):
                        choice["index"] = index
                    head = {**event, "choices": []}
                    if event.get("choices") or "error" in event:
                        yield event
        yield {**head, "usage": usage}

    async def _keep(self, engine: Engine, model: ServedModel, slot: Slot, question: Question, answer: str) -> None:
        session = question.session
        assert session is not None
        said: dict[str, Any] = {"role": "assistant", "content": answer}
        if question.calls and answer.startswith(grammars.OPEN[0]):
            # As it was delivered: of calls that were cut off, the whole ones.
            calls = tools.parse_calls(answer)
            said = {"role": "assistant", "content": None if calls else "", **({"tool_calls": calls} if calls else {})}
        if question.reasoning:
            said["reasoning_content"] = question.reasoning
        # A session that was deleted meanwhile stays deleted, and a new name stays new.
        if not await asyncio.to_thread(self.sessions.append, session, [*question.said, said], question.left_out):
            return
        slot.session = session.id
        state = await save_slot(engine, slot)
        if state is not None:
            await asyncio.to_thread(self.sessions.save_state, session, state, model.digest)

    def _count(self, event: dict[str, Any], question: Question, sent: int) -> None:
        """Take an event's count of tokens; ``sent`` of them were counted for the question before."""
        usage = event.get("usage")
        if isinstance(usage, dict):
            prompt, completion = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
            self.tokens["prompt"] += prompt
            self.tokens["completion"] += completion
            _add_up(question.usage, "prompt_tokens", prompt)
            _add_up(question.usage, "completion_tokens", completion - sent)
            # Of the event with the count alone: others have them where they are asked for. Only there where a drafter drafts.
            timings = event.get("timings") or {}
            self.tokens["drafted"] += timings.get("draft_n", 0)
            self.tokens["accepted"] += timings.get("draft_n_accepted", 0)


def _add_up(usage: dict[str, int], name: str, count: int) -> None:
    usage[name] = usage.get(name, 0) + count


def _sum(counts: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Counts of tokens, added up with those that are details of others."""
    found = dict(counts)
    for name, value in more.items():
        found[name] = _sum(found.get(name, {}), value) if isinstance(value, dict) else found.get(name, 0) + value
    return found


LARGE_GRAMMAR = 1 << 12
"""Characters of a grammar that an engine compiles while no step is taken for anybody."""


@contextlib.asynccontextmanager
async def _begun_in_turn(model: ServedModel, question: Question) -> AsyncIterator[contextlib.AsyncExitStack]:
    """Where others ask too, a large grammar is compiled when it is its turn. To be closed at the first event."""
    async with contextlib.AsyncExitStack() as turn:
        # Not where the first event comes with the last: the turn would be as long as the answer.
        if model.shared and question.top is None and len(question.body.get("grammar", "")) > LARGE_GRAMMAR:
            await turn.enter_async_context(model.turns.turn(question.owner))
        yield turn


@contextlib.asynccontextmanager
async def _answering(
    engine: Engine, slot: Slot, question: Question, prompt: str | list[Any], body: dict[str, Any]
) -> AsyncIterator[AsyncIterator[dict[str, Any] | None]]:
    """The events of an engine's answer, and None at its proper end. Leaving the block stops the engine."""
    if question.top is not None:
        async with contextlib.aclosing(
            scoring.told(engine, slot, await _ids(engine, prompt), body, question.top)
        ) as events:
            yield events
        return
    wanted = {**body, "prompt": prompt, "stream": True, "stream_options": {"include_usage": True}}
    if question.stops:
        wanted["timings_per_token"] = True
    async with local.request(engine.socket, engine.key, "POST", "/v1/completions", wanted) as lines:
        yield _events(lines)


async def _ids(engine: Engine, prompt: str | list[Any]) -> list[int]:
    """The tokens of a prompt: a text, ids of tokens, or both in a row."""
    ids: list[int] = []
    for number, part in enumerate([prompt] if isinstance(prompt, str) else prompt):
        if isinstance(part, str):
            wanted = {"content": part, "add_special": number == 0, "parse_special": True}
            ids += (await local.call(engine.socket, engine.key, "POST", "/tokenize", wanted))["tokens"]
        else:
            ids.append(part)
    return ids


@contextlib.asynccontextmanager
async def _used(model: ServedModel, question: Question, left: float) -> AsyncIterator[contextlib.ExitStack]:
    """While an engine works for somebody. One who has little left to be read is as good as answered, and so is one whose first
    event comes with the last.
    """
    with contextlib.ExitStack() as use:
        use.enter_context(model.turns.working(question.owner))
        if left <= PIECE or question.top is not None:
            use.enter_context(model.turns.answering(question.owner))
        yield use


def _size(prompt: str | list[Any]) -> float:
    """About how many tokens a prompt has."""
    parts = [prompt] if isinstance(prompt, str) else prompt
    return sum(len(part) / 3 if isinstance(part, str) else 1 for part in parts)


@dataclass
class _Ahead:
    """A prompt that was read ahead, in pieces.

    Attributes:
        ids: Its tokens.
        read: How many of them were read.
        cached: How many of them the engine had read before.
    """

    ids: list[int]
    read: int
    cached: int

    def correct(self, event: dict[str, Any]) -> None:
        """What was read for this very request is no cache's."""
        usage = event.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("prompt_tokens_details"), dict):
            usage["prompt_tokens_details"]["cached_tokens"] = self.cached


async def _read_ahead(
    engine: Engine, model: ServedModel, question: Question, prompt: str | list[Any], body: dict[str, Any], known: float
) -> _Ahead | None:
    """Have a long prompt read in pieces, each when it is its turn; None where it is short, or too long to be answered.

    Args:
        engine: The engine.
        model: Its model.
        question: Whose prompt it is.
        prompt: The prompt: a text, ids of tokens, or both in a row.
        body: The request's settings: the place in the engine, and whether what it holds may be used.
        known: The share of the prompt that the place holds already.
    """
    batch, turns, owner = model.options.batch, model.turns, question.owner
    if _size(prompt) <= (PIECE if turns.contested(owner) else batch):
        return None
    ids = await _ids(engine, prompt)
    if len(ids) >= model.options.context:
        return None
    at, cached, kept = int(known * len(ids)), None, body["cache_prompt"]
    while True:
        small = turns.contested(owner)
        end = at + (PIECE if small else batch)
        if end >= len(ids):
            break
        piece = {
            "prompt": ids[:end],
            "max_tokens": 1,
            "temperature": 0,
            "id_slot": body["id_slot"],
            "cache_prompt": kept,
        }
        async with turns.turn(owner) if small else contextlib.nullcontext():
            with turns.working(owner):
                read = await local.call(engine.socket, engine.key, "POST", "/v1/completions", piece)
        model.heard()
        at, kept = end, True
        if cached is None:
            details = (read.get("usage") or {}).get("prompt_tokens_details") or {}
            cached = int(details.get("cached_tokens", 0))
    return _Ahead(ids, at, cached) if cached is not None else None


async def _rendered(engine: Engine, model: ServedModel, question: Question) -> tuple[str | list[Any], bool]:
    """A conversation as a prompt, and whether it has opened the model's reasoning.

    Raises:
        EngineRefused: The template takes no such conversation.
    """
    assert question.messages is not None
    assert question.shield is not None
    joined = tools.alternating(question.messages)
    refused: local.EngineRefused | None = None
    for messages in (question.messages, joined, tools.without_system(joined)):
        wanted = {"messages": messages, "chat_template_kwargs": question.settings}
        try:
            prompt = (await local.call(engine.socket, engine.key, "POST", "/apply-template", wanted)).get("prompt", "")
            break
        except local.EngineRefused as error:
            refused = refused or error
    else:
        assert refused is not None
        raise local.EngineRefused(400, {"message": f"The model's chat template refuses the conversation: {refused}"})
    pair = pair_of(model.facts.template)
    opened = pair is not None and prompt.rstrip().endswith(pair[0])
    if opened and question.constrained and pair is not None:
        prompt, opened = f"{prompt.rstrip()}\n\n{pair[1]}\n\n", False
    if not question.shield.used:
        return prompt, opened
    parts: list[Any] = [""]
    for piece, is_content in question.shield.parts(prompt):
        parts += await model.plain_ids(engine, piece) if is_content else [piece]
    return parts[1:] if len(parts) > 1 and isinstance(parts[1], str) else parts, opened


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


async def _events(lines: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any] | None]:
    """Events of a stream, and None at its proper end."""
    async for line in lines:
        if line.startswith(b"data: "):
            data = line[6:].strip()
            if data == b"[DONE]":
                yield None
                return
            yield json.loads(data)
        elif line.startswith(b"error: "):
            with contextlib.suppress(ValueError):
                yield {"error": json.loads(line[7:])}


def _texts(event: dict[str, Any]) -> list[str]:
    return [choice.get("delta", {}).get("content") or choice.get("text") or "" for choice in event.get("choices", ())]


def _leave_out(question: Question) -> bool:
    """Leave out the two oldest messages that are not the system's; False where too little is left."""
    messages = question.messages or []
    first = 1 if messages and messages[0]["role"] == "system" else 0
    if len(messages) - first < 3:
        return False
    del messages[first : first + 2]
    question.left_out += 2
    return True


def public(event: dict[str, Any], model: str) -> dict[str, Any]:
    """An event as clients get it: the model by its public name, the engine's own notes left out."""
    event["model"] = model
    event.pop("timings", None)
    event["system_fingerprint"] = "stillroom"
    return event


def join_chat(events: list[dict[str, Any]], question: Question, model: str) -> dict[str, Any]:
    """One chat completion out of its events."""
    text: list[str] = []
    thought: list[str] = []
    logprobs: list[Any] = []
    usage: dict[str, Any] = {}
    finish, number = "stop", ""
    for event in events:
        number = event.get("id", number)
        usage = event.get("usage") or usage
        for choice in event.get("choices", ()):
            text.append(choice.get("delta", {}).get("content") or "")
            thought.append(choice.get("delta", {}).get("reasoning_content") or "")
            finish = choice.get("finish_reason") or finish
            logprobs += (choice.get("logprobs") or {}).get("content") or []
    message: dict[str, Any] = {"role": "assistant", "content": "".join(text), "refusal": None}
    if question.calls and "".join(text).startswith(grammars.OPEN[0]):
        calls = tools.parse_calls("".join(text))
        message = {"role": "assistant", "content": None, "refusal": None}
        if calls and question.calls == "old":
            message["function_call"] = calls[0]["function"]
            finish = "function_call" if finish == "stop" else finish
        elif calls:
            message["tool_calls"] = calls
            finish = "tool_calls" if finish == "stop" else finish
    if reasoning := "".join(thought):
        message |= {"reasoning_content": reasoning, "reasoning": reasoning}
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": finish,
        "logprobs": {"content": logprobs} if logprobs else None,
    }
    answer = _head("chat.completion", number, model) | {"choices": [choice], "usage": usage}
    return answer | notes(question)


def join_completion(events: list[dict[str, Any]], model: str) -> dict[str, Any]:
    """One completion, of one prompt or several, out of its events."""
    usage: dict[str, Any] = {}
    number = ""
    found: dict[int, dict[str, Any]] = {}
    said: dict[str, Any] = {"generated": True}
    for event in events:
        number = event.get("id", number)
        usage = event.get("usage") or usage
        for choice in event.get("choices", ()):
            index = choice.get("index", 0)
            whole = found.setdefault(index, {"index": index, "text": "", "finish_reason": "stop", "logprobs": None})
            whole["text"] += choice.get("text") or ""
            whole["finish_reason"] = choice.get("finish_reason") or whole["finish_reason"]
            said |= event.get("stillroom") or {}
            for name, values in (choice.get("logprobs") or {}).items():
                whole["logprobs"] = whole["logprobs"] or {}
                whole["logprobs"].setdefault(name, []).extend(values)
    choices = [found[index] for index in sorted(found)]
    return _head("text_completion", number, model) | {"choices": choices, "usage": usage, "stillroom": said}


def notes(question: Question) -> dict[str, Any]:
    """What the answer says besides the words of the OpenAI API."""
    # What a program wrote is labelled as such wherever it goes.
    left_out = question.repeats.left_out if question.repeats is not None else 0
    more = {"repeats_left_out": left_out} if left_out else {}
    if question.session is None:
        return {"stillroom": {"generated": True, **more}}
    said = {
        "generated": True,
        **more,
        "session": question.session.id,
        "context": {"policy": CONTEXT_POLICY, "left_out": question.left_out},
    }
    return {"stillroom": said}


def _head(kind: str, number: str, model: str) -> dict[str, Any]:
    return {
        "id": number,
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": "stillroom",
    }
