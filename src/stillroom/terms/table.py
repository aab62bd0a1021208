"""The table of terms: its rows, reading it, and finding the rows that a model's own words point to. Decides nothing."""

from __future__ import annotations

import datetime
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from stillroom.core import files
from stillroom.core.errors import RecipeError, StillroomError
from stillroom.terms.texts import marks_of, normal

PACKAGED = Path(__file__).parent / "terms_table.yaml"
SCHEMA = Path(__file__).parent / "terms_table.schema.json"
LARGEST = 1 << 20
"""Bytes that a table or a permission may have."""

Short = Annotated[str, StringConstraints(strip_whitespace=True, min_length=2, max_length=500)]
Id = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.+-]{0,63}$")]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class LicenceText(_Closed):
    """How a licence's text is known."""

    holds: Literal["Apache-2.0", "MIT"] | None = None
    """Stillroom holds the text itself, and every word of it is compared."""
    begins: tuple[Short, ...] = ()
    """Words that the text begins with."""
    sha256: tuple[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")], ...] = ()
    """Digests of the text where it is known; any other text of this name is then unknown."""


class Owed(_Closed):
    """What the student has to carry."""

    name_prefix: Short | None = None
    """What its name begins with."""
    notices: tuple[Short, ...] = ()
    """Sentences for the file NOTICE."""
    licences: tuple[Short, ...] = ()
    """Licences whose text goes along."""
    use_policies: tuple[Short, ...] = ()
    """Use policies whose text goes along."""


class Row(_Closed):
    """What one licence, or one service's terms, say of training other models on outputs."""

    id: Id
    title: Short
    kind: Literal["licence", "service", "text"]
    about: tuple[Short, ...] = ()
    """Models that are known to be under it, for the reader; nothing is found by these words."""
    checkpoints: tuple[Short, ...] = ()
    """Exact names on the hub."""
    services: tuple[Short, ...] = ()
    """What the names of a service's models begin with."""
    licences: tuple[Short, ...] = ()
    """How models and datasets state this licence."""
    text: LicenceText = LicenceText()
    weights_sha256: tuple[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")], ...] = ()
    """Digests of weights that it holds for."""
    outputs: Literal["allowed", "non_commercial", "forbidden"]
    """May another model be trained on the outputs?"""
    clause: Short
    source: Short
    read: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}(-\d{2})?$")]
    """When it was read: year and month, or the day."""
    confidence: Literal["primary", "second_hand"]
    """Whether the text itself was read, or what others say of it."""
    attribution: bool = False
    """Whether the source has to be named."""
    obligations: Owed = Owed()
    conditions: tuple[Short, ...] = ()

    def reason(self) -> str:
        """Clause, source, date and confidence in one sentence."""
        how = "text read" if self.confidence == "primary" else "second-hand"
        words = {
            "allowed": "training on outputs is allowed",
            "non_commercial": "training on outputs is for non-commercial use only",
            "forbidden": "training other models on outputs is forbidden",
        }[self.outputs]
        return f"{self.title}: {words}. {self.clause} ({self.source}, read {self.read}, {how})"


class Rows(_Closed):
    """A file of rows: the packaged table, or an operator's."""

    format: Literal[1]
    version: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+-]{0,31}$")]
    date: datetime.date
    rows: Annotated[tuple[Row, ...], Field(max_length=10_000)]


class Permission(_Closed):
    """An owner's written permission, as the operator recorded it."""

    format: Literal[1]
    granted_by: Short
    """Who granted it, in whose name."""
    granted_to: Short
    granted_on: datetime.date
    valid_until: datetime.date | None = None
    covers: Annotated[tuple[Short, ...], Field(min_length=1)]
    """Rows of the table (by id), or models by name."""
    scope: Short
    """What was permitted, in the owner's words."""
    purpose: Literal["commercial", "non_commercial"]
    descendants: bool = False
    """Whether students of the student are covered too."""
    text: Short
    """File with a copy of what was written, beside this one."""
    text_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Table:
    """One file of rows, ready to look things up in."""

    name: str
    sha256: str
    content: Rows

    def find(self, kind: str, value: str) -> list[Row]:
        """Rows for a statement of a kind: ``licence``, ``checkpoint``, ``origin``, ``service`` or ``weights``."""
        wanted = normal(value)
        found = []
        for row in self.content.rows:
            keys = {
                "licence": (*row.licences, row.id),
                "checkpoint": row.checkpoints,
                "origin": row.checkpoints,
                "weights": row.weights_sha256,
                "service": (*row.checkpoints, *row.licences, row.id),
            }[kind]
            exact = any(normal(key) == wanted for key in keys)
            # A bare name, that an endpoint is asked for or a card gives, may be a service's model.
            named = kind == "service" or (kind in ("checkpoint", "origin") and "/" not in value)
            begun = named and any(_begins(wanted, normal(prefix)) for prefix in row.services)
            if exact or begun:
                found.append(row)
        return found

    def recognise(self, text: str) -> Row | None:
        """The row whose title a licence's text begins with; the longest one where several fit."""
        marks = marks_of(text)
        fitting = [
            (len(normal(mark)), row)
            for row in self.content.rows
            for mark in row.text.begins
            if f" {normal(mark)} " in f" {marks} "
        ]
        return max(fitting, key=lambda item: item[0])[1] if fitting else None


