"""Tools and conversations as texts: calls written out, results taken in, contents shielded.

A call is written as ``<tool_call>{"name": …, "arguments": …}</tool_call>``. Whatever the model's own template knows of
tools is left aside: the conversation that it sees has texts only, and the form of a call is not up to it.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from stillroom.serving.grammars import CLOSE, OPEN, tool_grammar
from stillroom.serving.requests import ChatRequest, Message, NamedTool
from stillroom.serving.shield import Shield

RESULT = ("<tool_response>\n", "\n</tool_response>")


def grammar_of_calls(request: ChatRequest) -> str:
    """The grammar of the answers that a request with tools allows.

    Raises:
        UnsupportedSchema: The parameters of a tool cannot be guaranteed.
    """
    callable_tools = request.callable_tools()
    tools = [
        (tool.function.name, tool.function.parameters)
        for tool in request.tools or []
        if tool.function.name in callable_tools
    ]
    several = not isinstance(request.tool_choice, NamedTool) and request.parallel_tool_calls is not False
    return tool_grammar(tools, required=request.must_call(), several=several)


def plain_messages(messages: list[Message], request: ChatRequest, shield: Shield) -> list[dict[str, str]]:
    """The conversation as texts: calls and their results written out, the tools described at its beginning.

    Results that follow each other are one turn. Contents have the shield's stand-ins; markup that is ours has none.
    """
    found: list[dict[str, str]] = []
    after_result = False
    for message in messages:
        role, text = message.role, message.text()
        is_result = role in ("tool", "function")
        if role == "assistant":
            written = [shield.protect(text, own=True)] if text else []
            for call in message.calls():
                arguments = shield.protect(call.arguments or "{}")
                written.append(f'{OPEN}{{"name": {json.dumps(call.name)}, "arguments": {arguments}}}{CLOSE}')
            made = {"role": role, "content": "\n".join(written)}
            if message.reasoning:
                made["reasoning_content"] = shield.protect(message.reasoning)
        elif is_result:
            made = {"role": "user", "content": f"{RESULT[0]}{shield.protect(text)}{RESULT[1]}"}
        else:
            made = {"role": "system" if role == "developer" else role, "content": shield.protect(text)}
        if is_result and after_result:
            found[-1]["content"] += "\n" + made["content"]
        else:
            found.append(made)
        after_result = is_result
    if request.uses_tools():
        described = shield.protect(_described(request)) + _how()
        if found and found[0]["role"] == "system":
            found[0] = {"role": "system", "content": f"{found[0]['content']}\n\n{described}"}
        else:
            found.insert(0, {"role": "system", "content": described})
    return found


def alternating(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same conversation for a template that wants users and assistants by turns: neighbours of one role are joined,
    and a system message in the middle is a part of the user's turn.
    """
    found: list[dict[str, str]] = []
    for number, message in enumerate(messages):
        role = message["role"]
        if role == "system" and any(each["role"] != "system" for each in messages[:number]):
            role = "user"
        if found and found[-1]["role"] == role:
            joined = dict(found[-1])
            for key in ("content", "reasoning_content"):
                texts = [text for text in (found[-1].get(key), message.get(key)) if text]
                if texts:
                    joined[key] = "\n\n".join(texts)
            found[-1] = joined
        else:
            found.append({**message, "role": role})
    return found


def without_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same conversation for a template that knows no system: its message begins the first user's turn."""
    if not messages or messages[0]["role"] != "system":
        return messages
    if len(messages) > 1 and messages[1]["role"] == "user":
        joined = "\n\n".join(filter(None, (messages[0]["content"], messages[1]["content"])))
        return [{"role": "user", "content": joined}, *messages[2:]]
    return [{"role": "user", "content": messages[0]["content"]}, *messages[1:]]


def _described(request: ChatRequest) -> str:
    lines = [
        json.dumps(tool.function.model_dump(exclude_none=True, exclude={"strict"}), ensure_ascii=False)
        for tool in request.tools or []
    ]
    return "You can call these functions:\n" + "\n".join(lines)


def _how() -> str:
    return f'\nTo call one, write {OPEN}{{"name": its name, "arguments": an object of its parameters}}{CLOSE} and nothing else.'


def parse_calls(text: str) -> list[dict[str, Any]]:
    """The calls in an answer, as the OpenAI API has them; an answer that was cut off has only its whole ones."""
    found = []
    decoder = json.JSONDecoder()
    at = 0
    while text.startswith(OPEN, at):
        try:
            value, at = decoder.raw_decode(text, at + len(OPEN))
        except (ValueError, RecursionError):
            break
        if not text.startswith(CLOSE, at) or not isinstance(value, dict) or not {"name", "arguments"} <= value.keys():
            break
        arguments = json.dumps(value["arguments"], ensure_ascii=False)
        function = {"name": str(value["name"]), "arguments": arguments}
        found.append({"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function})
        at += len(CLOSE)
        while at < len(text) and text[at].isspace():
            at += 1
    return found
