"""Requests, and what is made of them, as JSON: how the server and its processes that prepare requests hand them to each other.

A process that reads what clients send is not trusted with more than data: nothing here runs code that the other side names.
Only the classes listed here come back, filled with values; a pickle could name any other.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from decimal import Decimal
from typing import Any

from pydantic import BaseModel

from stillroom.runtime.facts import GgufFacts
from stillroom.serving import answers, distinct, ollama, repeats, requests, responses, sessions, shield

_KIND = "$"
_MODELS = {
    kind.__name__: kind
    for module in (requests, responses, ollama)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not BaseModel
}
_RECORDS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (answers.Question, sessions.Session, requests.Form, GgufFacts)
}
_OBJECTS: dict[str, type[Any]] = {kind.__name__: kind for kind in (shield.Shield, repeats.Repeats)}
_SCALARS = {bool, int, float, str, type(None)}
_MANY = 64


def written(value: Any) -> bytes:
    """A value as JSON.

    Raises:
        TypeError: It holds something that is never handed over.
    """
    return json.dumps(_encoded(value), separators=(",", ":")).encode()


def read(data: bytes) -> Any:
    """The value again.

    Raises:
        ValueError: It is not what :func:`written` makes.
    """
    try:
        return _decoded(json.loads(data))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"what was handed over is not a request: {error}") from error


def _encoded(value: Any) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is list:
        if len(value) > _MANY and all(type(each) in _SCALARS for each in value):
            # The ids of a prompt: taken as they are when they are read.
            return {_KIND: "plain", "v": value}
        return [_encoded(each) for each in value]
    if kind is dict:
        if _KIND not in value and all(type(key) is str for key in value):
            return {key: _encoded(each) for key, each in value.items()}
        return {_KIND: "map", "v": [[_encoded(key), _encoded(each)] for key, each in value.items()]}
    if kind is tuple:
        return {_KIND: "tuple", "v": [_encoded(each) for each in value]}
    if kind in (set, frozenset):
        return {_KIND: "set", "v": [_encoded(each) for each in value]}
    if kind is bytes:
        return {_KIND: "bytes", "v": base64.b64encode(value).decode()}
    if kind is Decimal:
        return {_KIND: "decimal", "v": str(value)}
    if kind is re.Pattern:
        return {_KIND: "pattern", "v": value.pattern, "flags": value.flags}
    if kind is distinct.Distinct:
        return {_KIND: "distinct", "v": _encoded(value.document)}
    if _MODELS.get(kind.__name__) is kind:
        held = {"fields": value.__dict__, "extra": value.__pydantic_extra__, "set": [*value.model_fields_set]}
        return {_KIND: "model", "name": kind.__name__, "v": _encoded(held)}
    if _RECORDS.get(kind.__name__) is kind:
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
        return {_KIND: "record", "name": kind.__name__, "v": _encoded(fields)}
    if _OBJECTS.get(kind.__name__) is kind:
        return {_KIND: "object", "name": kind.__name__, "v": _encoded(vars(value))}
    raise TypeError(f"{kind.__module__}.{kind.__name__} is not handed over")


def _decoded(value: Any) -> Any:
    if type(value) is list:
        return [_decoded(each) for each in value]
    if type(value) is not dict:
        return value
    if _KIND not in value:
        return {key: _decoded(each) for key, each in value.items()}
    kind = value[_KIND]
    if kind == "plain":
        return value["v"]
    if kind == "bytes":
        return base64.b64decode(value["v"])
    if kind == "decimal":
        return Decimal(value["v"])
    if kind == "pattern":
        return re.compile(value["v"], value["flags"])
    held = _decoded(value["v"])
    if kind == "map":
        return {key: each for key, each in held}  # noqa: C416 - pairs that are lists
    if kind == "tuple":
        return tuple(held)
    if kind == "set":
        return set(held)
    if kind == "distinct":
        return distinct.Distinct.of_checked(held)
    if kind == "model":
        # The form in which pydantic takes a model's state back; its validators were run where it was made.
        model = _MODELS[value["name"]]
        found = model.__new__(model)
        found.__setstate__(
            {
                "__dict__": held["fields"],
                "__pydantic_extra__": held["extra"],
                "__pydantic_fields_set__": set(held["set"]),
                "__pydantic_private__": None,
            }
        )
        return found
    if kind == "record":
        return _RECORDS[value["name"]](**held)
    if kind == "object":
        made = object.__new__(_OBJECTS[value["name"]])
        vars(made).update(held)
        return made
    raise ValueError(f"{kind!r} is no kind of value")
