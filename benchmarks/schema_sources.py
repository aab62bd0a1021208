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
    """Each type of zod's in each wrapper; nothing where npm cannot bring zod."""
    from benchmarks.clients import CLIENTS, HERE, prepared

    try:
        folder = prepared(next(client for client in CLIENTS if client.npm))
        words = ["node", str(HERE / "zod_schemas.mjs"), str(folder.resolve())]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300)
    except (subprocess.SubprocessError, OSError):
        return
    for entry in json.loads(done.stdout):
        yield entry["name"], entry["schema"]


def suite_schemas() -> Iterator[Named]:
    """JSON Schema's own test suite, drafts 7 and 2020-12, from the source package of `jsonschema`."""
    if not list(SUITE.glob("jsonschema-*.tar.gz")):
        words = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            ":all:",
        ]
        try:
            subprocess.run(
                [*words, "-d", str(SUITE), "jsonschema==4.23.0"], check=True, capture_output=True, timeout=300
            )
        except (subprocess.SubprocessError, OSError):
            return
    with tarfile.open(next(SUITE.glob("jsonschema-*.tar.gz"))) as archive:
        for member in archive.getmembers():
            found = re.search(r"json/tests/(draft7|draft2020-12)/([\w-]+)\.json$", member.name)
            stream = archive.extractfile(member) if found else None
            if found is None or stream is None:
                continue
            for case in json.loads(stream.read()):
                yield f"{found[1]}/{found[2]}: {case['description']}", case["schema"]


def bring_bfcl() -> None:
    """The data of the Berkeley leaderboard, out of its package; nothing where pip cannot bring it."""
    if next(BFCL.rglob("BFCL_v*_*.json"), None) is not None:
        return
    words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", str(BFCL)]
    try:
        subprocess.run([*words, "bfcl-eval==2026.3.23"], check=True, capture_output=True, timeout=300)
    except (subprocess.SubprocessError, OSError):
        return
    with zipfile.ZipFile(next(BFCL.glob("bfcl_eval-*.whl"))) as archive:
        names = [name for name in archive.namelist() if re.fullmatch(r"bfcl_eval/data/BFCL_v\d+_\w+\.json", name)]
        archive.extractall(BFCL, names)


def bfcl_schemas() -> Iterator[Named]:
    """Parameters of the Berkeley leaderboard's functions."""
    from benchmarks.constrained import as_json_schema, bfcl_tools

    functions, _ = bfcl_tools()
    seen: set[str] = set()
    for function in functions:
        schema = as_json_schema(function.get("parameters") or {"type": "object"})
        text = json.dumps(schema, sort_keys=True)
        if text not in seen:
            seen.add(text)
            yield str(function["name"]), schema


def every() -> dict[str, list[Named]]:
    """All schemas, by where they come from."""
    return {
        "zod": list(zod_schemas()),
        "pydantic": list(pydantic_schemas()),
        "bfcl": list(bfcl_schemas()),
        "suite": list(suite_schemas()),
    }
