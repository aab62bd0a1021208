"""Ollama's API, so that its clients find the models: tags, chat, generate."""

from __future__ import annotations

import json
import secrets
import time
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field, model_validator

from stillroom.serving.pool import ServedModel
from stillroom.serving.requests import (
    ChatRequest,
    CompletionRequest,
    Schemas,
    Text,
    Tool,
    ToolName,
    Translated,
    Words,
    require_held,
)

VERSION = "0.12.0"
"""The version of Ollama whose API this is: its clients ask."""
_OPTIONS = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p", "seed": "seed", "stop": "stop",
    "repeat_penalty": "repeat_penalty", "repeat_last_n": "repeat_last_n", "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}  # fmt: skip
_FLOATS = {"temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"}


_OF_TOKENS = ("logprobs", "top_logprobs", "logit_bias", "n_probs")
UNHELD = ("template", "context", "images", *_OF_TOKENS)
"""Keys of Ollama's that change an answer and are not honoured here: refused by name."""


def _require_held(value: Any) -> Any:
    if isinstance(value, dict):
        for key in UNHELD:
            if value.get(key) not in (None, False, 0, [], "", {}):
                raise ValueError(f"{key}: not supported by this server; leave it out")
        require_held(value)
        if value.get("raw") and value.get("system"):
            raise ValueError("raw: the prompt is taken as it is; leave system out")
        if isinstance(value.get("options"), dict):
            require_held(value["options"])
            for key in Schemas.model_fields:
                if value["options"].get(key) is not None:
                    raise ValueError(f"options.{key}: not one of the options; say it beside them")
            for key in _OF_TOKENS:
                if value["options"].get(key) not in (None, False, 0, [], {}):
                    raise ValueError(f"{key}: not supported by this server; leave it out")
    return value


class OllamaFunction(Words):
    """A function that was called, with its arguments as they are."""

    name: ToolName
    arguments: dict[str, Any] | Text = Field(default_factory=dict)


class OllamaCall(Words):
    """A call that the model made."""

    function: OllamaFunction


class OllamaMessage(Words):
    """One message."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text = ""
    thinking: Text | None = None
    tool_calls: list[OllamaCall] | None = Field(default=None, max_length=64)
    tool_name: Text | None = None
    images: list[Text] | None = Field(default=None, max_length=0)


class OllamaRequest(Translated):
    """What requests for a text have in common."""

    model: Text
    format: Any = None
    options: dict[str, Any] | None = None
    stream: bool = True
    think: bool | Literal["low", "medium", "high"] | None = None
    keep_alive: Any = None

    @model_validator(mode="before")
    @classmethod
    def _all_are_held(cls, value: Any) -> Any:
        return _require_held(value)


class OllamaChat(OllamaRequest):
    """A chat."""

    messages: list[OllamaMessage] = Field(default_factory=list, max_length=2048)
    tools: list[Tool] | None = Field(default=None, max_length=128)

    @property
    def asks_nothing(self) -> bool:
        """Whether it is about the model itself, which is to be loaded."""
        return not self.messages

    def chat(self) -> ChatRequest:
        """The same as a chat completion."""
        messages: list[dict[str, Any]] = []
        for message in self.messages:
            made: dict[str, Any] = {"role": message.role, "content": message.content}
            if message.thinking:
                made["reasoning_content"] = message.thinking
            if message.tool_calls:
                made["tool_calls"] = [
                    {"function": {"name": call.function.name, "arguments": _text(call.function.arguments)}}
                    for call in message.tool_calls
                ]
            messages.append(made)
        body = {**self.further(ChatRequest), **_settings(self.options)}
        body |= {"model": public_name(self.model), "messages": messages, "format": self.format}
        if self.tools:
            body["tools"] = [tool.model_dump(exclude_none=True) for tool in self.tools]
        if self.think is not None:
            effort = "none" if self.think is False else "medium" if self.think is True else self.think
            body["reasoning_effort"] = effort
        return ChatRequest.model_validate(body)


class OllamaGenerate(OllamaRequest):
    """A text."""

    prompt: Text = ""
    suffix: Text | None = Field(default=None, max_length=0)
    system: Text | None = None
    raw: bool = False

    @model_validator(mode="before")
    @classmethod
    def _calls_nothing(cls, value: Any) -> Any:
        for key in ("tools", "functions"):
            if isinstance(value, dict) and value.get(key):
                raise ValueError(f"{key}: an answer to /api/generate holds no calls; ask /api/chat")
        return value

    @property
    def asks_nothing(self) -> bool:
        """Whether it is about the model itself, which is to be loaded."""
        return not self.prompt

    def chat(self) -> ChatRequest:
        """The prompt as a conversation, which the model's template renders."""
        system = [OllamaMessage(role="system", content=self.system)] if self.system else []
        return OllamaChat(
            model=self.model,
            messages=[*system, OllamaMessage(role="user", content=self.prompt)],
            format=self.format,
            options=self.options,
            think=self.think,
            **self.further(ChatRequest),
        ).chat()

    def completion(self) -> CompletionRequest:
        """The prompt as it is."""
        body = {
            **self.further(CompletionRequest),
            **_settings(self.options),
            "model": public_name(self.model),
            "prompt": self.prompt,
            "format": self.format,
        }
        return CompletionRequest.model_validate(body)


