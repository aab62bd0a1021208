"""What every benchmark writes: figures, details, and the machine they were measured on."""

from __future__ import annotations

import datetime
import functools
import json
import math
import statistics
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import stillroom
from stillroom.core import files
from stillroom.evaluation.intervals import student_t
from stillroom.reporting.summary import machine


def write(figures: dict[str, Any], details: Any, path: Path | None) -> None:
    """Print the result as JSON, and write it to a file if one is named.

    Parts that other code or another machine made, and that a work file kept, are told as ``machine.earlier``.
    """
    import torch

    from stillroom.models.compute import fast_bfloat16

    facts = machine() | {
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "fast_bfloat16": fast_bfloat16("cpu"),
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    earlier = [found for kept in OPENED for found in kept.earlier()]
    if earlier:
        facts["earlier"] = earlier
        sys.stderr.write(
            f"{sum(len(one['parts']) for one in earlier)} parts were kept from other code or another machine.\n"
        )
    result = _told({"figures": figures, "details": details, "machine": facts})
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    if path is not None and path.is_dir():
        raise SystemExit(f"--json {path} is a folder: the result is not written there. It is all in standard output.")
    if path is not None:
        files.write_json(path, result)


def interval(values: list[float]) -> list[float] | None:
    """Student's 95 % interval of a mean; None of a single value."""
    if len(values) < 2:
        return None
    mean = statistics.mean(values)
    half = student_t(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return [mean - half, mean + half]


def _told(value: Any) -> Any:
    """The same with numbers that JSON does not have (infinite, not a number) as words."""
    if isinstance(value, dict):
        return {key: _told(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_told(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@functools.cache
def code_digest() -> str:
    """A digest of Stillroom's own files: code, and what it reads. As they were when it was first asked for."""
    root = Path(stillroom.__file__).parent
    paths = sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return files.digest_json([[str(path.relative_to(root)), files.digest_file(path)] for path in paths])


def made_by() -> dict[str, Any]:
    """What makes a result here: Stillroom's own files, and the machine."""
    facts = machine()
    return {name: facts[name] for name in ("processor", "cores", "python", "torch")} | {"code": code_digest()}


def read_kept(path: Path) -> dict[str, Any] | None:
    """What a work file holds; None where there is none yet.

    Raises:
        SystemExit: Something else is there, and stays as it is.
        NotJson: It is damaged.
    """
    if path.is_dir():
        raise SystemExit(f"{path} is a folder, where a benchmark keeps what is done in a file. Name a file as --work.")
    if not path.is_file():
        return None
    found = files.read_json(path)
    if not isinstance(found, dict):
        raise SystemExit(f"{path} is no work file of a benchmark. Name another as --work, or remove it.")
    return found


def write_kept(path: Path, value: Any) -> None:
    """Write a work file. NaN is in it as Python reads it again: a result that is none must not end a benchmark."""
    files.write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


OPENED: list[Kept] = []
"""All work files of this process."""


class Kept:
    """Finished parts of a benchmark by name, in a file, so that an interrupted one goes on.

    The file is written at once, so that no folder holds material of other sizes than its file says. With each part stands what
    code and which machine it is from.

    Args:
        path: The file; None keeps nothing.
        asked: What the results are of; a file with results of something else is refused.
    """

    def __init__(self, path: Path | None, asked: dict[str, Any]) -> None:
        self.path = path
        self._asked = json.loads(json.dumps(asked))  # as a file has it: a tuple is a list there
        self.cells: dict[str, dict[str, Any]] = {}
        self._from: dict[str, dict[str, Any]] = {}
        self._here = made_by()
        kept = None if path is None else read_kept(path)
        if kept is not None:
            if kept.get("asked") != self._asked:
                raise SystemExit(
                    f"{path} holds results of other sizes than these. Name another folder as --work, or remove this one whole."
                )
            self.cells, self._from = kept["cells"], kept.get("from", {})
        elif path is not None:
            self._write()
        OPENED.append(self)

    def add(self, key: str, cell: dict[str, Any]) -> None:
        """Keep a finished part."""
        self.cells[key], self._from[key] = cell, self._here
        if self.path is not None:
            self._write()

    def _write(self) -> None:
        assert self.path is not None
        write_kept(self.path, {"asked": self._asked, "cells": self.cells, "from": self._from})

    def earlier(self) -> list[dict[str, Any]]:
        """Where parts are from that this code on this machine did not make, with their names as ``parts``."""
        found: dict[str, dict[str, Any]] = {}
        for key in self.cells:
            origin = self._from.get(key, {})
            if origin != self._here:
                found.setdefault(json.dumps(origin, sort_keys=True), origin | {"parts": []})["parts"].append(key)
        return list(found.values())

    def cell(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A finished part, or one that is made now."""
        if key not in self.cells:
            self.add(key, make())
            sys.stderr.write(f"{key}: {self.cells[key]}\n")
        return self.cells[key]


def gather(
    parts: Iterable[tuple[str, dict[str, Any]]], names: Collection[str], details: dict[str, Any]
) -> dict[str, Any]:
    """The figures of a benchmark's parts as they finish; each part goes into ``details`` and to standard error, too.

    Args:
        parts: Names and results.
        names: Keys of results that are figures.
        details: Takes the results.
    """
    figures: dict[str, Any] = {}
    for name, found in parts:
        details[name] = found
        figures |= {key: found[key] for key in names if key in found}
        sys.stderr.write(f"{name}: {json.dumps(found)}\n")
    return figures
