"""What clients may ask, in the words of the OpenAI API.

Unknown keys are ignored, as clients send more than anybody implements; known keys are checked strictly.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _plain(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half a character: a lone surrogate") from None
    return text


Text = Annotated[str, AfterValidator(_plain)]
ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
SessionId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Words(BaseModel):
    """A part of a request."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class Part(Words):
    """A part of a message's content. Only text is taken."""

    type: Literal["text"]
    text: Text


class CalledFunction(Words):
    """A call that the model made."""

    name: ToolName
    arguments: Text


class Call(Words):
    """A call that the model made, with its number."""

    id: Text = ""
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Words):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[Part] | None = None
    tool_calls: list[Call] | None = Field(default=None, max_length=64)
    tool_call_id: Text | None = None
    name: Text | None = None

    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class Function(Words):
    """A function that the model may call."""

    name: ToolName
    description: Text = ""
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Words):
    """A tool. Only functions are known."""

    type: Literal["function"]
    function: Function


class NamedFunction(Words):
    """The name in a choice."""

    name: ToolName


class NamedTool(Words):
    """The choice of one tool."""

    type: Literal["function"] = "function"
    function: NamedFunction


class NamedSchema(Words):
    """A schema for the answer."""

    name: Text = "answer"
    json_schema: Any = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Words):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _whole(self) -> ResponseFormat:
        if self.type == "json_schema" and (self.json_schema is None or self.json_schema.json_schema is None):
            raise ValueError("json_schema: a schema is missing")
        return self


class StreamOptions(Words):
    """What a stream says besides."""

    include_usage: bool = False


class Sampling(Words):
    """What completions of both kinds have in common."""

    model: Text = ""
    max_tokens: int | None = Field(default=None, ge=1, le=1 << 20)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=1000)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repeat_penalty: float | None = Field(default=None, ge=0.5, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = Field(default=None, max_length=1024)
    seed: int | None = Field(default=None, ge=-(1 << 63), le=(1 << 63) - 1)
    stop: Text | list[Text] | None = None
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    grammar: Text | None = Field(default=None, max_length=1 << 16)

    @model_validator(mode="after")
    def _bounded(self) -> Sampling:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > 16 or any(not 0 < len(stop) <= 256 for stop in stops):
            raise ValueError("stop: at most 16 texts of 1 to 256 characters")
        for token, bias in (self.logit_bias or {}).items():
            if not (token.isascii() and token.isdigit() and len(token) <= 9) or not -100 <= bias <= 100:
                raise ValueError("logit_bias: ids of tokens, and values between -100 and 100")
        return self

    def sampling(self) -> dict[str, Any]:
        """The settings in the words of llama.cpp."""
        names = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
        found = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.seed is not None:
            found["seed"] = self.seed % 0xFFFFFFFF
        if self.stop:
            found["stop"] = self.stop
        if self.logit_bias:
            found["logit_bias"] = [[int(token), bias] for token, bias in self.logit_bias.items()]
        return found


class ChatRequest(Sampling):
    """A chat completion. ``session`` continues a kept conversation: its messages come before these."""

    messages: list[Message] = Field(min_length=1, max_length=2048)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1 << 20)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    session: SessionId | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        names = [tool.function.name for tool in self.tools or []]
        if len(set(names)) != len(names):
            raise ValueError("tools: two have the same name")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError("tool_choice: no tool has this name")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice: there are no tools")
        ways = [self.grammar, self.response_format and self.response_format.type != "text", self.uses_tools()]
        if sum(bool(way) for way in ways) > 1:
            raise ValueError("grammar, response_format and tools each decide the form of the answer: choose one")
        return self

    def uses_tools(self) -> bool:
        """Whether the answer may be a call."""
        return bool(self.tools) and self.tool_choice != "none"


class CompletionRequest(Sampling):
    """A completion of a text."""

    prompt: Text | Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(min_length=1, max_length=1 << 18)]
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: Literal[False] | None = None


class EmbeddingRequest(Words):
    """Embeddings of texts."""

    model: Text = ""
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=256)]
    encoding_format: Literal["float", "base64"] | None = None


class NewSession(Words):
    """A conversation to be kept."""

    name: Text = Field(default="", max_length=200)
    model: Text = ""
    system: Text | None = Field(default=None, max_length=1 << 16)


class SessionName(Words):
    """A new name of a conversation."""

    name: Text = Field(min_length=1, max_length=200)


class SwitchFeature(Words):
    """What is to hold for a feature."""

    feature: Text
    state: Literal["available", "enabled", "blocked"]
