"""Tool calls that are valid by construction: a grammar from the tools' own schemas.

A call is written as ``<tool_call>{"name": …, "arguments": …}</tool_call>``. Whatever the model's own template knows of
tools is left aside: the conversation that it sees has texts only, and the form of a call is not up to it.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from stillroom.serving.pattern import quote
from stillroom.serving.requests import ChatRequest, Message, NamedTool
from stillroom.serving.schema import SchemaCompiler

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MOST_CALLS = 8


def tool_grammar(request: ChatRequest) -> str:
    """The grammar of the answers that a request allows.

    Raises:
        UnsupportedSchema: The parameters of a tool cannot be guaranteed.
    """
    compiler = SchemaCompiler()
    choice = request.tool_choice
    wanted = choice.function.name if isinstance(choice, NamedTool) else None
    calls = []
    for tool in request.tools or []:
        function = tool.function
        if wanted in (None, function.name):
            schema = {"type": "object", "additionalProperties": False, **(function.parameters or {})}
            begin = quote(f'{{"name": {json.dumps(function.name)}, "arguments": ')
            calls.append(compiler.rule(f'{begin} {compiler.add(schema)} "}}"'))
    one = compiler.rule(f"{quote(OPEN)} ({' | '.join(calls)}) {quote(CLOSE)}")
    several = one
    if wanted is None and request.parallel_tool_calls is not False:
        several = compiler.rule(f'{one} ("\\n" {one}){{0,{MOST_CALLS - 1}}}')
    if wanted is None and choice != "required":
        several = compiler.rule(f"{several} | ([^<] .*)?")
    return compiler.grammar(several)


def plain_messages(messages: list[Message], request: ChatRequest) -> list[dict[str, str]]:
    """The conversation as texts: calls and their results written out, the tools described at its beginning."""
    found: list[dict[str, str]] = []
    for message in messages:
        role, text = message.role, message.text()
        if role == "developer":
            role = "system"
        elif role == "tool":
            role, text = "user", f"<tool_response>\n{text}\n</tool_response>"
        elif message.tool_calls:
            calls = [
                f'{OPEN}{{"name": {json.dumps(call.function.name)}, "arguments": {call.function.arguments}}}{CLOSE}'
                for call in message.tool_calls
            ]
            text = "\n".join(filter(None, [text, *calls]))
        found.append({"role": role, "content": text})
    if request.uses_tools():
        described = _describe(request)
        if found and found[0]["role"] == "system":
            found[0] = {"role": "system", "content": f"{found[0]['content']}\n\n{described}"}
        else:
            found.insert(0, {"role": "system", "content": described})
    return found


def _describe(request: ChatRequest) -> str:
    lines = [
        json.dumps(tool.function.model_dump(exclude_none=True, exclude={"strict"}), ensure_ascii=False)
        for tool in request.tools or []
    ]
    return (
        "You can call these functions:\n" + "\n".join(lines) + f"\nTo call one, write {OPEN}"
        '{"name": its name, "arguments": an object of its parameters}' + f"{CLOSE} and nothing else."
    )


def parse_calls(text: str) -> list[dict[str, Any]]:
    """The calls in an answer, as the OpenAI API has them; an answer that was cut off has only its whole ones."""
    found = []
    for part in text.split(OPEN)[1:]:
        body, closed, _ = part.partition(CLOSE)
        # A string in the arguments may hold the closing mark: go on until it is JSON.
        while closed:
            try:
                value = json.loads(body)
                break
            except ValueError:
                rest = part[len(body) + len(CLOSE) :]
                more, closed, _ = rest.partition(CLOSE)
                body += CLOSE + more
        if not closed:
            continue
        found.append(
            {
                "id": f"call_{secrets.token_hex(12)}",
                "type": "function",
                "function": {"name": value["name"], "arguments": json.dumps(value["arguments"], ensure_ascii=False)},
            }
        )
    return found
