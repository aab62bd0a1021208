# mypy: ignore-errors
# ruff: noqa
"""The Python client `instructor`."""

from enum import Enum
from typing import Annotated, Literal

import instructor
import openai
from checks import USER, arguments, check, done
from instructor.core.exceptions import IncompleteOutputException
from pydantic import BaseModel, ConfigDict, Field, ValidationError

BASE, MODEL, KEY = arguments()
plain = openai.OpenAI(base_url=f"{BASE}/v1", api_key=KEY, max_retries=0)


class Kind(str, Enum):
    large = "large"
    small = "small"


class City(BaseModel):
    kind: Kind
    found: bool


class Place(BaseModel):
    name: str


class Choice(BaseModel):
    either: City | Place


class Sets(BaseModel):
    kinds: set[Kind]
    numbers: Annotated[set[Annotated[int, Field(ge=0, le=99)]], Field(max_length=6)]


class Flat(BaseModel):
    word: Literal["large", "small"]
    found: bool


class Anything(BaseModel):
    """Any object: what JSON mode promises; the fields of a schema are up to the model there."""

    model_config = ConfigDict(extra="allow")


def client(mode):
    return instructor.from_openai(plain, mode=getattr(instructor.Mode, mode))


def create(mode, model, **more):
    ask = client(mode).chat.completions.create
    return ask(model=MODEL, messages=USER, response_model=model, max_tokens=300, max_retries=0, **more)


for mode in ("TOOLS", "TOOLS_STRICT", "JSON_SCHEMA"):

    @check(mode)
    def _():
        made = create(mode, City)  # each runs at once
        assert made.kind in Kind
        assert isinstance(made.found, bool)


@check("JSON")
def _():
    # A model that may write any object may not come to its end; the client is told so.
    try:
        assert create("JSON", Anything) is not None
    except IncompleteOutputException:
        pass


@check("a choice of models")
def _():
    assert isinstance(create("JSON_SCHEMA", Choice, temperature=0.0).either, City | Place)


@check("a set")
def _():
    assert isinstance(create("JSON_SCHEMA", Sets, temperature=1.0).kinds, set)


@check("partial, streamed")
def _():
    parts = list(client("JSON_SCHEMA").chat.completions.create_partial(
        model=MODEL, messages=USER, response_model=Flat, max_tokens=300
    ))  # fmt: skip
    assert parts[-1].word in ("large", "small")


@check("an iterable, streamed")
def _():
    # The schema that the client sends does not require its list, and the client takes the allowed answer {} for an item.
    for seed in range(20):
        items = client("JSON_SCHEMA").chat.completions.create_iterable(
            model=MODEL, messages=USER, response_model=City, max_tokens=200, seed=seed
        )
        try:
            item = next(iter(items))
        except ValidationError as error:
            assert all(each["input"] == {} for each in error.errors()), error
        else:
            assert item.kind in Kind
            return
    raise AssertionError("20 answers without an item")


done()
