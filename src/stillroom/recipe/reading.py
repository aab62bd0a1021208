"""Reads a recipe from YAML, and explains what is wrong with one."""

from __future__ import annotations

import ast
import datetime
import difflib
import functools
import glob
import json
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from stillroom.core.errors import RecipeError
from stillroom.core.progress import say
from stillroom.core.strict_yaml import load_yaml
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.section import Section, british, former_names, former_values, noting_former_names, spelt

PLACES = ("name", "path", "tokenizer", "original")
"""Keys whose values are paths, or names of a hub or package where there is no such path."""
LITERAL = re.compile(r"'(?:[^'\\]|\\.)*'")
"""One of the values that pydantic names, written as Python has it."""
MOST_MISTAKES = 20
"""Mistakes of a recipe that are shown at once."""
OTHER_UNITS = {
    "batch_size": ("batch_tokens", "`batch_tokens` is the batch in tokens (not in sequences)."),
    "steps": ("epochs", "Steps follow from `epochs` and `batch_tokens`."),
    "max_steps": ("epochs", "Steps follow from `epochs` and `batch_tokens`."),
    "num_train_epochs": ("epochs", "It is called `epochs`."),
    "lr": ("learning_rate", "It is called `learning_rate`."),
}
"""Keys of other programs: what the key here is, and what is to be known of it."""


def load_recipe(path: str | os.PathLike[str], *, kept: bool = False) -> Recipe:
    """Read a recipe.

    Relative paths inside it are resolved against the recipe's folder.

    Args:
        path: The YAML file.
        kept: It is the recipe that a run's folder keeps: names that another package added need not be known here.

    Raises:
        RecipeError: The file is missing, is not YAML, or a key or value is wrong; names file, line, key, what was found
            and what is allowed.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe.", "Give the path of a YAML file.") from None
    except IsADirectoryError:
        raise RecipeError(f"{path} is a folder, not a recipe.", "Give the path of a YAML file.") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 at byte {error.start}.", "Save the file as UTF-8.") from None
    with noting_former_names() as renamed:
        recipe = parse_recipe(text, str(path), path.parent, kept=kept)
    if renamed and not kept:
        changes = ", ".join(f"`{former}` is `{now}` now" for former, now in renamed.items())
        _say_once(
            f"{path}: {changes}; former names are still read. To write the file anew: stillroom recipe upgrade {path}"
        )
    return recipe


def parse_recipe(text: str, name: str = "recipe", folder: Path | None = None, *, kept: bool = False) -> Recipe:
    """Read a recipe from YAML text; ``name`` stands for the file in messages. See :func:`load_recipe`."""
    node, value = load_yaml(text, name)
    if not isinstance(value, dict):
        raise RecipeError(f"{name}: a recipe is a mapping of keys to values.", "Begin with `name: my-run`.")
    try:
        recipe = Recipe.model_validate(value, context={"kept": kept})
    except ValidationError as error:
        raise RecipeError(*_explain(error, node, name)) from None
    return _resolve_paths(recipe, folder) if folder is not None else recipe


@functools.cache
def _say_once(text: str) -> None:
    """A recipe may be read several times by one command."""
    say(text)


def upgraded(text: str, name: str = "recipe") -> tuple[str, dict[str, str]]:
    """A recipe's text with today's names of keys and values, and what was changed; everything else is as it was.

    Raises:
        RecipeError: It is no recipe.
    """
    before = parse_recipe(text, name, kept=True)
    node, _ = load_yaml(text, name)
    places: dict[tuple[int, int], tuple[str, str]] = {}
    _find_former(node, Recipe, places)
    changed = text
    for start, end in sorted(places, reverse=True):
        former, now = places[start, end]
        begin = text.rfind(former, start, end)  # between quotes, or behind an anchor or a tag
        if begin < 0:
            raise RecipeError(
                f"{name}: the key or value `{former}` is not spelt out in it.", f"Rename it to `{now}` by hand."
            )
        changed = changed[:begin] + now + changed[begin + len(former) :]
    if parse_recipe(changed, name, kept=True) != before:
        raise RecipeError(f"{name}: it cannot be written anew as it stands.", "Rename its keys by hand.")
    return changed, dict(places[place] for place in sorted(places))


def _find_former(
    node: yaml.Node | None, section: type[BaseModel] | None, places: dict[tuple[int, int], tuple[str, str]]
) -> None:
    """Where former names are below a node, by where they begin and end in the text."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _find_former(item, section, places)
    if not isinstance(node, yaml.MappingNode) or section is None:
        return
    kinds = [value.value for key, value in node.value if key.value == "kind"]
    for member in _siblings(section):
        if kinds and _tag(member) == kinds[0]:
            section = member
    known = former_names(section)
    for key, value in node.value:
        now = known.get(key.value, spelt(section, key.value))
        if key.value in known:
            places[key.start_mark.index, key.end_mark.index] = (key.value, now)
        values = former_values(section, now)
        if values and isinstance(value, yaml.SequenceNode):
            for item in value.value:
                if item.value in values:
                    places[item.start_mark.index, item.end_mark.index] = (item.value, values[item.value])
        field = section.model_fields.get(now)
        below = _models(field.annotation) if field is not None else []
        if below:
            _find_former(value, below[0], places)


