"""The real OpenAI client for Python against a server: ``python client_openai.py ADDRESS``. Prints what it saw as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)
model = client.models.list().data[0].id
messages: Any = [{"role": "user", "content": "Say something."}]
seen: dict[str, Any] = {"version": openai.__version__}
answer = client.chat.completions.create(
    model=model, messages=messages, max_tokens=6, seed=3, logprobs=True, top_logprobs=2
)
seen["usage"] = answer.usage.completion_tokens > 0
seen["logprobs"] = len(answer.choices[0].logprobs.content[0].top_logprobs) == 2
pieces = list(
    client.chat.completions.create(
        model=model, messages=messages, max_tokens=6, stream=True, stream_options={"include_usage": True}
    )
)
seen["stream"] = pieces[-1].usage.completion_tokens > 0 and any(piece.choices for piece in pieces)
form: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "n",
        "schema": {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]},
    },
}
answer = client.chat.completions.create(model=model, messages=messages, max_tokens=60, response_format=form)
seen["json"] = isinstance(json.loads(answer.choices[0].message.content)["n"], int)
tools: Any = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer", "maximum": 99}},
                "required": ["a"],
            },
        },
    }
]
answer = client.chat.completions.create(
    model=model, messages=messages, max_tokens=120, tools=tools, tool_choice="required", parallel_tool_calls=False
)
call = answer.choices[0].message.tool_calls[0]
seen["call"] = call.function.name == "add" and isinstance(json.loads(call.function.arguments)["a"], int)
more = [*messages, answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "7"}]
answer = client.chat.completions.create(model=model, messages=more, max_tokens=6, tools=tools, tool_choice="none")
seen["result"] = answer.choices[0].message.tool_calls is None
completion = client.completions.create(model=model, prompt="Once", max_tokens=4, logprobs=1)
seen["completion"] = len(completion.choices[0].logprobs.tokens) > 0
try:
    client.chat.completions.create(model="nobody", messages=messages)
except openai.NotFoundError as error:
    seen["not found"] = error.code == "model_not_found"
try:
    client.embeddings.create(model=model, input="x")
except openai.BadRequestError as error:
    seen["no embeddings"] = "embeddings" in str(error)
print(json.dumps(seen))  # noqa: T201
