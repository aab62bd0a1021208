# mypy: ignore-errors
# ruff: noqa
"""The Python client `openai`."""

import openai
from checks import CITY, TOOL, USER, arguments, check, done, is_city
from pydantic import BaseModel

BASE, MODEL, KEY = arguments()
client = openai.OpenAI(base_url=f"{BASE}/v1", api_key=KEY, max_retries=0)
few = {"model": MODEL, "max_tokens": 12}


class City(BaseModel):
    city: str


def chat(**more):
    return client.chat.completions.create(**{**few, "messages": USER, **more})


@check("models")
def _():
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


@check("chat")
def _():
    answer = chat()
    assert answer.choices[0].message.content is not None
    assert answer.usage.total_tokens > 0


@check("chat streamed is the same")
def _():
    whole = chat(temperature=0).choices[0].message.content
    events = list(chat(temperature=0, stream=True, stream_options={"include_usage": True}))
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == whole
    assert events[0].choices[0].delta.role == "assistant"
    assert events[-1].usage.completion_tokens > 0


@check("content parts")
def _():
    chat(messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}])


@check("logprobs")
def _():
    entries = chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert entries
    assert all(len(entry.top_logprobs) == 3 for entry in entries)


@check("seed repeats")
def _():
    assert len({chat(seed=5, temperature=1.2).choices[0].message.content for _ in range(2)}) == 1


@check("stop")
def _():
    assert "e" not in (chat(stop=["e"]).choices[0].message.content or "")


@check("json_schema")
def _():
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    is_city(chat(response_format=form).choices[0].message.content)


@check("json_object")
def _():
    answer = chat(response_format={"type": "json_object"}, max_tokens=200).choices[0]
    assert answer.finish_reason == "length" or answer.message.content.startswith("{")


@check("parse into a pydantic model")
def _():
    answer = client.chat.completions.parse(**{**few, "max_tokens": 300}, messages=USER, response_format=City)
    assert isinstance(answer.choices[0].message.parsed.city, str)


@check("guided_choice")
def _():
    assert chat(extra_body={"guided_choice": ["a", "b"]}).choices[0].message.content in ("a", "b")


@check("a named tool")
def _():
    choice = {"type": "function", "function": {"name": "weather"}}
    (call,) = chat(tools=[TOOL], tool_choice=choice, max_tokens=80).choices[0].message.tool_calls
    is_city(call.function.arguments)


@check("a required tool, streamed")
def _():
    events = chat(tools=[TOOL], tool_choice="required", parallel_tool_calls=False, stream=True, max_tokens=80)
    deltas = [call for event in events for choice in event.choices for call in choice.delta.tool_calls or ()]
    is_city("".join(delta.function.arguments or "" for delta in deltas))


@check("parallel tool results")
def _():
    calls = [
        {"id": f"c{n}", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
        for n in (1, 2)
    ]
    results = [{"role": "tool", "tool_call_id": f"c{n}", "content": "sunny"} for n in (1, 2)]
    chat(messages=[*USER, {"role": "assistant", "content": None, "tool_calls": calls}, *results], tools=[TOOL])


@check("functions of old")
def _():
    function = {"name": "weather", "parameters": CITY}
    answer = chat(functions=[function], function_call={"name": "weather"}, max_tokens=80).choices[0]
    is_city(answer.message.function_call.arguments)


@check("reasoning_effort")
def _():
    chat(reasoning_effort="none")


@check("a bad schema is a BadRequestError")
def _():
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {"type": "string"}}}}
    try:
        chat(response_format=form)
    except openai.BadRequestError as error:
        assert "not" in str(error)
    else:
        raise AssertionError("it was answered")


@check("an unknown model is a NotFoundError")
def _():
    try:
        chat(model="nobody")
    except openai.NotFoundError:
        return
    raise AssertionError("it was answered")


@check("a wrong key is an AuthenticationError")
def _():
    try:
        openai.OpenAI(base_url=f"{BASE}/v1", api_key="wrong" * 5, max_retries=0).models.list()
    except openai.AuthenticationError:
        return
    raise AssertionError("it was let in")


@check("completion")
def _():
    assert client.completions.create(**few, prompt="Once").choices[0].text


@check("completion of several prompts")
def _():
    assert [choice.index for choice in client.completions.create(**few, prompt=["One", "Two"]).choices] == [0, 1]


@check("completion with echo and logprobs")
def _():
    choice = client.completions.create(model=MODEL, prompt="Once upon", max_tokens=0, echo=True, logprobs=1).choices[0]
    assert choice.text == "Once upon"
    assert len(choice.logprobs.text_offset) == len(choice.logprobs.tokens) > 1


@check("completion streamed")
def _():
    assert "".join(
        event.choices[0].text for event in client.completions.create(**few, prompt="Once", stream=True) if event.choices
    )


@check("response")
def _():
    answer = client.responses.create(model=MODEL, input="Hi", max_output_tokens=12)
    assert answer.output_text


@check("response streamed")
def _():
    events = list(client.responses.create(model=MODEL, input="Hi", max_output_tokens=12, stream=True))
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta")


@check("response with a function")
def _():
    tool = {"type": "function", "name": "weather", "parameters": CITY}
    choice = {"type": "function", "name": "weather"}
    (item,) = client.responses.create(model=MODEL, input="Hi", tools=[tool], tool_choice=choice).output
    is_city(item.arguments)
    onward = [{"role": "user", "content": "Hi"}, item.model_dump(exclude_none=True)]
    onward.append({"type": "function_call_output", "call_id": item.call_id, "output": "sunny"})
    client.responses.create(model=MODEL, input=onward, tools=[tool], tool_choice="none", max_output_tokens=8)


@check("response parsed into a pydantic model")
def _():
    answer = client.responses.parse(model=MODEL, input="Hi", text_format=City, max_output_tokens=300)
    assert isinstance(answer.output_parsed.city, str)


done()
