# mypy: ignore-errors
# ruff: noqa
"""The Python client `litellm`, in a release that is named by its digest: two releases of March 2026 stole credentials."""

import litellm
from checks import CITY, TOOL, USER, arguments, check, done, is_city

BASE, MODEL, KEY = arguments()
there = {"model": f"openai/{MODEL}", "api_base": f"{BASE}/v1", "api_key": KEY, "num_retries": 0}


@check("chat")
def _():
    assert litellm.completion(**there, messages=USER, max_tokens=12).choices[0].message.content is not None


@check("chat streamed")
def _():
    parts = list(litellm.completion(**there, messages=USER, max_tokens=12, stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts)


@check("json_schema")
def _():
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    is_city(litellm.completion(**there, messages=USER, max_tokens=60, response_format=form).choices[0].message.content)


@check("tools")
def _():
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = litellm.completion(**there, messages=USER, max_tokens=60, tools=[TOOL], tool_choice=choice)
    is_city(answer.choices[0].message.tool_calls[0].function.arguments)


@check("tools streamed")
def _():
    choice = {"type": "function", "function": {"name": "weather"}}
    parts = list(
        litellm.completion(**there, messages=USER, max_tokens=60, tools=[TOOL], tool_choice=choice, stream=True)
    )
    whole = litellm.stream_chunk_builder(parts)
    is_city(whole.choices[0].message.tool_calls[0].function.arguments)


@check("text completion")
def _():
    there_ = {**there, "model": f"text-completion-openai/{MODEL}"}
    assert litellm.text_completion(**there_, prompt="Once", max_tokens=8).choices[0].text


@check("responses")
def _():
    assert litellm.responses(**there, input="Hi", max_output_tokens=12).output


@check("as Ollama")
def _():
    answer = litellm.completion(
        model=f"ollama_chat/{MODEL}", api_base=BASE, api_key=KEY, messages=USER, max_tokens=12, num_retries=0
    )
    assert answer.choices[0].message.content is not None


@check("an unknown model is a NotFoundError")
def _():
    try:
        litellm.completion(**{**there, "model": "openai/nobody"}, messages=USER)
    except litellm.NotFoundError:
        return
    raise AssertionError("it was answered")


@check("an error is a BadRequestError")
def _():
    try:
        litellm.completion(**there, messages=USER, temperature=99)
    except litellm.BadRequestError:
        return
    raise AssertionError("it was answered")


done()
