"""Readers by suffix: the files of this package, and what other packages name under ``stillroom.readers``."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

from stillroom.core.errors import EnvironmentProblem
from stillroom.core.plugins import plugins
from stillroom.corpus.readers.plain import PLAIN
from stillroom.corpus.readers.reader import Reader

GROUP = "stillroom.readers"


@functools.cache
def readers() -> dict[str, Reader]:
    """Every reader by the suffixes that it reads.

    Raises:
        EnvironmentProblem: An installed package names something else as a reader, it cannot be loaded, or two readers claim
            a suffix: which one read a corpus must not depend on what is installed.
    """
    found: dict[str, Reader] = {}
    owners: dict[str, str] = {}
    for owner, reader in (*_own(), *plugins(GROUP, Reader)):
        for suffix in reader.suffixes:
            if suffix in found:
                raise EnvironmentProblem(
                    f"{owner} reads `{suffix}`, and so does {owners[suffix][0].lower()}{owners[suffix][1:]}.",
                    "Uninstall one of the two.",
                )
            found[suffix], owners[suffix] = reader, owner
    return found


def _own() -> Iterator[tuple[str, Reader]]:
    package = importlib.import_module("stillroom.corpus.readers")
    for module in pkgutil.iter_modules(package.__path__):
        name = f"{package.__name__}.{module.name}"
        for reader in getattr(importlib.import_module(name), "READERS", ()):
            yield f"The module `{name}`", reader


def reader_of(path: Path) -> Reader:
    """The reader of a file, by its suffix in either case; plain text where there is none for it. Errors as in
    :func:`readers`.
    """
    return readers().get(path.suffix.lower(), PLAIN)
