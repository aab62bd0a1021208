"""The base of every section of a recipe: closed and unchangeable; and names that other packages can add to."""

from __future__ import annotations

import contextlib
import contextvars
import difflib
import re
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema, to_jsonable_python

from stillroom.core.plugins import plugin_names

LARGEST_INTEGER = 2**63 - 1
"""Of 64 bits, as PyTorch, NumPy and files count."""
LEAST_FLOAT, LARGEST_FLOAT = 2.0**-126, (2 - 2.0**-23) * 2.0**127
"""What float32 tells from 0 and from infinity; models are computed in it."""
LEAST_CLIP = 1e-3
"""Least norm that gradients may be clipped to: what is left of each number is still more than AdamW's 1e-8."""


class Section(BaseModel):
    """A part of a recipe. An unknown key is an error; a value cannot be changed after it was read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, value: Any) -> Any:
        """Keys and values may have their former names; integers may be written as people write sizes (:func:`integer_of`);
        true and false are no numbers.
        """
        if not isinstance(value, dict):
            return value
        found = _renamed(cls, value)
        for name, held in found.items():
            field = cls.model_fields.get(name)
            if field is not None and isinstance(held, str) and _is_integer(field.annotation):
                number = integer_of(held)
                if number is not None:
                    found[name] = number
            elif field is not None and _takes_numbers(field.annotation) and not _text_instead(held, field.annotation):
                found[name] = _truth_as_words(held)
        return found

    @field_validator("*", mode="after")
    @classmethod
    def _computable(cls, value: Any) -> Any:
        """Every number is one that is computed with: an integer of 64 bits, or what float32 tells from 0 and infinity."""
        for number in _numbers_in(value):
            if isinstance(number, int) and abs(number) > LARGEST_INTEGER:
                raise ValueError(f"an integer should be at most {LARGEST_INTEGER:,}")
            if isinstance(number, float) and number and not LEAST_FLOAT <= abs(number) <= LARGEST_FLOAT:
                raise ValueError(f"a number should be 0, or between {LEAST_FLOAT:g} and {LARGEST_FLOAT:g}")
        return value


def _numbers_in(value: Any) -> Iterator[int | float]:
    """The numbers of a key's value; sections below it answer for their own."""
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _numbers_in(item)


FORMER = "former"
"""The key of a field's ``json_schema_extra`` that says what a recipe key was called: ``{"former": "ffn_width"}``. It is still
read, and stages' digests have it, so that a renamed key recomputes nothing."""
FORMER_VALUES = "former_values"
"""As ``FORMER``, of a field's values: ``{"former_values": {"ffn_width": "intermediate_size"}}``, former ones first."""

_former_names: contextvars.ContextVar[dict[str, str] | None] = contextvars.ContextVar("former_names", default=None)


@contextlib.contextmanager
def noting_former_names() -> Iterator[dict[str, str]]:
    """The former names that are read while the body runs, with what they are called now."""
    found: dict[str, str] = {}
    token = _former_names.set(found)
    try:
        yield found
    finally:
        _former_names.reset(token)


def former_names(section: type[BaseModel]) -> dict[str, str]:
    """What keys of a section were called, and are called now."""
    found = {}
    for name, field in section.model_fields.items():
        former = _extra(field).get(FORMER)
        if isinstance(former, str):
            found[former] = name
    return found


def former_values(section: type[BaseModel], key: str) -> dict[str, str]:
    """What values of a key were called, and are called now."""
    field = section.model_fields.get(key)
    found = _extra(field).get(FORMER_VALUES, {}) if field is not None else {}
    return dict(found) if isinstance(found, dict) else {}


def _extra(field: FieldInfo) -> dict[str, Any]:
    extra = field.json_schema_extra
    return extra if isinstance(extra, dict) else {}


def british(key: str) -> str:
    """A key as recipes spell it, where it may be in American spelling."""
    return key.replace("license", "licence")


def spelt(section: type[BaseModel], key: str) -> str:
    """A key as the section has it, where it is written in American spelling."""
    return key if key in section.model_fields or british(key) not in section.model_fields else british(key)


def _renamed(section: type[BaseModel], value: dict[Any, Any]) -> dict[Any, Any]:
    """A section's keys and values by today's names.

    Raises:
        ValueError: A key is given by both names.
    """
    known, noted = former_names(section), _former_names.get()
    found: dict[Any, Any] = {}
    for key, held in value.items():
        name = known.get(key, spelt(section, key)) if isinstance(key, str) else key
        if name != key and name in value:
            raise ValueError(f"`{key}` and `{name}` are the same key: give one of them")
        if key in known and noted is not None:
            noted[key] = name
        values = former_values(section, name) if isinstance(name, str) else {}
        if values and isinstance(held, (list, tuple)):
            if noted is not None:
                noted.update({item: values[item] for item in held if isinstance(item, str) and item in values})
            held = [values.get(item, item) if isinstance(item, str) else item for item in held]
        found[name] = held
    return found


_SIZE = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE]\+?[0-9]{1,2})?) ?(?:([KMGT])(i?B)?)?", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


