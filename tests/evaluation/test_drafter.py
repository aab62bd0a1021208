"""The metric `drafter`, and drafters in recipes and plans."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from benchmarks.faults import with_student
from stillroom.evaluation.metrics.drafter import METRIC, _tokens_per_pass
from stillroom.planning.plan import can_pay
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.student import ShrinkStudent


def test_the_teacher_accepts_all_of_its_own_tokens(world: Any) -> None:
    bench, teacher = world
    result = METRIC.measure(with_student(bench, teacher, teacher, "none"))
    student = result["models"]["student"]
    assert student["acceptance"]["value"] == pytest.approx(1, abs=1e-5)
    assert student["same_token"]["value"] == 1
    assert student["can_draft"] is True
    assert result["warnings"] == []
    assert student["cost_ratio"] == 1
    # At its own price nothing is won: two tokens per pass for the time of two.
    assert student["speed_up"]["value"] <= 1.01
    assert json.dumps(METRIC.summary(result))
    assert METRIC.sections(result)


def test_tokens_per_pass_follow_the_runs() -> None:
    same = np.asarray([True, True, False, True, False, False])
    # Drafts of 2: [T T]+1, [T F] -> 2 ... the passes give 3, 2 and 1 tokens.
    assert _tokens_per_pass([same], 2) == pytest.approx(6 / 3)
    assert _tokens_per_pass([same], 1) == pytest.approx(6 / 4)
    assert _tokens_per_pass([np.asarray([False] * 5)], 4) == 1
    assert _tokens_per_pass([np.asarray([True] * 9)], 8) == 9


def test_a_plan_says_whether_it_can_pay() -> None:
    half, tenth = can_pay(0.53), can_pay(0.1)
    assert half["speed_up"]["0.65"] < 1.1 < 1.6 < tenth["speed_up"]["0.65"]
    assert half["least_acceptance"] == 0.53


def test_a_drafter_keeps_the_vocabulary() -> None:
    made = ShrinkStudent.model_validate({"drafter": True, "layers": 2})
    assert made.vocabulary.keep == "all"
    with pytest.raises(ValidationError, match="whole vocabulary"):
        ShrinkStudent.model_validate({"drafter": True, "vocabulary": {"keep": "corpus"}})
    assert ShrinkStudent().vocabulary.keep == "corpus"


def test_another_tokenizer_cannot_draft(small_recipe: Any) -> None:
    student = {"kind": "existing", "name": "s", "tokenizer": "own"}
    with pytest.raises(ValidationError, match="drafter"):
        Recipe.model_validate(small_recipe("t", student=student | {"drafter": True}))
    with pytest.raises(ValidationError, match="drafter"):
        given = small_recipe("t", student=student)
        Recipe.model_validate(given | {"evaluate": {"measures": ["fidelity", "cost", "drafter"]}})
