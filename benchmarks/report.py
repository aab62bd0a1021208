"""What every benchmark writes: figures, details, and the machine they were measured on."""

from __future__ import annotations

import datetime
import json
import math
import statistics
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from stillroom.core import files
from stillroom.evaluation.intervals import student_t
from stillroom.reporting.summary import machine


def write(figures: dict[str, Any], details: Any, path: Path | None) -> None:
    """Print the result as JSON, and write it to a file if one is named."""
    import torch

    from stillroom.models.compute import fast_bfloat16

    facts = machine() | {
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "fast_bfloat16": fast_bfloat16("cpu"),
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    result = {"figures": figures, "details": details, "machine": facts}
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    if path is not None:
        files.write_json(path, result)


def interval(values: list[float]) -> list[float] | None:
    """Student's 95 % interval of a mean; None of a single value."""
    if len(values) < 2:
        return None
    mean = statistics.mean(values)
    half = student_t(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return [mean - half, mean + half]


class Kept:
    """Finished parts of a benchmark by name, in a file, so that an interrupted one goes on.

    Args:
        path: The file; None keeps nothing.
        asked: What the results are of; a file with results of something else is refused.
    """

    def __init__(self, path: Path | None, asked: dict[str, Any]) -> None:
        self.path = path
        self._asked = json.loads(json.dumps(asked))  # as a file has it: a tuple is a list there
        self.cells: dict[str, dict[str, Any]] = {}
        if path is not None and path.is_file():
            kept = files.read_json(path)
            if kept["asked"] != self._asked:
                raise SystemExit(
                    f"{path} holds results of other sizes than these. Name another folder as --work, or remove it."
                )
            self.cells = kept["cells"]

    def add(self, key: str, cell: dict[str, Any]) -> None:
        """Keep a finished part."""
        self.cells[key] = cell
        if self.path is not None:
            files.write_json(self.path, {"asked": self._asked, "cells": self.cells})

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
