"""What clients may ask, in the words of the OpenAI API.

Unknown keys are ignored, as clients send more than anybody implements; known keys are checked strictly, and null says the
same as leaving a key out. A key of another server that decides an answer's form is honoured or refused, never ignored.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from stillroom.core.strict_json import read_strict


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

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: inner for key, inner in value.items() if inner is not None}
        return value


class Part(Words):
    """A part of a message's content. Only text is taken."""

    type: Literal["text", "input_text", "output_text"]
    text: Text


class CalledFunction(Words):
    """A call that the model made."""

    name: ToolName
    arguments: Text = "{}"

    @model_validator(mode="before")
    @classmethod
    def _written(cls, value: Any) -> Any:
        # Some clients send the arguments as they are, and not as a text.
        if isinstance(value, dict) and isinstance(value.get("arguments"), dict):
            return {**value, "arguments": json.dumps(value["arguments"], ensure_ascii=False)}
        return value


class Call(Words):
    """A call that the model made, with its number."""

    id: Text = ""
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Words):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | Annotated[list[Part], Field(max_length=2048)] | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    tool_calls: list[Call] | None = Field(default=None, max_length=64)
    function_call: CalledFunction | None = None
    tool_call_id: Text | None = None
    name: Text | None = None
    prefix: Literal[False] | None = None

    @model_validator(mode="after")
    def _one_reasoning(self) -> Message:
        # Both names are in use; one is kept.
        self.reasoning = self.reasoning_content = self.reasoning_content or self.reasoning
        return self

    def calls(self) -> list[CalledFunction]:
        """The calls that the message holds, in either form."""
        old = [self.function_call] if self.function_call else []
        return [*(call.function for call in self.tool_calls or []), *old]

    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class Function(Words):
    """A function that the model may call."""

    name: ToolName
    description: Text = ""
    parameters: dict[str, Any] | bool | None = None
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


class ToolsAllowed(Words):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=128)


class AllowedTools(Words):
    """The choice of some tools: the others are described to the model, and it cannot call them."""

    type: Literal["allowed_tools"]
    allowed_tools: ToolsAllowed


class NamedSchema(Words):
    """A schema for the answer."""

    name: Text = "answer"
    json_schema: Any = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Words):
    """The form of the answer, with the schema in either of the places that are in use."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    bare: Any = Field(default=None, alias="schema")

    @model_validator(mode="after")
    def _whole(self) -> ResponseFormat:
        if self.type == "json_schema" and self.wanted() is None:
            raise ValueError("json_schema: a schema is missing")
        if self.type == "text" and self.wanted() is not None:
            raise ValueError("a schema beside the type text: say json_schema")
        return self

    def wanted(self) -> Any:
        """The schema; None where there is none."""
        if self.json_schema is not None and self.json_schema.json_schema is not None:
            return self.json_schema.json_schema
        return self.bare


class StructuredOutputs(Words):
    """The form of the answer, as vLLM has it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    json_: Any = Field(default=None, alias="json")
    regex: Text | None = None
    choice: Annotated[list[Text], Field(max_length=1 << 16)] | None = None
    grammar: Text | None = None
    json_object: bool | None = None


@dataclass(frozen=True)
class Form:
    """What an answer is held to.

    Attributes:
        key: The key of the request that says so.
        kind: What the value is.
        value: A schema, a pattern, texts, or a grammar; None for any JSON object.
    """

    key: str
    kind: Literal["json", "regex", "choice", "grammar"]
    value: Any = None


class StreamOptions(Words):
    """What a stream says besides."""

    include_usage: bool = False


