"""The Responses API, as far as agents use it: a conversation in, messages, reasoning and calls of functions out."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from stillroom.serving.requests import (
    ChatRequest,
    Part,
    ResponseFormat,
    Text,
    ToolName,
    Translated,
    Words,
    require_held,
)


class Reasoned(Words):
    """A part of what a model thought."""

    type: Text = "summary_text"
    text: Text


class Item(Words):
    """One item of a conversation: a message, a call, its result, or a thought."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Text | list[Part] | list[Reasoned] | None = None
    summary: list[Reasoned] | None = None
    call_id: Text = ""
    name: ToolName | None = None
    arguments: Text = "{}"
    output: Text | list[Part] | None = None


class FlatTool(Words):
    """A function that the model may call, written flat."""

    type: Literal["function"]
    name: ToolName
    description: Text = ""
    parameters: dict[str, Any] | bool | None = None
    strict: bool | None = None


class FlatChoice(Words):
    """The choice of one function."""

    type: Literal["function"]
    name: ToolName


class FlatAllowed(Words):
    """The choice of some functions, and whether one of them must be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[FlatChoice] = Field(min_length=1, max_length=128)


class FlatFormat(Words):
    """The form of the answer, written flat."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Text = "answer"
    value: Any = Field(default=None, alias="schema")
    strict: bool | None = None


class TextSettings(Words):
    """What is said of the answer's text."""

    format: FlatFormat | None = None


class ReasoningSettings(Words):
    """How much the model shall think."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


def _choice(choice: str | FlatChoice | FlatAllowed | None) -> Any:
    """A choice of tools, as a chat completion has it."""
    if isinstance(choice, FlatChoice):
        return {"function": {"name": choice.name}}
    if isinstance(choice, FlatAllowed):
        names = [{"function": {"name": each.name}} for each in choice.tools]
        return {"type": choice.type, "allowed_tools": {"mode": choice.mode, "tools": names}}
    return choice


def _require_known(items: Any) -> None:
    """Refuse items of a type that is not taken, by name: pydantic would name another reason first."""
    known = get_args(Item.model_fields["type"].annotation)
    for index, item in enumerate(items if isinstance(items, list) else ()):
        said = item.get("type") if isinstance(item, dict) else None
        if said is not None and said not in known:
            raise ValueError(
                f"input.{index}: an item of the type {str(said)[:50]!r} is not taken here; {', '.join(known)} are"
            )


_KEPT_ELSEWHERE = ("previous_response_id", "conversation", "background", "prompt")


class ResponsesRequest(Translated):
    """A response. Nothing of it is kept: ``previous_response_id`` is refused, and the conversation sent again."""

    model: Text = ""
    input: Text | list[Item] = Field(min_length=1)
    instructions: Text | None = None
    tools: list[FlatTool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | FlatChoice | FlatAllowed | None = None
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    reasoning: ReasoningSettings | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, le=1 << 20)
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stream: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _held_here(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for key in _KEPT_ELSEWHERE:
                if value.get(key) not in (None, False):
                    raise ValueError(f"{key}: this server keeps no responses; send the whole conversation")
            for key in ("logit_bias", "logprobs", "n_probs"):
                if value.get(key) not in (None, False, 0, {}):
                    raise ValueError(f"{key}: not part of this API; leave it out")
            _require_known(value.get("input"))
            wanted = value.get("include")
            if value.get("top_logprobs") or (isinstance(wanted, list) and "message.output_text.logprobs" in wanted):
                raise ValueError("top_logprobs: log-probabilities come from /v1/chat/completions; leave it out")
        return require_held(value)

    def chat(self) -> ChatRequest:
        """The same as a chat completion."""
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            messages += _messages(self.input)
        body: dict[str, Any] = {
            **self.further(ChatRequest),
            "model": self.model, "messages": messages, "seed": self.seed, "temperature": self.temperature,
            "top_p": self.top_p, "parallel_tool_calls": self.parallel_tool_calls,
        }  # fmt: skip
        if self.max_output_tokens is not None:
            body["max_completion_tokens"] = self.max_output_tokens
        if self.tools:
            functions = [tool.model_dump(exclude={"type"}, exclude_none=True) for tool in self.tools]
            body["tools"] = [{"type": "function", "function": function} for function in functions]
        body["tool_choice"] = _choice(self.tool_choice)
        if self.reasoning is not None and self.reasoning.effort is not None:
            body["reasoning_effort"] = self.reasoning.effort
        request = ChatRequest.model_validate(body)
        wanted = self.text.format if self.text is not None else None
        if wanted is not None and wanted.type != "text":
            if (other := request.form()) is not None:
                raise ValueError(f"{other.key} and text.format each decide the answer's form: choose one")
            form = {"type": wanted.type, "schema": wanted.value}
            request = ChatRequest.model_validate({**body, "response_format": form})
            assert isinstance(request.response_format, ResponseFormat)
        return request


def _messages(items: list[Item]) -> Iterator[dict[str, Any]]:
    """The messages that items stand for; calls beside each other are one message's."""
    calls: list[dict[str, Any]] = []
    thoughts: list[str] = []

    def thought() -> dict[str, str]:
        """What was thought before what comes now; of a former turn it is nothing any more."""
        found = {"reasoning_content": "\n".join(thoughts)} if thoughts else {}
        thoughts.clear()
        return found

    def said() -> Iterator[dict[str, Any]]:
        if calls:
            yield {"role": "assistant", "tool_calls": [*calls], **thought()}
            calls.clear()

    for item in items:
        if item.type == "function_call":
            function = {"name": item.name or "", "arguments": item.arguments}
            calls.append({"id": item.call_id, "type": "function", "function": function})
            continue
        yield from said()
        if item.type == "function_call_output":
            output = item.output if isinstance(item.output, str) else "".join(part.text for part in item.output or [])
            thoughts.clear()
            yield {"role": "tool", "tool_call_id": item.call_id, "content": output}
        elif item.type == "reasoning":
            parts = item.content if isinstance(item.content, list) and item.content else item.summary or []
            thoughts += filter(None, ["".join(part.text for part in parts)])
        else:
            content = (
                item.content if isinstance(item.content, str) else "".join(part.text for part in item.content or [])
            )
            before = thought()
            yield {"role": item.role or "user", "content": content, **(before if item.role == "assistant" else {})}
    yield from said()


