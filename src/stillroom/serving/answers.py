"""One question to one model: the slot, the session, the crash, the full context, the switch.

What comes out is a stream of events in the words of the OpenAI API; whoever wants one answer joins them.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from stillroom.core.errors import EngineFailed
from stillroom.runtime import transport as local
from stillroom.runtime.engine import Engine
from stillroom.serving import tools
from stillroom.serving.pool import Pool, ServedModel, Slot, restore_slot, save_slot
from stillroom.serving.requests import ChatRequest, CompletionRequest, Message
from stillroom.serving.schema import json_grammar
from stillroom.serving.sessions import Session, SessionStore

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
        path: The engine's endpoint.
        body: Its settings, without messages or prompt.
        messages: The conversation as texts; None for a completion.
        prompt: The prompt of a completion.
        calls: Whether the answer may be tool calls.
        constrained: Whether a grammar decides the answer's form.
        session: The session that it goes on with.
        said: The messages that are new in the session.
        left_out: How many messages did not fit.
    """

    path: str
    body: dict[str, Any]
    messages: list[dict[str, str]] | None = None
    prompt: Any = None
    calls: bool = False
    constrained: bool = False
    session: Session | None = None
    said: list[dict[str, Any]] = field(default_factory=list)
    left_out: int = 0

    @property
    def text(self) -> str:
        """All that it puts into a context, as one text that grows with the conversation."""
        if self.messages is not None:
            return "".join(_turn(message["role"], message["content"]) for message in self.messages)
        return self.prompt if isinstance(self.prompt, str) else " ".join(map(str, self.prompt))


def _turn(role: str, content: str) -> str:
    return f"{role}\n{content}\n"


def chat_question(request: ChatRequest, session: Session | None) -> Question:
    """What a chat completion asks.

    Raises:
        UnsupportedSchema: A schema cannot be guaranteed.
    """
    body = request.sampling()
    limit = request.max_completion_tokens or request.max_tokens
    if limit is not None:
        body["max_tokens"] = limit
    if request.logprobs:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    form = request.response_format
    if request.grammar:
        body["grammar"] = request.grammar
    elif form is not None and form.type != "text":
        body["grammar"] = json_grammar(form.json_schema.json_schema if form.json_schema else None)
    elif request.uses_tools():
        body["grammar"] = tools.tool_grammar(request)
        body.pop("stop", None)
    said = [message.model_dump(exclude_none=True) for message in request.messages]
    before = [Message.model_validate(message) for message in session.messages] if session else []
    return Question(
        "/v1/chat/completions",
        body,
        messages=tools.plain_messages([*before, *request.messages], request),
        calls=request.uses_tools(),
        constrained="grammar" in body,
        session=session,
        said=said,
        left_out=0,
    )


def completion_question(request: CompletionRequest) -> Question:
    """What a completion asks."""
    body = request.sampling()
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    if request.grammar:
        body["grammar"] = request.grammar
    if request.logprobs is not None:
        body["logprobs"] = request.logprobs
    return Question("/v1/completions", body, prompt=request.prompt, constrained="grammar" in body)


class Answerer:
    """Answers questions with the models of a pool.

    Args:
        pool: The models.
        sessions: The kept conversations.
    """

    def __init__(self, pool: Pool, sessions: SessionStore) -> None:
        self.pool = pool
        self.sessions = sessions
        self.tokens = {"prompt": 0, "completion": 0}

    async def events(self, model: ServedModel, question: Question) -> AsyncIterator[dict[str, Any]]:
        """The engine's events, one at a time. An engine that dies before the first is started again, once.

        Raises:
            SwitchedOff: The switch is off.
            QueueFull: Too many requests wait.
            ContextFull: The prompt is too long.
            EngineFailed: The engine died twice, or after the answer had begun.
        """
        session = question.session
        async with model.slot(question.text, session.id if session else None) as slot:
            begun, again = False, True
            engine: Engine | None = None
            while True:
                text: list[str] = []
                try:
                    engine = await self.pool.running(model)
                    if session is not None and slot.session != session.id:
                        state = self.sessions.load_state(session, model.digest)
                        if state is not None:
                            await restore_slot(engine, slot, state)
                    body = {**question.body, "stream": True, "stream_options": {"include_usage": True}}
                    body |= {"id_slot": slot.number, "cache_prompt": True}
                    if question.constrained:
                        never = [[token, False] for token in model.breaking]
                        body["logit_bias"] = [*question.body.get("logit_bias", ()), *never]
                    if question.messages is not None:
                        body["messages"] = question.messages
                    else:
                        body["prompt"] = question.prompt
                    slot.held, slot.session = question.text, None
                    async with local.request(engine.socket, engine.key, "POST", question.path, body) as lines:
                        ended = False
                        async for event in _events(lines):
                            if event is None:
                                ended = True
                                break
                            begun = True
                            self._count(event)
                            text += _texts(event)
                            yield event
                        if not ended:
                            raise local.EngineGone
                except local.EngineGone:
                    await model.lost(engine)
                    model.switch.require_on()
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
                break
            answer = "".join(text)
            slot.held += answer if question.messages is None else _turn("assistant", answer)
            if session is not None:
                await self._keep(engine, slot, question, answer)

    async def _keep(self, engine: Engine, slot: Slot, question: Question, answer: str) -> None:
        session = question.session
        assert session is not None
        said: dict[str, Any] = {"role": "assistant", "content": answer}
        if question.calls and (calls := tools.parse_calls(answer)):
            said = {"role": "assistant", "content": None, "tool_calls": calls}
        session.messages += [*question.said, said]
        session.left_out = question.left_out
        self.sessions.save(session)
        slot.session = session.id
        state = await save_slot(engine, slot)
        if state is not None:
            self.sessions.save_state(session, state)

    def _count(self, event: dict[str, Any]) -> None:
        usage = event.get("usage")
        if isinstance(usage, dict):
            self.tokens["prompt"] += usage.get("prompt_tokens", 0)
            self.tokens["completion"] += usage.get("completion_tokens", 0)


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
    for choice in event.get("choices", ()):
        if "text" in choice and choice.get("logprobs"):
            choice["logprobs"] = _old_logprobs(choice["logprobs"])
    return event