UNHELD = (
    "structural_tag", "regex", "ebnf", "json_regex", "guided_whitespace_pattern", "allowed_token_ids", "bad_words",
    "logits_processors", "grammar_lazy", "grammar_triggers", "min_tokens", "ignore_eos", "suffix", "best_of",
    "stop_token_ids", "include_stop_str_in_output", "use_beam_search", "truncate_prompt_tokens",
    "min_new_tokens", "min_length", "max_length", "num_beams", "stop_regex", "custom_logit_processor", "samplers", "lora",
    "lora_path", "n_probs", "post_sampling_probs", "min_keep", "t_max_predict_ms",
    "logprob_token_ids", "return_token_ids", "return_tokens", "top_n_tokens", "decoder_input_details", "watermark",
    "adaptive_target", "continue_final_message", "web_search_options", "audio", "mirostat", "dynatemp_range",
    "xtc_probability", "dry_multiplier", "return_tokens_as_token_ids", "chat_template", "documents", "input_prefix",
    "input_extra",
)  # fmt: skip
"""Keys of other servers that change an answer and are not honoured here: refused by name."""
UNHELD_BUT_FOR: dict[str, tuple[Any, ...]] = {
    "best_of": (1,), "num_beams": (1,), "t_max_predict_ms": (-1,), "adaptive_target": (-1,), "typical_p": (1,),
    "tfs_z": (1,), "top_n_sigma": (-1, 0), "top_a": (0,), "length_penalty": (1,),
    "add_generation_prompt": (True,), "skip_special_tokens": (True,), "modalities": (["text"],),
    "reasoning_format": ("auto", "deepseek", ""), "prompt_logprobs": (False,),
    "thinking_token_budget": (-1,),
}  # fmt: skip
"""The values of such keys that change nothing."""
_OF_TEMPLATES = {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}


def require_held(value: Any) -> Any:
    """A request's body, unless it has a key that would be ignored against its meaning."""
    if isinstance(value, dict):
        for key in (*UNHELD, *(key for key in UNHELD_BUT_FOR if key not in UNHELD)):
            nothing = (
                UNHELD_BUT_FOR.get(key, ()) if key not in UNHELD else (False, 0, [], "", *UNHELD_BUT_FOR.get(key, ()))
            )
            said = value.get(key)
            # true is no 1 here, and 0 no false: they ask for something, such as the log-probs of a prompt's own tokens.
            if said is not None and not any(
                said == each and isinstance(said, bool) == isinstance(each, bool) for each in nothing
            ):
                raise ValueError(f"{key}: not supported by this server; leave it out")
    return value


OTHER_NAMES = {
    "repetition_penalty": "repeat_penalty", "n_predict": "max_tokens", "max_new_tokens": "max_tokens",
    "stop_sequences": "stop", "random_seed": "seed",
}  # fmt: skip
"""Names that other servers give to keys of ours."""


def _by_our_names(value: Any) -> Any:
    """A request's body with keys of other servers under the names that they have here."""
    if not isinstance(value, dict):
        return value
    made = dict(value)
    for other, own in OTHER_NAMES.items():
        said = made.pop(other, None)
        if said is not None and made.get(own) is None and not (other == "n_predict" and said == -1):
            made[own] = said
    if made.get("top_k") == -1:
        made["top_k"] = 0  # vLLM's word for all
    return made


class Schemas(Words):
    """The places where servers take the form of an answer."""

    grammar: Text | None = Field(default=None, max_length=1 << 18)
    response_format: ResponseFormat | None = None
    json_schema: Any = None
    guided_json: Any = None
    guided_regex: Text | None = None
    guided_choice: Annotated[list[Text], Field(max_length=1 << 16)] | None = None
    guided_grammar: Text | None = None
    structured_outputs: StructuredOutputs | None = None
    format: Any = None

    @model_validator(mode="before")
    @classmethod
    def _all_are_held(cls, value: Any) -> Any:
        return _by_our_names(require_held(value))

    @model_validator(mode="after")
    def _one_form(self) -> Schemas:
        forms = self.forms()
        for form in forms:
            if form.kind != "json" and not form.value:
                raise ValueError(f"{form.key}: it is empty, and allows no answer; leave it out")
        if len(forms) > 1:
            raise ValueError(f"{' and '.join(form.key for form in forms)} each decide the answer's form: choose one")
        return self

    def form(self) -> Form | None:
        """What the answer is held to; None where it is free."""
        return next(iter(self.forms()), None)

    def forms(self) -> list[Form]:
        """All that the request says of it."""
        found = []
        wanted = self.response_format
        if wanted is not None and wanted.type != "text":
            found.append(Form("response_format", "json", wanted.wanted()))
        if self.format not in (None, ""):
            found.append(Form("format", "json", None if self.format == "json" else _schema_in("format", self.format)))
        for key in ("json_schema", "guided_json"):
            if getattr(self, key) is not None:
                found.append(Form(key, "json", _schema_in(key, getattr(self, key))))
        kinds: list[tuple[str, Literal["regex", "choice", "grammar"]]] = [
            ("guided_regex", "regex"), ("guided_choice", "choice"), ("guided_grammar", "grammar"),
        ]  # fmt: skip
        found += [Form(key, kind, getattr(self, key)) for key, kind in kinds if getattr(self, key) is not None]
        if self.grammar:  # an empty one is llama.cpp's word for none
            found.append(Form("grammar", "grammar", self.grammar))
        if (outputs := self.structured_outputs) is not None:
            if outputs.json_ is not None:
                found.append(
                    Form("structured_outputs.json", "json", _schema_in("structured_outputs.json", outputs.json_))
                )
            if outputs.json_object:
                found.append(Form("structured_outputs.json_object", "json"))
            for kind in ("regex", "choice", "grammar"):
                if getattr(outputs, kind) is not None:
                    found.append(Form(f"structured_outputs.{kind}", kind, getattr(outputs, kind)))
        return found


