"""A recipe with a tiny teacher, for tests that start several processes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file
from tiny_models import tiny_model

from stillroom.runs.run import Run


def recipe_in(folder: Path, documents: int = 40, layers: int = 4, hidden: int = 64) -> dict[str, Any]:
    """A recipe's values without its name; teacher and text are written into the folder."""
    tiny_model("llama", folder / "teacher", vocabulary_size=300, layers=layers, hidden=hidden)
    (folder / "text").mkdir()
    for number in range(documents):
        words = " ".join(f"{number}w{index}" for index in range(20 + number % 40))
        (folder / "text" / f"{number:03}.txt").write_text(words)
    decided = {"kind": "own", "decided_by": "me", "decided_at": "2026-01-01T00:00:00Z"}
    return {
        # Without it the order of the batches is each run's own secret.
        "seed": 7,
        "corpus": {
            "sources": [{"kind": "text", "path": str(folder / "text"), "licence": "CC0-1.0"}],
            "sequence_length": 64,
        },
        "teacher": {"kind": "huggingface", "name": str(folder / "teacher")},
        "student": {"kind": "shrink", "target": {"parameters": 90_000}},
        "capture": {"unit_tokens": 256},
        "distill": {"learning_rate": 1e-3, "precision": "float32", "checkpoint_seconds": 0},
        "terms": {"decisions": [{"subject": subject, **decided} for subject in ("teacher", "student")]},
    }


def children_with(word: str, pid: int | None = None) -> list[psutil.Process]:
    """Children of a process (this one, without a number), and theirs, whose command line has a word; one that ends meanwhile
    is none of them."""
    found = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any(word in part for part in process.cmdline()):
                    found.append(process)
    return found


def weights_difference(made: Run, alone: Run) -> float:
    """Relative norm of the difference of two trained students. A single entry whose gradient is next to nothing says less: what
    AdamW adds to it is of the rate's size, whatever the sign is made of.
    """
    weights = [load_file(each.path / "distill" / "model" / "model.safetensors") for each in (made, alone)]
    assert weights[0].keys() == weights[1].keys()
    apart, whole = (
        sum(float(values.double().square().sum()) for values in found)
        for found in ((weights[0][name] - tensor for name, tensor in weights[1].items()), weights[1].values())
    )
    found: float = (apart / whole) ** 0.5
    return found
