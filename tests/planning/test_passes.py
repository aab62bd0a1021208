"""Every pass that a stage makes is in the plan: what a run opens is compared with what its plan has counted."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from planning.test_stage_costs import PROFILE

from stillroom import pipeline
from stillroom.models.load import config_parameters
from stillroom.planning import plan
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.teacher import HuggingFaceTeacher
from stillroom.teachers import registry
from tests.conftest import OWN


@pytest.fixture
def settings(small_recipe: Any, original: Path, fp8: Path) -> dict[str, Any]:
    """A quantized teacher whose original is named, and a trimmed vocabulary: passes of which a stage has no other sign."""
    student = {"kind": "shrink", "layers": 1, "vocabulary": {"keep": "corpus", "size": 320}}
    found: dict[str, Any] = small_recipe(fp8, student=student, export={"gguf": []}, limits={"gpu_memory_bytes": "16GB"})
    found["teacher"]["original"] = str(original)
    found["evaluate"] |= {"measures": ["fidelity", "cost"]}
    found["corpus"] |= {"train_tokens": 256, "validation_tokens": 128, "heldout_tokens": 128}
    found["terms"]["decisions"] += [OWN | {"subject": "teacher.original"}]
    return found


def test_every_teacher_that_a_stage_opens_is_in_its_seconds_and_in_the_memory_of_the_gpu(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = {"capture_rate": math.inf, "exact_rate": math.inf, "matrix_rate": math.inf}

    def planned(load_seconds: float) -> dict[str, Any]:
        profile = dataclasses.replace(PROFILE, load_seconds=load_seconds, **endless)
        monkeypatch.setattr(plan, "_profile", lambda *_: profile)
        return plan.make_plan(Recipe.model_validate(settings), tmp_path)

    free, loads = planned(0.0), planned(1.0)
    seconds = {
        name: round(stage["seconds"] - free["stages"][name]["seconds"], 2) for name, stage in loads["stages"].items()
    }
    # By stage and model; on a CPU the evaluation may open one again that had to give way to a student.
    opened: dict[tuple[str, str], float] = {}
    stage = [""]
    real = registry.OPENERS["huggingface"]

    def noted(config: Any, device: Any, dtype: Any) -> Any:
        size = config_parameters(HuggingFaceTeacher(name=config.name))
        # On a GPU these stages compute in bfloat16.
        opened[stage[0], config.name] = size * (2 if stage[0] in ("capture", "distill") else dtype.itemsize)
        return real(config, device, dtype)

    def began(name: str, _event: Any) -> None:
        stage[0] = name

    monkeypatch.setitem(registry.OPENERS, "huggingface", noted)
    monkeypatch.setattr(plan, "begin_with_plan", lambda *_: None)
    pipeline.run(Recipe.model_validate(settings), tmp_path, quiet=True, on_stage=began)
    times = Counter(name for name, _ in opened)
    assert times == {"capture": 1, "shrink": 1, "distill": 1, "evaluate": 2}
    assert {name: took for name, took in seconds.items() if took > 0.5} == times
    for (name, _), weights in opened.items():
        assert loads["gpu"]["stages"][name] >= weights, name