def response(answer: dict[str, Any]) -> dict[str, Any]:
    """A response out of a chat completion."""
    choice = answer["choices"][0]
    message = choice["message"]
    output: list[dict[str, Any]] = []
    if message.get("reasoning_content"):
        content = [{"type": "reasoning_text", "text": message["reasoning_content"]}]
        output.append({"id": _id("rs"), "type": "reasoning", "summary": [], "content": content, "status": "completed"})
    for call in message.get("tool_calls") or []:
        function = {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
        output.append(
            {"id": _id("fc"), "type": "function_call", "call_id": call["id"], "status": "completed", **function}
        )
    if message.get("content") or not output:
        output.append(_message(message.get("content") or ""))
    whole = _whole(answer["model"], output, choice["finish_reason"], answer.get("usage") or {})
    return {**whole, "stillroom": answer["stillroom"]}


def _message(text: str, status: str = "completed") -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {"id": _id("msg"), "type": "message", "role": "assistant", "status": status, "content": content}


def _whole(model: str, output: list[dict[str, Any]], finish: str, usage: dict[str, Any]) -> dict[str, Any]:
    cut = finish == "length"
    made: dict[str, Any] = {
        "id": _id("resp"), "object": "response", "created_at": int(time.time()), "model": model, "output": output,
        "status": "incomplete" if cut else "completed", "error": None, "instructions": None, "metadata": {},
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None, "parallel_tool_calls": True,
        "tool_choice": "auto", "tools": [], "store": False, "stillroom": {"generated": True},
    }  # fmt: skip
    if usage:
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        made["usage"] = {
            "input_tokens": usage.get("prompt_tokens", 0), "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": usage.get("completion_tokens", 0), "total_tokens": usage.get("total_tokens", 0),
        }  # fmt: skip
        if not any(item["type"] == "reasoning" for item in output):
            # How many of an answer's tokens were thoughts is not counted, and not said.
            made["usage"]["output_tokens_details"] = {"reasoning_tokens": 0}
    return made


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"


class ResponseStream:
    """Turns the events of a chat into those of a response."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._head = _whole(model, [], "stop", {})
        self._number = 0
        self._items: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._finish = "stop"
        self._begun = False
        self._notes: dict[str, Any] = {"generated": True}

    def turn(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """The events that stand for one."""
        found: list[dict[str, Any]] = []
        self._notes |= event.get("stillroom") or {}
        if not self._begun:
            self._begun = True
            running = {**self._head, "status": "in_progress"}
            found += [
                {"type": "response.created", "response": running},
                {"type": "response.in_progress", "response": running},
            ]
        for choice in event.get("choices", ()):
            delta = choice.get("delta", {})
            if delta.get("reasoning_content"):
                found += self._text("reasoning", delta["reasoning_content"])
            if delta.get("content"):
                found += self._text("message", delta["content"])
            for call in delta.get("tool_calls", ()):
                found += [*self._close(), *self._call(call)]
            self._finish = choice.get("finish_reason") or self._finish
        if event.get("usage") is not None:
            found += self._end(event["usage"])
        return [self._numbered(each) for each in found]

    def _numbered(self, event: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        return {**event, "sequence_number": self._number - 1}

    def _text(self, kind: str, text: str) -> Iterator[dict[str, Any]]:
        if self._open is None or self._open["type"] != kind:
            yield from self._close()
            if kind == "message":
                self._open = {**_message("", "in_progress"), "content": []}
            else:
                self._open = {"id": _id("rs"), "type": kind, "summary": [], "content": [], "status": "in_progress"}
            yield {"type": "response.output_item.added", "output_index": len(self._items), "item": dict(self._open)}
            self._open["content"] = [self._part(kind, "")]
            yield {"type": "response.content_part.added", **self._where(), "part": self._part(kind, "")}
        self._open["content"][0]["text"] += text
        name = "output_text" if kind == "message" else "reasoning_text"
        more: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
        yield {"type": f"response.{name}.delta", **self._where(), "delta": text, **more}

    @staticmethod
    def _part(kind: str, text: str) -> dict[str, Any]:
        if kind == "message":
            return {"type": "output_text", "text": text, "annotations": []}
        return {"type": "reasoning_text", "text": text}

    def _where(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self._items), "content_index": 0}

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._open is None:
            return
        item = self._open
        part = item["content"][0]
        name = "output_text" if item["type"] == "message" else "reasoning_text"
        more: dict[str, Any] = {"logprobs": []} if item["type"] == "message" else {}
        yield {"type": f"response.{name}.done", **self._where(), "text": part["text"], **more}
        yield {"type": "response.content_part.done", **self._where(), "part": part}
        item["status"] = "completed"
        yield {"type": "response.output_item.done", "output_index": len(self._items), "item": item}
        self._items.append(item)
        self._open = None

    def _call(self, call: dict[str, Any]) -> Iterator[dict[str, Any]]:
        function = call["function"]
        item = {"id": _id("fc"), "type": "function_call", "call_id": call["id"], "name": function["name"]}
        where = {"output_index": len(self._items)}
        empty = {**item, "arguments": "", "status": "in_progress"}
        yield {"type": "response.output_item.added", **where, "item": empty}
        kind = "response.function_call_arguments"
        yield {"type": f"{kind}.delta", "item_id": item["id"], **where, "delta": function["arguments"]}
        done = {"name": function["name"], "arguments": function["arguments"]}
        yield {"type": f"{kind}.done", "item_id": item["id"], **where, **done}
        item |= {"arguments": function["arguments"], "status": "completed"}
        yield {"type": "response.output_item.done", **where, "item": item}
        self._items.append(item)

    def _end(self, usage: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._close()
        if not self._items:
            yield from self._text_empty()
        whole = {**_whole(self._model, self._items, self._finish, usage), "id": self._head["id"]}
        whole["stillroom"] = self._notes
        yield {"type": f"response.{whole['status']}", "response": whole}

    def _text_empty(self) -> Iterator[dict[str, Any]]:
        yield from self._text("message", "")
        yield from self._close()