def _begins(value: str, prefix: str) -> bool:
    """Whether a model's name begins with a service's, at the end of a word: ``gpt-4`` begins no ``gpt-40``."""
    rest = value.removeprefix(prefix)
    return value.startswith(prefix) and not (rest and rest[0].isalnum() and prefix[-1].isdigit() == rest[0].isdigit())


@functools.cache
def packaged_table() -> Table:
    """The table that this release carries."""
    return read_table(PACKAGED)


def read_table(path: Path) -> Table:
    """Read a table of terms.

    Raises:
        RecipeError: The file is missing or not such a table; names the file and the key.
    """
    content, digest = _read(path, Rows)
    ids = [row.id for row in content.rows]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise RecipeError(f"{path}: the row `{twice[0]}` is there twice.", "Keep one of them.")
    return Table(path.name, digest, content)


@dataclass(frozen=True)
class Permitted:
    """A permission that was read, with digests of itself and of the text that it copies."""

    file: str
    sha256: str
    content: Permission
    words: str


def read_permission(path: Path) -> Permitted:
    """Read a written permission and the copy of its text.

    Raises:
        RecipeError: One of both is missing, is not what it should be, or the copy is not the one that was recorded.
    """
    content, digest = _read(path, Permission)
    copy = path.parent / content.text
    if copy.name != content.text or copy.is_symlink():
        raise RecipeError(f"{path}: `text` names a file beside it, found {content.text!r}.", "Put the copy beside it.")
    words = read_licence(copy)
    if files.digest_file(copy) != content.text_sha256:
        raise RecipeError(
            f"{copy}: not the text that {path.name} records (its SHA-256 differs).",
            "Supply the text as it was received, or record the permission again.",
        )
    return Permitted(path.name, digest, content, words)


def read_licence(path: Path) -> str:
    """The text of a licence that an operator or a model supplies.

    Raises:
        RecipeError: It is missing, empty, too large or not text.
    """
    data = _bytes(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 at byte {error.start}.", "Save it as UTF-8 text.") from None
    if len(text.split()) < 3:
        raise RecipeError(f"{path}: this is not the text of a licence.", "Supply the whole text.")
    return text


def _bytes(path: Path) -> bytes:
    try:
        data = files.read_at_most(path, LARGEST)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}.", "Check the path.") from None
    if data is None:
        raise RecipeError(f"{path} is larger than {LARGEST:,} bytes.", "Supply the text alone.")
    return data


Model = TypeVar("Model", bound=BaseModel)


def _read(path: Path, model: type[Model]) -> tuple[Model, str]:
    data = _bytes(path)
    return parse_terms(data, model, str(path)), files.digest_bytes(data)


def parse_terms(data: bytes, model: type[Model], name: str) -> Model:
    """Read YAML of a closed model: a table (:class:`Rows`) or a permission (:class:`Permission`).

    Raises:
        RecipeError: Names the file and the key.
    """
    from stillroom.core.strict_yaml import load_yaml

    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{name}: not UTF-8 at byte {error.start}.", "Save the file as UTF-8.") from None
    _, value = load_yaml(text, name)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        mistake = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in mistake["loc"]) or "the whole"
        message = re.sub(r"\s+", " ", mistake["msg"])[:200]
        raise RecipeError(f"{name}: `{place[:200]}`: {message}.", "docs/terms.md describes every key.") from None
    except StillroomError:
        raise
    except (ValueError, TypeError, RecursionError, OverflowError):
        raise RecipeError(f"{name}: not a table of terms.", "docs/terms.md shows one.") from None


def schema() -> dict[str, Any]:
    """The JSON schema of a table."""
    return Rows.model_json_schema() | {"$schema": "https://json-schema.org/draft/2020-12/schema"}
