"""What every benchmark writes: figures, details, and the machine they were measured on."""

from __future__ import annotations

import datetime
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from stillroom.core import files
from stillroom.evaluation.intervals import student_t
from stillroom.reporting.summary import machine


def write(figures: dict[str, Any], details: Any, path: Path | None) -> None:
    """Print the result as JSON, and write it to a file if one is named."""
    import torch

    facts = machine() | {
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
