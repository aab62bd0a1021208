"""A tiny model that chats, made by the pipeline once for all tests of serving."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from models import tiny_model
from serve_support import Running, running

from stillroom.recipe.recipe import Recipe

OWN = {"kind": "own", "decided_by": "tests", "decided_at": "2026-11-24T00:00:00Z"}


@pytest.fixture(scope="session")
def tiny_run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that ended with a GGUF file."""
    from stillroom.pipeline import run

    folder = tmp_path_factory.mktemp("served")
    teacher = tiny_model("llama", folder / "teacher", layers=2)
    settings: dict[str, Any] = {
        "name": "tiny",
        "compute": {"device": "cpu", "threads": 1},
        "corpus": {
            "sources": [{"kind": "text", "path": str(text), "licence": "PSF-2.0"}],
            "sequence_length": 64,
            "train_tokens": 256,
            "validation_tokens": 128,
            "heldout_tokens": 128,
        },
        "teacher": {"kind": "huggingface", "name": str(teacher)},
        "student": {"kind": "shrink", "layers": 1},
        "distill": {"batch_tokens": 256, "precision": "float32"},
        "baseline": False,
        "export": {"gguf": ["F16"], "check_tokens": 64},
        "chat": {"prompt": None},
        "terms": {"decisions": [OWN | {"subject": "teacher"}, OWN | {"subject": "student"}]},
    }
    return run(Recipe.model_validate(settings), folder, quiet=True, until="export").path


@pytest.fixture(scope="session")
def tiny_gguf(tiny_run: Path) -> Path:
    """The run's GGUF file."""
    return next((tiny_run / "export").glob("*.gguf"))


@pytest.fixture(scope="module")
def server(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of the tiny model."""
    with running([tiny_gguf], tmp_path_factory.mktemp("server")) as made:
        yield made
