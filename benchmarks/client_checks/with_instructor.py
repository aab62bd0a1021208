# mypy: ignore-errors
# ruff: noqa
"""The Python client `instructor`."""

from enum import Enum

import instructor
import openai
from checks import USER, arguments, check, done
from pydantic import BaseModel

BASE, MODEL, KEY = arguments()
plain = openai.OpenAI(base_url=f"{BASE}/v1", api_key=KEY, max_retries=0)


class Kind(str, Enum):
    large = "large"
    small = "small"


class City(BaseModel):
    kind: Kind
    found: bool


for mode in ("TOOLS", "JSON_SCHEMA", "JSON"):

    @check(mode)
    def _():
        client = instructor.from_openai(plain, mode=getattr(instructor.Mode, mode))  # each runs at once
        made = client.chat.completions.create(
            model=MODEL, messages=USER, response_model=City, max_tokens=300, max_retries=2
        )
        assert made.kind in Kind


@check("a list of models")
def _():
    client = instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA)
    made = client.chat.completions.create(
        model=MODEL, messages=USER, response_model=City, max_tokens=300, temperature=0.0
    )
    assert isinstance(made.found, bool)


done()
