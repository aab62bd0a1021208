"""Schemas from where schemas come from: zod 4, pydantic 2, the Berkeley leaderboard, and JSON Schema's own test suite."""

from __future__ import annotations

import datetime
import decimal
import enum
import ipaddress
import json
import re
import subprocess
import sys
import tarfile
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

from pydantic import AnyUrl, BaseModel, Field, TypeAdapter, create_model
from pydantic.errors import PydanticInvalidForJsonSchema

from stillroom.core import files

Named = tuple[str, Any]
SUITE = Path(".venvs/jsonschema-suite")
BFCL = Path(".venvs/bfcl")


class Colour(enum.Enum):
    """A choice."""

    RED = "red"
    BLUE = "blue"


class Point(BaseModel):
    """Two numbers."""

    x: int
    y: float = 0.0


class Cat(BaseModel):
    """One branch of a union that is told by a word."""

    kind: Literal["cat"]
    lives: int = Field(ge=0, le=9)


class Dog(BaseModel):
    """The other branch."""

    kind: Literal["dog"]
    name: str = Field(max_length=12)


class Tree(BaseModel):
    """A model that holds itself."""

    value: int
    children: list[Tree] = Field(default_factory=list, max_length=2)


TYPES: list[Any] = [
    str, int, float, bool, None, Any, dict, list, Colour, Point, Tree, datetime.date, datetime.datetime, datetime.time,
    datetime.timedelta, decimal.Decimal, uuid.UUID, ipaddress.IPv4Address, ipaddress.IPv6Address, AnyUrl, bytes, Path,
    Literal["a", "b"], Literal[1, "x", True], list[int], list[Point], dict[str, int], dict[Literal["a", "b"], int],
    dict[int, str], tuple[int, str], tuple[int, ...], set[int], frozenset[str], int | str, Point | None,
    Annotated[Cat | Dog, Field(discriminator="kind")], Annotated[str, Field(min_length=2, max_length=30)],
    Annotated[str, Field(pattern=r"^[a-z]+\d?$")], Annotated[str, Field(pattern=r"^\S+$", max_length=20)],
    Annotated[str, Field(pattern=r"^\w{2,5}$")],
    Annotated[int, Field(ge=3, le=90)], Annotated[int, Field(gt=-5, lt=5)], Annotated[int, Field(multiple_of=3)],
    Annotated[float, Field(ge=0.5, lt=2.5)], Annotated[list[int], Field(min_length=1, max_length=4)], re.Pattern,
]  # fmt: skip
WRAPPERS: list[tuple[str, Callable[[Any], Any]]] = [
    ("itself", lambda kind: kind),
    ("a field", lambda kind: create_model("Model", v=(kind, ...))),
    ("an optional field", lambda kind: create_model("Model", v=(Optional[kind], None), w=(bool, ...))),  # noqa: UP045
    ("a list", lambda kind: create_model("Model", v=(Annotated[list[kind], Field(max_length=3)], ...))),  # type: ignore[valid-type]
    ("a dictionary", lambda kind: create_model("Model", v=(dict[str, kind], ...))),  # type: ignore[valid-type]
    ("a union", lambda kind: create_model("Model", v=(kind | bool if kind is not None else Optional[bool], ...))),  # noqa: UP045
    ("a model within", lambda kind: create_model("Outer", m=(create_model("Model", v=(kind, ...)), ...))),
    ("a pair", lambda kind: create_model("Model", v=(tuple[kind, int], ...))),  # type: ignore[valid-type]
]


def pydantic_schemas() -> Iterator[Named]:
    """Each type of pydantic's in each wrapper, as it is written for answers and for what comes in."""
    for kind in TYPES:
        for name, wrap in WRAPPERS:
            for mode in ("validation", "serialization"):
                try:
                    schema = TypeAdapter(wrap(kind)).json_schema(mode=mode)
                except (PydanticInvalidForJsonSchema, TypeError):
                    continue
                yield f"{getattr(kind, '__name__', kind)} in {name}, {mode}", schema


