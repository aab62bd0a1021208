# mypy: ignore-errors
# ruff: noqa
"""The Python client `ollama`."""

import ollama
from checks import CITY, TOOL, USER, arguments, check, done, is_city

BASE, MODEL, KEY = arguments()
client = ollama.Client(host=BASE, headers={"Authorization": f"Bearer {KEY}"})
few = {"num_predict": 12, "temperature": 0}


@check("list")
def _():
    assert MODEL in [model.model for model in client.list().models]


@check("chat")
def _():
    assert client.chat(MODEL, USER, options=few).message.content is not None


@check("chat streamed is the same")
def _():
    parts = list(client.chat(MODEL, USER, options=few, stream=True))
    assert (
        "".join(part.message.content or "" for part in parts) == client.chat(MODEL, USER, options=few).message.content
    )
    assert parts[-1].done


@check("generate")
def _():
    assert client.generate(MODEL, "Once", options=few).response


@check("generate streamed, raw")
def _():
    assert list(client.generate(MODEL, "Once", options=few, raw=True, stream=True))[-1].eval_count > 0


@check("format: a schema")
def _():
    is_city(client.chat(MODEL, USER, format=CITY, options={"num_predict": 60}).message.content)
    is_city(client.generate(MODEL, "A city", format=CITY, options={"num_predict": 60}).response)


@check("format: json")
def _():
    assert client.chat(MODEL, USER, format="json", options={"num_predict": 40}).message.content.startswith("{")


@check("tools")
def _():
    client.chat(MODEL, USER, tools=[TOOL], options=few)
    call = {"function": {"name": "weather", "arguments": {"city": "Ulm"}}}
    talk = [*USER, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "sunny"}]
    client.chat(MODEL, talk, tools=[TOOL], options=few)


@check("think: False")
def _():
    assert not client.chat(MODEL, USER, think=False, options=few).message.thinking


@check("an unknown model is a ResponseError of 404")
def _():
    try:
        client.chat("nobody", USER)
    except ollama.ResponseError as error:
        assert error.status_code == 404
    else:
        raise AssertionError("it was answered")


done()