def _schema_in(key: str, value: Any) -> Any:
    """A schema, which some clients send as a text."""
    if isinstance(value, str):
        try:
            return read_strict(value.encode())
        except ValueError as error:
            raise ValueError(f"{key}: a schema is expected, and it is not JSON: {error}") from None
    return value


class Sampling(Schemas):
    """What completions of both kinds have in common."""

    model: Text = ""
    max_tokens: int | None = Field(default=None, ge=0, le=1 << 20)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=1000)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repeat_penalty: float | None = Field(default=None, ge=0.5, le=2)
    repeat_last_n: int | None = Field(default=None, ge=-1, le=1 << 20)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = Field(default=None, max_length=1024)
    seed: int | None = Field(default=None, ge=-(1 << 63), le=(1 << 63) - 1)
    stop: Text | list[Text] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Sampling:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > 16 or any(not 0 < len(stop) <= 256 for stop in stops):
            raise ValueError("stop: at most 16 texts of 1 to 256 characters")
        for token, bias in (self.logit_bias or {}).items():
            if not (token.isascii() and token.isdigit() and len(token) <= 9) or not -100 <= bias <= 100:
                raise ValueError("logit_bias: ids of tokens, and values between -100 and 100")
        return self

    def require_tokens(self, size: int) -> None:
        """Refuse biases of tokens that a model does not have.

        Args:
            size: Tokens of its vocabulary.

        Raises:
            ValueError: There is one; names it.
        """
        for token in self.logit_bias or {}:
            if int(token) >= size:
                raise ValueError(f"logit_bias: the vocabulary has no token {int(token)}; ids are below {size}")

    def sampling(self) -> dict[str, Any]:
        """The settings in the words of llama.cpp."""
        names = (
            "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "repeat_last_n", "presence_penalty",
            "frequency_penalty",
        )  # fmt: skip
        found: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.seed is not None:
            found["seed"] = self.seed % 0xFFFFFFFF
        if self.stop:
            found["stop"] = self.stop
        if self.logit_bias:
            found["logit_bias"] = [[int(token), bias] for token, bias in self.logit_bias.items()]
        return found


class Thinking(Words):
    """Whether the model thinks first, as several servers have it."""

    type: Literal["enabled", "disabled", "auto", "adaptive"]


MOST_PARTS = 8192
"""Parts of all messages of a request."""