def integer_of(text: str) -> int | None:
    """The integer that a size means: ``60M`` and ``50MB`` are powers of 1,000, ``2GiB`` of 1,024, ``1e6`` is what it says.

    None where it is no such size, or not an integer.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        return None
    digits, unit, binary = found.groups()
    base = 1024 if (binary or "").lower() == "ib" else 1000
    number = Fraction(digits.replace("_", "")) * base ** _POWERS.get((unit or "").lower(), 0)
    return int(number) if number.denominator == 1 else None


def _is_integer(annotation: Any) -> bool:
    """Whether a key takes integers, and no other numbers or text besides words of its own such as ``auto``."""
    origin, members = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _is_integer(members[0])
    if origin in (typing.Union, types.UnionType):
        kinds = [member for member in members if member is not type(None) and not _is_words(member)]
        return bool(kinds) and all(_is_integer(kind) for kind in kinds)
    return annotation is int


def _takes_numbers(annotation: Any) -> bool:
    """Whether a key takes numbers and neither true nor false, alone or in lists and mappings."""
    kinds = set(_kinds(annotation))
    return bool(kinds & {int, float}) and not kinds & {bool, Any}


def _text_instead(value: Any, annotation: Any) -> bool:
    """Whether a value is true or false for a key that also takes any text, which neither is."""
    return isinstance(value, bool) and str in (annotation, *typing.get_args(annotation))


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types inside an annotation; of a choice of words, the words' types."""
    members = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        members = members[:1]
    if _is_words(annotation):
        yield from map(type, members)
    elif members:
        for member in members:
            yield from _kinds(member)
    else:
        yield annotation


def _truth_as_words(value: Any) -> Any:
    """A value with true and false as the words that they are in a file: pydantic would read them as 1 and 0."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return [_truth_as_words(item) for item in value]
    if isinstance(value, dict):
        return {key: _truth_as_words(item) for key, item in value.items()}
    return value


def _is_words(annotation: Any) -> bool:
    """Whether a type is a choice of words."""
    return typing.get_origin(annotation) is typing.Literal


SINCE = "since"
"""The key of a field's ``json_schema_extra`` that says which release brought a recipe key: ``{"since": "0.2.0"}``."""


BEFORE = "before"
"""The key of a field's ``json_schema_extra`` that says what the default was before it became ``auto``: ``{"before": 512}``.
``auto`` means the same on every machine that an earlier release ran on."""


def for_digest(value: Any) -> Any:
    """A part of a recipe as stages' digests see it: its JSON, without new keys that have their default.

    A key that a later release brought (its field says so, see ``SINCE``) is left out while it has its default, so that
    what an earlier release finished stays finished. One whose default became ``auto`` is what it was (see ``BEFORE``).
    """
    if isinstance(value, BaseModel):
        found = {}
        whole = value.model_dump(mode="json")
        for name, field in type(value).model_fields.items():
            extra = _extra(field)
            held = getattr(value, name)
            key = str(extra.get(FORMER, name))
            if SINCE in extra and held == field.get_default(call_default_factory=True):
                continue
            if BEFORE in extra and held == field.get_default(call_default_factory=True):
                found[key] = extra[BEFORE]
                continue
            nested = isinstance(held, (BaseModel, tuple, list, dict))
            found[key] = for_digest(held) if nested else whole[name]
            if FORMER_VALUES in extra:
                former = {now: before for before, now in former_values(type(value), name).items()}
                found[key] = [former.get(item, item) for item in held]
        return found
    if isinstance(value, (tuple, list)):
        return [for_digest(item) for item in value]
    if isinstance(value, dict):
        return {str(key): for_digest(item) for key, item in value.items()}
    return to_jsonable_python(value)


@dataclass(frozen=True)
class NumberOrAuto:
    """Metadata of a type that takes a number or ``auto``: a mistake is one error that names both, not one per alternative.

    Attributes:
        words: What the number is, such as ``a number``.
    """

    words: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], CoreSchema]) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._read, handler(source))

    def _read(self, value: Any, read: Callable[[Any], Any]) -> Any:
        try:
            return read(value)
        except ValidationError as error:
            rules = [
                item["msg"]
                for item in error.errors(include_url=False)
                if item["type"].startswith(("greater_than", "less_than"))
            ]
            message = rules[0] if rules else f"Input should be {self.words} or 'auto'"
        raise ValueError(message.removeprefix("Input "))


@dataclass(frozen=True)
class OpenName:
    """Metadata of a string's type: one of some built-in names, or the name of an entry point of an installed package.

    A recipe that a run's folder keeps is read with the validation context ``{"kept": True}``: it was right when the run was
    made, and a finished run opens also where the package that it was trained with is not installed.

    Attributes:
        built_in: The built-in names.
        group: The group of the entry points.
    """

    built_in: tuple[str, ...]
    group: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], CoreSchema]) -> CoreSchema:
        return core_schema.with_info_after_validator_function(self._known, handler(source))

    def _known(self, value: str, info: ValidationInfo) -> str:
        if value in self.built_in or (info.context or {}).get("kept"):
            return value
        names = [*self.built_in, *(name for name in plugin_names(self.group) if name not in self.built_in)]
        if value in names:
            return value
        close = difflib.get_close_matches(value, names, n=1)
        hint = f"; did you mean '{close[0]}'" if close else ""
        raise ValueError(f"should be {', '.join(map(repr, names[:-1]))} or {names[-1]!r}{hint}")
