"""Reads JSON from elsewhere: bounded, without duplicate keys, into closed models."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from stillroom.core.errors import VerificationFailed
from stillroom.core.strict_json import NotStrict, read_strict

LARGEST = 64 << 20
"""Bytes that a JSON document of a package or of a repository may have. A manifest of 100 GB of weights takes one."""


class Closed(BaseModel):
    """A document from elsewhere: an unknown key is an error, a value is what it says and nothing is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


Document = TypeVar("Document", bound=Closed)


def read_bytes(path: Path, limit: int = LARGEST) -> bytes:
    """Read a whole file that may not be a link, nor larger than ``limit`` bytes.

    Raises:
        VerificationFailed: It is missing, a link or too large.
    """
    try:
        data = _read_at_most(path, limit)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise VerificationFailed(
            f"{path} is missing or not an ordinary file.", "Get the whole package again."
        ) from None
    except OSError as error:
        if path.is_symlink():
            raise VerificationFailed(
                f"{path} is missing or not an ordinary file.", "Get the whole package again."
            ) from None
        raise VerificationFailed(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from None
    if data is None:
        raise VerificationFailed(f"{path} is larger than {limit:,} bytes.", "Such a file is not Stillroom's.")
    return data


def _read_at_most(path: Path, limit: int) -> bytes | None:
    """As :func:`.files.read_at_most`, of what was opened: a link is not followed, and a pipe in its place not waited for.

    Raises:
        ValueError: It is no file.
        OSError: It cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is not a file")
    with open(descriptor, "rb") as stream:
        data = stream.read(limit + 1)
    return data if len(data) <= limit else None


def parse_json(data: bytes, name: str) -> Any:
    """A JSON value. Duplicate keys, NaN, infinities, bad UTF-8 and excessive nesting are refused.

    Args:
        data: The document.
        name: What it is called in messages.

    Raises:
        VerificationFailed: Says what is wrong and where.
    """
    try:
        return read_strict(data, limit=LARGEST)
    except NotStrict as error:
        ours = "Such a file is not Stillroom's."
        what, advice = {
            "size": (f" is {error}", ours),
            "encoding": (f": {error}", "Get it again."),
            "syntax": (f": not JSON at line {error.line}, column {error.column}: {error.detail}", "Get it again."),
            "depth": (": nested too deep", ours),
        }.get(error.kind, (f": {str(error)[:200]}", ours))
        raise VerificationFailed(f"{name}{what}.", advice) from None


def parse(kind: type[Document], data: bytes, name: str) -> Document:
    """A document of a known kind. Errors as in :func:`parse_json`."""
    return validate(kind, parse_json(data, name), name)


def validate(kind: type[Document], value: Any, name: str) -> Document:
    """Check a value that was parsed before."""
    try:
        # Strict validation from JSON takes strings for dates and lists for tuples, and converts nothing else.
        return kind.model_validate_json(json.dumps(value, allow_nan=False))
    except ValidationError as error:
        mistake = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = "/".join(str(part) for part in mistake["loc"]) or "(the whole)"
        raise VerificationFailed(
            f"{name}: `{place[:200]}`: {mistake['msg'][:200]}.", "Such a file is not Stillroom's."
        ) from None
    except (ValueError, RecursionError, TypeError):
        raise VerificationFailed(f"{name}: not what it should hold.", "Such a file is not Stillroom's.") from None