def join_chat(events: list[dict[str, Any]], question: Question, model: str) -> dict[str, Any]:
    """One chat completion out of its events."""
    text: list[str] = []
    logprobs: list[Any] = []
    usage: dict[str, Any] = {}
    finish, number = "stop", ""
    for event in events:
        number = event.get("id", number)
        usage = event.get("usage") or usage
        for choice in event.get("choices", ()):
            text.append(choice.get("delta", {}).get("content") or "")
            finish = choice.get("finish_reason") or finish
            logprobs += (choice.get("logprobs") or {}).get("content") or []
    message: dict[str, Any] = {"role": "assistant", "content": "".join(text), "refusal": None}
    if question.calls and "".join(text).startswith(tools.OPEN):
        calls = tools.parse_calls("".join(text))
        message = {"role": "assistant", "content": None, "refusal": None}
        if calls:
            message["tool_calls"] = calls
            finish = "tool_calls" if finish == "stop" else finish
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": finish,
        "logprobs": {"content": logprobs} if logprobs else None,
    }
    answer = _head("chat.completion", number, model) | {"choices": [choice], "usage": usage}
    return answer | notes(question)


def join_completion(events: list[dict[str, Any]], model: str) -> dict[str, Any]:
    """One completion out of its events."""
    text: list[str] = []
    usage: dict[str, Any] = {}
    finish, number = "stop", ""
    logprobs: dict[str, list[Any]] = {}
    for event in events:
        number = event.get("id", number)
        usage = event.get("usage") or usage
        for choice in event.get("choices", ()):
            text.append(choice.get("text") or "")
            finish = choice.get("finish_reason") or finish
            for name, values in (choice.get("logprobs") or {}).items():
                logprobs.setdefault(name, []).extend(values)
    choice = {"index": 0, "text": "".join(text), "finish_reason": finish, "logprobs": logprobs or None}
    return _head("text_completion", number, model) | {"choices": [choice], "usage": usage}


def notes(question: Question) -> dict[str, Any]:
    """What the answer says besides the words of the OpenAI API."""
    if question.session is None:
        return {}
    said = {"session": question.session.id, "context": {"policy": CONTEXT_POLICY, "left_out": question.left_out}}
    return {"stillroom": said}


class CallStream:
    """Turns the text of a stream into tool calls where it is one; other text goes through as it comes."""

    def __init__(self) -> None:
        self._text = ""
        self._calls: bool | None = None

    def turn(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """The events that stand for one event."""
        found = []
        for choice in event.get("choices", ()):
            content = choice.get("delta", {}).get("content")
            if content:
                if self._calls is None:
                    self._calls = content.startswith("<")
                if self._calls:
                    self._text += content
                    choice["delta"] = {}
            if choice.get("finish_reason") and self._calls:
                calls = tools.parse_calls(self._text)
                for index, call in enumerate(calls):
                    delta = {"tool_calls": [{"index": index, **call}]}
                    found.append({**event, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
                if calls and choice["finish_reason"] == "stop":
                    choice["finish_reason"] = "tool_calls"
        return [*found, event]


def _head(kind: str, number: str, model: str) -> dict[str, Any]:
    return {
        "id": number,
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": "stillroom",
    }


def _old_logprobs(found: dict[str, Any]) -> dict[str, list[Any]]:
    """Log-probabilities as completions have them."""
    entries = found.get("content") or []
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [{top["token"]: top["logprob"] for top in entry.get("top_logprobs", ())} for entry in entries],
        "text_offset": [],
    }
