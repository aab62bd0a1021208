"""The interface described for programs (OpenAPI 3.1), from the models of the requests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from stillroom.core.version import tool_version

_STATUSES = {
    "200": "The answer", "201": "Made", "400": "The request is wrong", "401": "A key is needed",
    "403": "Not from there", "404": "There is no such thing", "408": "Too slow", "409": "It is damaged",
    "413": "Too long", "421": "Not under that name", "429": "The queue is full",
    "503": "Switched off, or this machine cannot do it now",
}  # fmt: skip


def describe(operations: Iterable[tuple[str, str, type[BaseModel] | None]]) -> dict[str, Any]:
    """The description of an interface.

    Args:
        operations: The path, the method and the body of each.
    """
    operations = list(operations)
    kinds = [(kind, "validation") for kind in dict.fromkeys(body for _, _, body in operations if body is not None)]
    _, definitions = models_json_schema(kinds, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    paths: dict[str, Any] = {}
    for path, method, kind in operations:
        operation: dict[str, Any] = {"responses": {code: {"description": about} for code, about in _STATUSES.items()}}
        if kind is not None:
            reference = {"$ref": f"#/components/schemas/{kind.__name__}"}
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference}}}
        if "{" in path:
            name = path.partition("{")[2].rstrip("}")
            operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]
        paths.setdefault(path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Stillroom", "version": tool_version()},
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
