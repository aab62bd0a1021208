"""What every benchmark writes: figures, details, and the machine they were measured on. Knows no figure."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

from stillroom import files
from stillroom.evaluate.summary import machine


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
