"""What several tests share: a folder of text, and recipes of small runs."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from stillroom.switch import Places, Switch

# Another program on the same cores makes anything slow: no test asserts a time.
# The same examples in every run, so that what fails is the change; `make test-all` draws new ones.
settings.register_profile("same", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("new", settings.get_profile("same"), derandomize=False)
settings.load_profile(os.environ.get("STILLROOM_EXAMPLES", "same"))

OWN = {"kind": "own", "decided_by": "Stillroom's tests", "decided_at": "2026-11-24T00:00:00Z"}
"""A decision about models that the tests write themselves, for a recipe's section `terms`."""

LONGEST = (
    "test_devices.py",
    "test_path.py",
    "test_kill.py",
    "test_api_types.py",
    "test_plan.py",
    "test_errors.py",
    "test_gpu.py",
    "test_group.py",
    "test_guide_family.py",
    "test_serve_switch.py",
)
"""Files that take longest, in tests' seconds: they begin first, so that no worker is alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others in the order of their paths; ``make test`` keeps it (--no-loadscope-reorder)."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="module", autouse=True)
def what_was_imported_stays() -> None:
    """Runs look for garbage between their models, half a second each among all that PyTorch and transformers make when they are
    imported, where a test's whole run takes a few: what is there before a file is left out."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def files_outlive_no_power_cut() -> Iterator[None]:
    """A run waits for its disk some hundred times, for a loss of power that no test makes: here it does not. Processes that
    tests start still do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # says the same of what is no open file
        yield


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short documents."""
    from pydoc_data.topics import topics

    folder = tmp_path_factory.mktemp("text")
    for number, (_, content) in enumerate(sorted(topics.items())[:40]):
        (folder / f"{number:02}.txt").write_text(content[:800], encoding="utf-8")
    return folder


@pytest.fixture
def no_downloads(tmp_path: Path) -> Switch:
    """A switch of the test's own that blocks downloads."""
    own = Switch(Places.under(tmp_path / "switch"))
    own.set_feature("downloads", "blocked")
    return own


@pytest.fixture(scope="session")
def small_recipe(text: Path) -> Any:
    """Makes the settings of a small run: ``small_recipe(teacher, **sections)``."""

    def make(teacher: Path | str, /, **sections: Any) -> dict[str, Any]:
        return {
            "name": "small",
            "seed": 0,
            "compute": {"device": "cpu", "threads": 1},
            "corpus": {
                "sources": [{"kind": "text", "path": str(text), "licence": "PSF-2.0"}],
                "sequence_length": 64,
                "train_tokens": 2048,
                "validation_tokens": 128,
                "heldout_tokens": 512,
            },
            "teacher": {"kind": "huggingface", "name": str(teacher)},
            "student": {"kind": "shrink", "layers": 2},
            "distill": {"batch_tokens": 256, "learning_rate": 1e-3, "precision": "float32"},
            "evaluate": {"speed_tokens": 4, "bootstrap_samples": 200},
            "export": {"check_tokens": 64},
            "chat": {"prompt": None},
            "terms": {"decisions": [OWN | {"subject": "teacher"}, OWN | {"subject": "student"}]},
        } | sections

    return make


@pytest.fixture
def every_stage(small_recipe: Any, tmp_path: Path) -> dict[str, Any]:
    """The settings of a brief run with every stage, whose teacher is in the test's own folder."""
    from tiny_models import tiny_model

    settings: dict[str, Any] = small_recipe(
        tiny_model("llama", tmp_path / "teacher", layers=3), seed=1, export={"gguf": ["F16"], "check_tokens": 16}
    )
    settings["corpus"] |= {"train_tokens": 1024, "heldout_tokens": 128}
    settings["evaluate"] = {"measures": ["fidelity", "cost"], "speed_tokens": 0, "bootstrap_samples": 100}
    return settings


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in floats, which a test only reads."""
    from tiny_models import tiny_model

    return tiny_model("llama", tmp_path_factory.mktemp("models") / "first", layers=2)


@pytest.fixture
def fp8(original: Path, tmp_path: Path) -> Path:
    """The original with the matrices of its layers in FP8, one scale for each block; the test's own."""
    from tiny_models import quantized_fp8

    return quantized_fp8(original, tmp_path / "fp8")


@pytest.fixture(scope="session")
def tiny_run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that ended with a GGUF file."""
    from tiny_models import tiny_model

    from stillroom.pipeline import run
    from stillroom.recipe.recipe import Recipe

    folder = tmp_path_factory.mktemp("served")
    teacher = tiny_model("llama", folder / "teacher", layers=2)
    settings: dict[str, Any] = {
        "name": "tiny",
        "seed": 1,  # What a model says must not differ from one run of the tests to the next.
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