def recipe_of(value: Mapping[str, Any], name: str = "recipe", folder: Path | None = None) -> Recipe:
    """A recipe from a mapping, as YAML would give it; relative paths are resolved against the working directory.

    Raises:
        RecipeError: A key or value is wrong; names it, what was found and what is allowed.
    """
    return _resolve_paths(_validated(value, name), folder or Path.cwd())


def _validated(value: Mapping[str, Any], name: str) -> Recipe:
    """A recipe from a mapping, with paths as they are. Errors as in :func:`recipe_of`."""
    try:
        return Recipe.model_validate(dict(value))
    except ValidationError as error:
        # The tree of keys, so that a mistake is explained as one in a file is.
        node = yaml.compose(yaml.safe_dump(json.loads(json.dumps(value, default=str))), Loader=yaml.SafeLoader)
        raise RecipeError(*_explain(error, node, name, lines=False)) from None


def with_overrides(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """A recipe with some values changed.

    Args:
        recipe: The recipe.
        overrides: Values by dotted keys, such as ``{"distill.epochs": 2}``; a section may be given whole.

    Raises:
        RecipeError: A key or value is wrong; names it, what was found and what is allowed.
    """
    tree = recipe.model_dump(mode="json")
    written: dict[tuple[str | int, ...], str] = {}
    for key, value in overrides.items():
        at: Any = tree
        *above, last = key.split(".")
        where: list[str | int] = []
        for part in above:
            if isinstance(at, dict) and at.get(part) is None:
                # A section that the recipe leaves out.
                at[part] = {}
            where.append(_place(at, part, key))
            at = at[where[-1]]
        # The recipe has today's names, and a key is not to be there by both.
        place = _place(at, _now(at, last), key)
        where.append(place)
        lost = next((name for keys, name in written.items() if list(keys[: len(where)]) == where), None)
        if lost is not None:
            raise RecipeError(
                f"override `{key}` takes the place of override `{lost}`.",
                "Leave one of them out; give a whole section before keys of it.",
            )
        written[tuple(where)] = key
        if place == "kind" and at.get("kind") not in (None, value):
            # What the former kind would be by itself was written by no one, and another kind may not have it.
            for name, default in _defaults(recipe, above).items():
                if at.get(name) == default:
                    del at[name]
        at[place] = value
    read = _places_of(recipe)
    # What was read has its place already, and the working directory may have a folder of a hub's name.
    return _resolve_paths(_validated(tree, "overrides"), Path.cwd(), read)


def _places_of(recipe: Recipe) -> set[str]:
    """Every path of a recipe, and every name that may be one."""
    found: set[str] = set()

    def noted(value: Path | str) -> Path | str:
        found.add(str(value))
        return value

    _with_places(recipe, noted)
    return found


def _defaults(recipe: Recipe, keys: Sequence[str]) -> dict[str, Any]:
    """What the keys of a section are where a recipe leaves them out, as JSON has it; nothing where there is no such section."""
    at: Any = recipe
    for key in keys:
        if isinstance(at, tuple):
            at = at[int(key)]
        else:
            at = at.get(key) if isinstance(at, Mapping) else getattr(at, key, None)
    if not isinstance(at, Section):
        return {}
    fields = type(at).model_fields.items()
    left_out = {name: field.get_default(call_default_factory=True) for name, field in fields if not field.is_required()}
    made = type(at).model_construct(**left_out)
    found = made.model_dump(mode="json", exclude={"kind"}, warnings=False)
    return dict(found)


def _now(at: Any, key: str) -> str:
    """What a key is called in a part of a recipe that has all its keys, where it is given by its former name."""
    if not isinstance(at, dict) or key in at:
        return key
    names = [british(key)]
    names += [former_names(section)[key] for section in _all_sections(Recipe) if key in former_names(section)]
    return next((name for name in names if name in at), key)


def name_now(key: str) -> str:
    """A dotted key as it is called today; records of stages have the names of the first release."""
    above, _, last = key.rpartition(".")
    now = next((known[last] for section in _all_sections(Recipe) if last in (known := former_names(section))), last)
    return f"{above}.{now}" if above else now


def _place(at: Any, part: str, key: str) -> str | int:
    """The key of a section, or the index of a list, that a part of an override's key means."""
    if isinstance(at, list) and part in map(str, range(len(at))):
        return int(part)
    if isinstance(at, dict):
        return part
    found = f"a list of {len(at)}" if isinstance(at, list) else "a value"
    raise RecipeError(
        f"override `{key}`: `{part}` is no part of what comes before it, which is {found}.",
        "Write dotted keys as the recipe has them, and numbers from 0 for the entries of a list: `corpus.sources.0.path`.",
    )


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors: ``# yaml-language-server: $schema=FILE`` in a recipe's first line."""
    schema = Recipe.model_json_schema()
    _sizes_too(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Stillroom recipe"}


def _sizes_too(value: Any) -> None:
    """Let a schema's integers be sizes such as ``60M``."""
    if isinstance(value, dict):
        for held in value.values():
            _sizes_too(held)
        if value.get("type") == "integer":
            size = {"type": "string", "pattern": "^[0-9][0-9_.]*([eE][+]?[0-9]+)? ?([KMGTkmgt](i?[Bb])?)?$"}
            kept = {
                key: value.pop(key)
                for key in list(value)
                if key not in ("description", "title", "default", "since", "former")
            }
            value["anyOf"] = [kept, size]
    elif isinstance(value, list):
        for held in value:
            _sizes_too(held)


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, with every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _resolve_paths(recipe: Recipe, folder: Path, resolved_already: Collection[str] = ()) -> Recipe:
    """Make relative paths absolute; names that are not there as a path stay names (of a hub, of a package)."""

    def resolved(value: Path | str) -> Path | str:
        if str(value) in resolved_already:
            return value
        if isinstance(value, Path):
            return (folder / value.expanduser()).absolute()
        if value.startswith(("./", "../", "~/")):
            return str((folder / Path(value).expanduser()).absolute())
        if not value.startswith("package:") and (folder / value).exists():
            return str((folder / value).absolute())
        return value

    return _with_places(recipe, resolved)


def carried_along(recipe: Recipe, before: Path, now: Path) -> Recipe:
    """A recipe whose absolute paths are no longer there, with what is found from one folder as they were from another.

    Args:
        recipe: A recipe with absolute paths.
        before: The absolute folder that a run was in when they were written.
        now: The absolute folder that it is in.
    """

    def found(value: Path | str) -> Path | str:
        moved = moved_path(Path(value), before, now)
        return value if moved is None else type(value)(moved)

    return _with_places(recipe, found)


def moved_path(path: Path, before: Path, now: Path) -> Path | None:
    """What a path is from ``now`` as it was from ``before``, where it is gone there and found here; otherwise None."""
    if not path.is_absolute() or _there(path):
        return None
    moved = Path(os.path.normpath(now / os.path.relpath(path, before)))
    return moved if _there(moved) else None


def _there(path: Path) -> bool:
    """Whether a path exists; of a pattern, the folder before its first wildcard."""
    return next(part for part in (path, *path.parents) if not glob.has_magic(str(part))).exists()


def _with_places(recipe: Recipe, place: Callable[[Path | str], Path | str]) -> Recipe:
    """A recipe with other paths, and other names that may be paths."""

    def fix(value: Any, key: str = "") -> Any:
        if isinstance(value, BaseModel):
            return value.model_copy(
                update={
                    name: fix(getattr(value, name), name)
                    for name, field in type(value).model_fields.items()
                    # A word of a fixed few is no path, though a folder may be called so.
                    if typing.get_origin(field.annotation) is not typing.Literal
                }
            )
        if isinstance(value, tuple):
            return tuple(fix(item, key) for item in value)
        if isinstance(value, dict) and key in ("licence_texts", "teachers"):
            return {name: fix(item) for name, item in value.items()}
        if isinstance(value, Path) or (isinstance(value, str) and key in PLACES):
            return place(value)
        return value

    fixed: dict[str, Any] = {}
    for key in type(recipe).model_fields:
        value = getattr(recipe, key)
        fixed[key] = value if key == "name" else fix(value, key)
    return recipe.model_copy(update=fixed)


def _explain(error: ValidationError, node: yaml.Node | None, name: str, lines: bool = True) -> tuple[str, str]:
    """What, where and what to do, of every mistake: the first as the message, the others below it."""
    # An unknown key often explains the missing one.
    mistakes = sorted(error.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")
    # A list whose entries are wrong counts only the right ones, and would be called too short as well.
    around = {mistake["loc"][:depth] for mistake in mistakes for depth in range(len(mistake["loc"]))}
    mistakes = [mistake for mistake in mistakes if mistake["type"] != "too_short" or mistake["loc"] not in around]
    explained = [_explain_one(mistake, node, name, lines) for mistake in mistakes]
    what, allowed = explained[0]
    others = [f"{place}\n    {todo}" for place, todo in explained[1:MOST_MISTAKES]]
    if len(explained) > MOST_MISTAKES:
        others.append(f"and {len(explained) - MOST_MISTAKES} more mistakes")
    return what, "\n  ".join([allowed, *others])


def _explain_one(mistake: Any, node: yaml.Node | None, name: str, lines: bool) -> tuple[str, str]:
    keys = list(mistake["loc"])
    line, path, section = _locate(node, keys, Recipe)
    place = f"{name}, line {line}: `{path}`" if lines else f"{name}: `{path}`"
    kind = mistake["type"]
    if kind == "extra_forbidden":
        key = str(keys[-1])
        fields = sorted(section.model_fields) if section is not None else []
        close = difflib.get_close_matches(key, fields, n=1)
        hint = f" Did you mean `{close[0]}`?" if close else ""
        if key in OTHER_UNITS and OTHER_UNITS[key][0] in fields:
            hint = " {1}".format(*OTHER_UNITS[key])
        return f"{place} is not a key of this section.{hint}", f"Allowed here: {', '.join(fields)}."
    if kind == "missing":
        return f"{place} is missing.", "Add it; `docs/recipe.md` describes it."
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        context = mistake.get("ctx", {})
        found = context.get("tag")
        expected = context.get("expected_tags") or ", ".join(_kinds(keys))
        return (
            f"{place}: " + (f"`kind: {found}` is not known." if found else "a `kind:` is needed."),
            f"Allowed: {expected}.".replace("'", ""),
        )
    found = mistake.get("input")
    if not keys:
        return f"{name}: its sections do not fit each other.", _remedy(mistake, None, keys)
    named = keys[:1] == ["teachers"] and keys[2:3] == ["endpoint"]
    if named or keys[:2] == ["teacher", "endpoint"] or (isinstance(found, str) and "://" in found):
        # What is there by mistake may be a key, and people paste messages into issues.
        return f"{place}: what is there cannot be used.", _remedy(mistake, "…", keys)
    return f"{place}: found {_found(found)}.", _remedy(mistake, found, keys)


def _as_yaml(value: Any) -> str:
    """A value in quotes that YAML reads as the same value: only double ones know escapes such as that of a tab."""
    if not isinstance(value, str) or "\\" not in repr(value):
        return repr(value)
    return f"'{value}'" if value.isprintable() and "'" not in value else json.dumps(value, ensure_ascii=False)


def _found(value: Any) -> str:
    """A value of a recipe as its file has it."""
    if value is None:
        return "null"
    text = value.isoformat() if isinstance(value, datetime.date) else _as_yaml(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _remedy(mistake: Any, found: Any, keys: list[int | str]) -> str:
    """What to write instead, as people say it."""
    kind = mistake["type"]
    if kind in ("tuple_type", "list_type"):
        return "Write a list: " + (f"[{found}]." if isinstance(found, (str, int, float)) else "[…].")
    if kind in ("model_type", "model_attributes_type", "dict_type", "mapping_type"):
        kinds = _kinds(keys)
        if kinds:
            example = f" For a path or a name: {{kind: {kinds[0]}, name: {found}}}." if "huggingface" in kinds else ""
            return f"Write keys and values below it, beginning with `kind:` (one of {', '.join(kinds)}).{example}"
        return "Write keys and values below it, one per line; `docs/recipe.md` names them."
    if kind == "string_pattern_mismatch" and keys == ["name"]:
        return "Write letters, digits, `.`, `_` and `-`, at most 64, beginning with a letter or digit; such as `my-handbook`."
    if kind in ("int_parsing", "int_type", "int_from_float"):
        return "Write an integer, such as 60000, 60K, 1e6 or 2GiB."
    if kind in ("float_parsing", "float_type"):
        return "Write a number, such as 0.001 or 1e-3."
    if kind in ("bool_parsing", "bool_type"):
        return "Write true or false."
    if kind in ("too_short", "string_too_short"):
        return "Write at least one." if mistake["ctx"]["min_length"] == 1 else _sentence(mistake["msg"])
    if kind in ("string_type", "path_type"):
        if isinstance(found, (list, dict)):
            return "Write one text, neither a list nor keys and values."
        return f'Write text; a number or date in quotes: "{found}".'
    if kind == "literal_error":
        return _sentence(LITERAL.sub(lambda one: _as_yaml(ast.literal_eval(one.group())), mistake["msg"]))
    if kind in ("timezone_aware", "datetime_parsing", "datetime_from_date_parsing"):
        return "Write a day, time and zone, such as 2026-11-24T00:00:00Z."
    return _sentence(mistake["msg"])


def _kinds(keys: list[int | str]) -> list[str]:
    """The kinds of the union at the end of a location."""
    names = [key for key in keys if isinstance(key, str)]
    for owner in _all_sections(Recipe):
        if names and names[-1] in owner.model_fields:
            tags = [_tag(model) for model in _models(owner.model_fields[names[-1]].annotation)]
            if all(tags):
                return [tag for tag in tags if tag]
    return []


def _sentence(message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    # A key or a URL is written as it is.
    word = message.partition(" ")[0]
    return f"{message[0].upper() if word.isalpha() else message[0]}{message[1:]}." if message else ""


def _locate(
    node: yaml.Node | None, keys: list[int | str], model: type[BaseModel]
) -> tuple[int, str, type[BaseModel] | None]:
    """Line, dotted path and section of an error's location; union tags in the location are not keys of the file."""
    line = node.start_mark.line + 1 if node is not None else 1
    path = ""
    section: type[BaseModel] | None = model
    for part in keys:
        if isinstance(node, yaml.MappingNode):
            names = {str(part)}
            if section is not None:
                names |= {former for former, now in former_names(section).items() if now == part}
                names |= {key.value for key, _ in node.value if spelt(section, key.value) == part}
            found = [(key, value) for key, value in node.value if key.value in names]
            candidates = (
                _models(section.model_fields[str(part)].annotation)
                if section is not None and str(part) in section.model_fields
                else []
            )
            tagged = [candidate for candidate in _siblings(section) if _tag(candidate) == part]
            if tagged and not found:
                section = tagged[0]
                continue
            written = found[0][0].value if found else str(part)
            path = f"{path}.{written}" if path else written
            if found:
                line = found[0][0].start_mark.line + 1
                node = found[0][1]
                section = candidates[0] if candidates else (section if part == keys[-1] else None)
            else:
                node = None
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
            path = f"{path}[{part}]"
        elif node is not None or isinstance(part, int):
            path = f"{path}[{part}]" if isinstance(part, int) else path
    return line, path, section


def _siblings(section: type[BaseModel] | None) -> list[type[BaseModel]]:
    """The other members of the union that a section belongs to."""
    if section is None:
        return []
    for owner in _all_sections(Recipe):
        for field in owner.model_fields.values():
            members = _models(field.annotation)
            if section in members:
                return members
    return [section]


def _all_sections(root: type[BaseModel]) -> list[type[BaseModel]]:
    """Every section under a root, each once, in the order of the recipe."""
    found = [root]
    for field in root.model_fields.values():
        for model in _models(field.annotation):
            found += [item for item in _all_sections(model) if item not in found]
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections inside an annotation such as ``tuple[Annotated[A | B, …], …]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) is not None or isinstance(annotation, types.UnionType):
        return [model for part in typing.get_args(annotation) for model in _models(part)]
    return []


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return typing.get_args(field.annotation)[0] if field is not None else None