def zod_schemas() -> Iterator[Named]:
    """Each type of zod's in each wrapper.

    Raises:
        subprocess.SubprocessError: npm cannot bring zod.
        OSError: There is no npm or node.
    """
    from benchmarks.clients import CLIENTS, HERE, prepared

    folder = prepared(next(client for client in CLIENTS if client.npm))
    words = ["node", str(HERE / "zod_schemas.mjs"), str(folder.resolve())]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300)
    for entry in json.loads(done.stdout):
        yield entry["name"], entry["schema"]


def brought(folder: Path, package: str, pattern: str, kind: str) -> Path:
    """The one file of a package, which pip brings into a folder where it is not there: whole, or not at all.

    Args:
        folder: Where it is kept.
        package: Name and version.
        pattern: Of the file's name.
        kind: pip's option for the other kind of file, which is not taken.

    Raises:
        subprocess.SubprocessError: pip cannot bring it.
    """
    if not any(folder.glob(pattern)):
        words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", kind, ":all:"]
        with files.replacing(folder) as beside:
            subprocess.run(
                [*words, "-d", str(beside), package], check=True, capture_output=True, text=True, timeout=300
            )
    return next(folder.glob(pattern))


def suite_schemas() -> Iterator[Named]:
    """JSON Schema's own test suite, drafts 7 and 2020-12, from the source package of `jsonschema`.

    Raises:
        subprocess.SubprocessError: pip cannot bring it.
    """
    with tarfile.open(brought(SUITE, "jsonschema==4.23.0", "jsonschema-*.tar.gz", "--no-binary")) as archive:
        for member in archive.getmembers():
            found = re.search(r"json/tests/(draft7|draft2020-12)/([\w-]+)\.json$", member.name)
            stream = archive.extractfile(member) if found else None
            if found is None or stream is None:
                continue
            for case in json.loads(stream.read()):
                yield f"{found[1]}/{found[2]}: {case['description']}", case["schema"]


def bfcl_functions() -> list[dict[str, Any]]:
    """The functions of the Berkeley leaderboard, out of its package.

    Raises:
        subprocess.SubprocessError: pip cannot bring it.
    """
    found: list[dict[str, Any]] = []
    with zipfile.ZipFile(brought(BFCL, "bfcl-eval==2026.3.23", "bfcl_eval-*.whl", "--only-binary")) as archive:
        for name in sorted(archive.namelist()):
            kind = re.fullmatch(r"bfcl_eval/data/BFCL_v\d+_(\w+)\.json", name)
            if kind is None or not any(word in kind[1] for word in ("simple", "multiple", "live")):
                continue
            for line in archive.read(name).decode().splitlines():
                entry = json.loads(line)
                found += [function for function in entry.get("function", []) if isinstance(function, dict)]
    return found


def bfcl_schemas() -> Iterator[Named]:
    """Parameters of the Berkeley leaderboard's functions. Errors as in :func:`bfcl_functions`."""
    from benchmarks.constrained import as_json_schema

    seen: set[str] = set()
    for function in bfcl_functions():
        schema = as_json_schema(function.get("parameters") or {"type": "object"})
        text = json.dumps(schema, sort_keys=True)
        if text not in seen:
            seen.add(text)
            yield str(function["name"]), schema


def every() -> tuple[dict[str, list[Named]], dict[str, str]]:
    """All schemas, by where they come from; and of those that are not available here, why."""
    found: dict[str, list[Named]] = {}
    left_out: dict[str, str] = {}
    sources = {"zod": zod_schemas, "pydantic": pydantic_schemas, "bfcl": bfcl_schemas, "suite": suite_schemas}
    for name, schemas in sources.items():
        try:
            found[name] = list(schemas())
        except (subprocess.SubprocessError, OSError) as error:
            found[name], left_out[name] = [], why(error)
    return found, left_out


def why(error: Exception) -> str:
    """The end of what a program said that failed, or the error's own words."""
    return str(getattr(error, "stderr", None) or error)[-500:]
