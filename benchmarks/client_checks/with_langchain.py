# mypy: ignore-errors
# ruff: noqa
"""LangChain, by `langchain-openai` and `langchain-ollama`."""

from typing import Literal

from checks import USER, arguments, check, done
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

BASE, MODEL, KEY = arguments()
chat = ChatOpenAI(model=MODEL, base_url=f"{BASE}/v1", api_key=KEY, max_tokens=12, max_retries=0)


class City(BaseModel):
    """A city."""

    city: str


@tool
def weather(city: Literal["Ulm", "Bern"]) -> str:  # a random model may never end a string of its own
    """The weather."""
    return "sunny"


@check("invoke")
def _():
    assert chat.invoke("Hi").content is not None


@check("stream")
def _():
    assert "".join(part.content for part in chat.stream("Hi"))


@check("batch")
def _():
    assert len(chat.batch(["Hi", "Ho"])) == 2


@check("structured output")
def _():
    longer = ChatOpenAI(model=MODEL, base_url=f"{BASE}/v1", api_key=KEY, max_tokens=300, max_retries=0)
    for method in ("json_schema", "function_calling"):
        assert isinstance(longer.with_structured_output(City, method=method).invoke("Hi").city, str)


@check("tools")
def _():
    longer = ChatOpenAI(model=MODEL, base_url=f"{BASE}/v1", api_key=KEY, max_tokens=300, max_retries=0)
    answer = longer.bind_tools([weather], tool_choice="weather", parallel_tool_calls=False).invoke("Hi")
    (call,) = answer.tool_calls
    talk = [HumanMessage("Hi"), AIMessage("", tool_calls=[call]), ToolMessage("sunny", tool_call_id=call["id"])]
    assert chat.bind_tools([weather]).invoke(talk)


@check("parallel results of tools")
def _():
    calls = [{"name": "weather", "args": {"city": city}, "id": city} for city in ("Ulm", "Bern")]
    results = [ToolMessage("sunny", tool_call_id=call["id"]) for call in calls]
    assert chat.bind_tools([weather]).invoke([HumanMessage("Hi"), AIMessage("", tool_calls=calls), *results])


@check("a tool streamed")
def _():
    longer = ChatOpenAI(model=MODEL, base_url=f"{BASE}/v1", api_key=KEY, max_tokens=300, max_retries=0)
    parts = list(longer.bind_tools([weather], tool_choice="weather", parallel_tool_calls=False).stream("Hi"))
    whole = parts[0]
    for part in parts[1:]:
        whole += part
    assert whole.tool_calls[0]["name"] == "weather"


@check("log-probabilities")
def _():
    assert chat.bind(logprobs=True, top_logprobs=2).invoke("Hi").response_metadata["logprobs"]["content"]


@check("usage of a stream")
def _():
    told = [part.usage_metadata for part in chat.stream("Hi", stream_usage=True) if part.usage_metadata]
    assert sum(each["output_tokens"] for each in told) > 0


@check("completion")
def _():
    assert OpenAI(model=MODEL, base_url=f"{BASE}/v1", api_key=KEY, max_tokens=12, max_retries=0).invoke("Once")


@check("the Responses API")
def _():
    over = ChatOpenAI(model=MODEL, base_url=f"{BASE}/v1", api_key=KEY, max_tokens=16, use_responses_api=True)
    assert over.invoke("Hi").text


@check("ChatOllama")
def _():
    headers = {"headers": {"Authorization": f"Bearer {KEY}"}}
    assert (
        ChatOllama(model=MODEL, base_url=BASE, num_predict=12, client_kwargs=headers).invoke("Hi").content is not None
    )


assert USER
done()