def public_name(name: str) -> str:
    """A model's name without the tag that Ollama's clients put behind it."""
    return name.removesuffix(":latest")


def _text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _settings(options: dict[str, Any] | None) -> dict[str, Any]:
    """Ollama's options in the words of the OpenAI API. Those that say how a model is loaded are not a request's to say."""
    found: dict[str, Any] = {}
    for name, value in (options or {}).items():
        if name in _OPTIONS and value is not None:
            found[_OPTIONS[name]] = (
                float(value) if name in _FLOATS and type(value) is int and abs(value) < 1 << 53 else value
            )
    longest = (options or {}).get("num_predict")
    if longest is not None and not (isinstance(longest, int) and longest < 0):
        found["max_tokens"] = longest
    return found


def tags(models: list[ServedModel]) -> dict[str, Any]:
    """The models, as Ollama lists them."""
    return {
        "models": [
            {
                "name": model.name,
                "model": model.name,
                "modified_at": datetime.fromtimestamp(model.created, UTC).isoformat(),
                "size": model.opened.gguf.stat().st_size,
                "digest": "",
                "details": {
                    "format": "gguf",
                    "family": "",
                    "families": [],
                    "parameter_size": "",
                    "quantization_level": "",
                },
            }
            for model in models
        ]
    }


def loaded(name: str, asked: OllamaChat | OllamaGenerate) -> dict[str, Any]:
    """The answer to a request that asks for a model and nothing else: models are loaded when they are asked something.

    Raises:
        ValueError: It asks for the model to be unloaded.
    """
    if asked.keep_alive in (0, "0", "0s", "0m"):
        raise ValueError("keep_alive: the server unloads models by its own rules (--idle, --memory); leave it out")
    head = {"model": name, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}
    said = {"response": ""} if isinstance(asked, OllamaGenerate) else {"message": {"role": "assistant", "content": ""}}
    return {**head, **said, "done": True, "done_reason": "load"}


def shown(model: ServedModel) -> dict[str, Any]:
    """What Ollama's clients ask of one model: above all what it can do, and how long its context is."""
    facts, length = model.facts, model.options.context
    family = facts.architecture or "unknown"
    return {
        "modified_at": datetime.fromtimestamp(model.created, UTC).isoformat(),
        "template": facts.template,
        "parameters": "",
        "details": tags([model])["models"][0]["details"],
        "model_info": {"general.architecture": family, f"{family}.context_length": length},
        "capabilities": ["embedding"] if model.embedding else ["completion", "tools"],
    }


class Asked(Words):
    """The name of a model."""

    model: Text = ""
    name: Text = ""


class Lines:
    """Turns the events of a chat or a completion into Ollama's.

    Args:
        model: The model's name.
        generate: The answer is to ``generate``.
    """

    def __init__(self, model: str, generate: bool) -> None:
        self._model, self._generate = model, generate
        self._begun = time.perf_counter_ns()
        self._finish = "stop"
        self._notes: dict[str, Any] = {"generated": True}
        self.text = self.thinking = ""
        self.calls: list[dict[str, Any]] = []

    def turn(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """The lines that stand for one event."""
        found = []
        self._notes |= event.get("stillroom") or {}
        for choice in event.get("choices", ()):
            delta = choice.get("delta") or {"content": choice.get("text") or ""}
            text, thinking = delta.get("content") or "", delta.get("reasoning_content") or ""
            calls = [_call(call["function"]) for call in delta.get("tool_calls", ())]
            self.text, self.thinking, self.calls = self.text + text, self.thinking + thinking, self.calls + calls
            if text or thinking or calls:
                found.append({**self._head(), **self._said(text, thinking, calls), "done": False})
            self._finish = choice.get("finish_reason") or self._finish
        if event.get("usage") is not None:
            found.append({**self._head(), **self._said("", "", []), **self._end(event["usage"])})
        return found

    def whole(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        """One answer out of all events."""
        last: dict[str, Any] = {}
        for event in events:
            for line in self.turn(event):
                last = line
        return {**last, **self._said(self.text, self.thinking, self.calls)}

    def _head(self) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        return {"model": self._model, "created_at": now}

    def _said(self, text: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        if self._generate:
            return {"response": text, **({"thinking": thinking} if thinking else {})}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = calls
        return {"message": message}

    def _end(self, usage: dict[str, Any]) -> dict[str, Any]:
        return {
            "done": True,
            "done_reason": "length" if self._finish == "length" else "stop",
            "total_duration": time.perf_counter_ns() - self._begun,
            "prompt_eval_count": usage.get("prompt_tokens", 0),
            "eval_count": usage.get("completion_tokens", 0),
            "stillroom": self._notes,
        }


def _call(function: dict[str, Any]) -> dict[str, Any]:
    arguments = json.loads(function["arguments"])
    value = arguments if isinstance(arguments, dict) else {"value": arguments}
    return {"id": f"call_{secrets.token_hex(8)}", "function": {"name": function["name"], "arguments": value}}
