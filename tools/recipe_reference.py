"""Writes docs/recipe.md from the recipe's models, or checks that it is fresh (`--check`)."""

from __future__ import annotations

import sys
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from stillroom.recipe.reading import _all_sections, _models, _tag
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.section import OpenName
from tools.generated import cell, write_or_check

TARGET = Path(__file__).parent.parent / "docs" / "recipe.md"
HEAD = """# Recipe reference

Generated from the code by `make docs`; `make check` fails when it is stale.

A recipe is a YAML file. Unknown keys are errors. Relative paths start at the recipe's folder. The resolved recipe, with
every default written out, is kept in `runs/<name>/recipe.yaml`. A section with several kinds is chosen by its `kind:` key.
"""


def reference() -> str:
    """The whole page."""
    parts = [HEAD]
    for section in _all_sections(Recipe):
        parts.append(_section(section))
    return "\n".join(parts)


def _section(section: type[BaseModel]) -> str:
    tag = _tag(section)
    title = section.__name__ if tag is None else f"{section.__name__} (`kind: {tag}`)"
    lines = [
        f"## {title}",
        "",
        " ".join((section.__doc__ or "").split()),
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
    ]
    for name, field in section.model_fields.items():
        if name == "kind":
            continue
        default = _default(field)
        meaning = cell(field.description or "").replace("``", "`")
        lines.append(f"| `{name}` | {_type(field.annotation, field)} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _default(field: Any) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "**required**"
    if isinstance(value, BaseModel):
        given = {key: getattr(value, key) for key in value.model_fields_set if key != "kind"}
        return f"`{type(value).__name__}`" + (
            " with " + ", ".join(f"`{k}: {v}`" for k, v in given.items()) if given else ""
        )
    if isinstance(value, tuple):
        value = list(value)
    return f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}`"


def _type(annotation: Any, field: Any) -> str:
    models = _models(annotation)
    if models:
        several = "list of " if typing.get_origin(annotation) is tuple else ""
        links = " or ".join(f"[{model.__name__}](#{_anchor(model)})" for model in models)
        return several + links
    text = _words(annotation)
    for item in field.metadata:
        if isinstance(item, OpenName):
            names = " or ".join(f"`{name}`" for name in item.built_in)
            text = f"{names} or a name that another package adds under `{item.group}`"
    return text + _limits(field.metadata)


def _limits(metadata: Any) -> str:
    limits = [
        f"{sign} {getattr(item, key)}"
        for item in (part for entry in metadata for part in (getattr(entry, "metadata", None) or [entry]))
        for key, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"), ("min_length", "length ≥"))
        if getattr(item, key, None) is not None
    ]
    return f", {', '.join(limits)}" if limits else ""


def _anchor(model: type[BaseModel]) -> str:
    tag = _tag(model)
    return model.__name__.lower() if tag is None else f"{model.__name__.lower()}-kind-{tag}"


def _words(annotation: Any) -> str:
    names = {
        str: "text",
        int: "integer",
        float: "number",
        bool: "true or false",
        Path: "path",
        type(None): "null",
        Any: "any value",
    }
    if annotation in names:
        return names[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        shown = (cell(str(value).replace("\t", r"\t")) for value in arguments)
        return " or ".join(f"`{one}`" for one in shown)
    if origin is tuple:
        return f"list of {_words(arguments[0])}"
    if origin is dict:
        return f"map from {_words(arguments[0])} to {_words(arguments[1])}"
    if origin is typing.Annotated:
        return _words(arguments[0]) + (_limits(arguments[1:]) if arguments[0] in (int, float) else "")
    if arguments:
        return " or ".join(_words(argument) for argument in arguments)
    return getattr(annotation, "__name__", str(annotation))


def main() -> int:
    """Write or check the page."""
    return write_or_check(TARGET, reference())


if __name__ == "__main__":
    sys.exit(main())