class ChatRequest(Sampling):
    """A chat completion. ``session`` continues a kept conversation: its messages come before these."""

    messages: list[Message] = Field(min_length=1, max_length=2048)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1 << 20)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[Tool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Function] | None = Field(default=None, max_length=128)
    function_call: Literal["none", "auto"] | NamedFunction | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, max_length=32)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    enable_thinking: bool | None = None
    thinking: Thinking | None = None
    session: SessionId | None = None

    @model_validator(mode="before")
    @classmethod
    def _reasoning_in_one_place(cls, value: Any) -> Any:
        # {"reasoning": {"effort": …}} of the Responses API is sent here too.
        told = value.get("reasoning") if isinstance(value, dict) else None
        if not isinstance(told, dict):
            return value
        effort = "none" if told.get("enabled") is False else told.get("effort")
        return {**value, "reasoning_effort": value.get("reasoning_effort") or effort}

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        parts = sum(len(message.content) for message in self.messages if isinstance(message.content, list))
        if parts > MOST_PARTS:
            raise ValueError(f"messages: {parts:,} parts in all, and at most {MOST_PARTS:,} are taken")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: say logprobs: true as well")
        if self.functions and self.tools:
            raise ValueError("functions and tools are the old and the new name of the same: choose one")
        if self.functions:
            self.tools = [Tool(type="function", function=function) for function in self.functions]
            called = self.function_call
            self.tool_choice = NamedTool(function=called) if isinstance(called, NamedFunction) else called
            self.parallel_tool_calls = False
        names = [tool.function.name for tool in self.tools or []]
        if len(set(names)) != len(names):
            raise ValueError("tools: two have the same name")
        if not set(self.callable_tools()) <= set(names):
            raise ValueError("tool_choice: no tool has this name")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice: there are no tools")
        if self.form() is not None and self.uses_tools():
            raise ValueError(f"{self.forms()[0].key} and tools each decide the form of the answer: choose one")
        if self.max_tokens == 0:
            raise ValueError("max_tokens: at least 1")
        for key, value in (self.chat_template_kwargs or {}).items():
            if key in _OF_TEMPLATES or not isinstance(value, bool | int | float | str) or len(str(value)) > 200:
                raise ValueError(f"chat_template_kwargs: {key[:50]!r} is not one, or not a short plain value")
            if not math.isfinite(value if isinstance(value, float) else 0.0):
                raise ValueError(f"chat_template_kwargs: {key[:50]!r} is no number")
            _plain(key + (value if isinstance(value, str) else ""))
        return self

    def template_settings(self) -> dict[str, Any]:
        """What the chat template is told besides the conversation."""
        found: dict[str, Any] = {}
        if self.reasoning_effort is not None:
            found["enable_thinking"] = self.reasoning_effort != "none"
            if self.reasoning_effort != "none":
                found["reasoning_effort"] = self.reasoning_effort
        if self.thinking is not None and self.thinking.type in ("enabled", "disabled"):
            found["enable_thinking"] = self.thinking.type == "enabled"
        if self.enable_thinking is not None:
            found["enable_thinking"] = self.enable_thinking
        return {**found, **(self.chat_template_kwargs or {})}

    def uses_tools(self) -> bool:
        """Whether the answer may be a call."""
        return bool(self.tools) and self.tool_choice != "none"

    def must_call(self) -> bool:
        """Whether the answer has to be a call."""
        choice = self.tool_choice
        if isinstance(choice, AllowedTools):
            return choice.allowed_tools.mode == "required"
        return choice == "required" or isinstance(choice, NamedTool)

    def callable_tools(self) -> list[str]:
        """Names of the tools that the answer may call."""
        if isinstance(self.tool_choice, NamedTool):
            return [self.tool_choice.function.name]
        if isinstance(self.tool_choice, AllowedTools):
            return [tool.function.name for tool in self.tool_choice.allowed_tools.tools]
        return [tool.function.name for tool in self.tools or []]


TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(min_length=1, max_length=1 << 18)]
Prompt = Text | TokenIds


def _several(asked: str | list[int] | list[str | list[int]]) -> list[str | list[int]]:
    """One text (words, or ids of tokens) as a list of one; several as they are."""
    if isinstance(asked, str) or isinstance(asked[0], int):
        return [asked]
    return list(asked)


class CompletionRequest(Sampling):
    """A completion of a text."""

    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=256)]
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_a_conversation(cls, value: Any) -> Any:
        for key in ("messages", "tools", "functions"):
            if isinstance(value, dict) and value.get(key):
                raise ValueError(f"{key}: a completion has none; ask /v1/chat/completions")
        return value

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or several."""
        return _several(self.prompt)


_OF_COMPLETIONS = {
    "messages", "prompt", "functions", "function_call", "session", "logprobs", "top_logprobs", "echo",
}  # fmt: skip
"""Keys of completions that requests of other APIs cannot have."""


class Translated(Words):
    """A request of another API than OpenAI's completions, which becomes one. Keys of a completion count in it, too."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    def further(self, kind: type[Sampling]) -> dict[str, Any]:
        """The keys of a completion that the request has besides its own.

        Raises:
            ValueError: One of them cannot be honoured here.
        """
        said = self.model_extra or {}
        found = {key: said[key] for key in said if key in kind.model_fields or key in OTHER_NAMES}
        for key in sorted(_OF_COMPLETIONS & found.keys()):
            if found[key] not in (False, 0, [], ""):
                raise ValueError(f"{key}: not a key of this API; leave it out")
            del found[key]
        return found


class EmbeddingRequest(Words):
    """Embeddings of texts."""

    model: Text = ""
    input: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1)

    def texts(self) -> list[str | list[int]]:
        """The texts, one or several, each as words or as ids of tokens."""
        return _several(self.input)


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
