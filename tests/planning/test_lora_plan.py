"""A plan with LoRA counts what is trained, its memory and its checkpoints; what cannot be is refused, unspent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from planning.test_card import SETTINGS, STUDENT, TEACHER
from tiny_models import tiny_model

import stillroom
from stillroom import pipeline
from stillroom.core.errors import MissingDependency, OutOfMemory, RecipeError, UsageError
from stillroom.planning import needs, plan
from stillroom.planning.card import Card, card_plan
from stillroom.recipe.recipe import Recipe
from stillroom.training.memory import Sizes, choose_layout

ADAPTERS = 40_000_000


def on_card(gigabytes: float, adapters: int | None, **distill: Any) -> dict[str, Any]:
    asked = {"batch_tokens": 65_536, "micro_batch_tokens": 8192} | distill
    recipe = Recipe.model_validate(SETTINGS | {"distill": asked})
    return card_plan(recipe, Card("", int(gigabytes * 1e9)), TEACHER, STUDENT, 100_000_000, 2048, {}, adapters)


def test_a_card_holds_rounded_weights_and_states_of_adapters_alone() -> None:
    whole, lora = on_card(140, None), on_card(140, ADAPTERS, lora={})
    assert lora["state"] == "plain"
    assert whole["state"] == "plain"
    # 20 bytes for each parameter, or 2 and 20 for each of the adapters; the output matrix has a gradient or none.
    matrix = STUDENT.sizes.rows * STUDENT.sizes.hidden * 8
    saved = (20 - 2) * STUDENT.parameters - 20 * ADAPTERS
    if whole["gradient_checkpointing"] == lora["gradient_checkpointing"]:
        assert saved <= whole["stages"]["distill"] - lora["stages"]["distill"] <= saved + matrix
    else:
        assert not lora["gradient_checkpointing"]


def test_a_student_that_could_not_be_trained_whole_fits_with_adapters() -> None:
    sizes = Sizes(36, 4096, 12_288, 4096, 1024, 151_936)
    config = Recipe.model_validate(SETTINGS).distill
    whole = 8_190_735_360
    limit, chunk = int(24e9), 512
    options: dict[str, Any] = {"precise": False, "accumulates": True}
    with pytest.raises(OutOfMemory, match=r"Training 8\.19 billion parameters"):
        choose_layout(config, sizes, whole, 2048, chunk, limit, **options)
    assert choose_layout(config, sizes, ADAPTERS, 2048, chunk, limit, frozen=whole, **options) == ("plain", True)
    with pytest.raises(OutOfMemory, match=r"Training adapters of 8\.19 billion parameters"):
        choose_layout(config, sizes, ADAPTERS, 2048, chunk, int(10e9), frozen=whole, **options)


def test_the_plan_says_what_is_trained(small_recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher")
    settings = small_recipe(teacher)
    settings["distill"] |= {"lora": {"rank": 2, "targets": ["q_proj", "down_proj"]}}
    whole = plan.make_plan(Recipe.model_validate(small_recipe(teacher)), tmp_path)
    found = plan.make_plan(Recipe.model_validate(settings), tmp_path)
    # Two layers: queries 64 by 64, down 128 by 64.
    trained = 2 * (2 * (64 + 64) + 2 * (128 + 64))
    lora, student = found["lora"], found["student_parameters"]
    assert lora["trained_parameters"] == trained
    assert lora["modules"] == 4
    assert lora["frozen_bytes"] == 4 * student
    assert lora["trained_bytes"] == 16 * trained
    assert lora["whole_bytes"] == 16 * student
    assert "lora" not in whole
    assert found["stages"]["distill"]["disk_bytes"] == 4 * student + 8 * 4 * trained
    assert whole["stages"]["distill"]["disk_bytes"] == 9 * 4 * student
    tokens = whole["training_operations"] / (6 * student)
    assert found["training_operations"] == pytest.approx((4 * student + 6 * trained) * tokens)
    plan.show_plan(found)
    said = capsys.readouterr().err
    assert f"LoRA of rank 2: {trained:,} parameters are trained" in said


def test_a_target_that_is_not_there_is_refused_before_anything_is_captured(small_recipe: Any, tmp_path: Path) -> None:
    settings = small_recipe(tiny_model("llama", tmp_path / "teacher"))
    settings["distill"] |= {"lora": {"targets": ["c_attn"]}}
    with pytest.raises(RecipeError, match="this model has no layer `c_attn`"):
        stillroom.run(Recipe.model_validate(settings), tmp_path, quiet=True)
    assert not (tmp_path / "small" / "capture" / "stage.json").exists()


def test_many_processes_are_refused_before_anything_is_spent(small_recipe: Any, tmp_path: Path) -> None:
    from stillroom.cluster.cluster import Cluster

    settings = small_recipe(tiny_model("llama", tmp_path / "teacher"))
    settings["distill"] |= {"lora": {}}
    recipe = Recipe.model_validate(settings)
    with pytest.raises(UsageError, match="--workers 2 asks for more"):
        pipeline.run(recipe, tmp_path, quiet=True, cluster=Cluster(2))
    assert not (tmp_path / "small" / "corpus" / "stage.json").exists()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs.extras, "installed", lambda module: module != "peft")
    recipe = Recipe.model_validate(SETTINGS | {"distill": {"lora": {}}})
    missing = [need for need in needs.missing_needs(recipe) if need.extra == "lora"]
    assert [(need.stage, need.packages) for need in missing] == [("distill", ("peft",))]
    with pytest.raises(MissingDependency, match=r"peft \(`distill\.lora`\)"):
        needs.require_needs(missing)
    assert not [need for need in needs.missing_needs(Recipe.model_validate(SETTINGS)) if need.extra == "lora"]
