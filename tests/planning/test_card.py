"""The plan knows the GPU: what fits, what `auto` chooses, what it costs; what does not fit is refused by name, unspent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_model

from stillroom import pipeline
from stillroom.core.errors import OutOfMemory
from stillroom.planning import pilot, plan
from stillroom.planning.card import Card, Model, card_plan, price_of
from stillroom.recipe.recipe import Recipe
from stillroom.training.memory import Sizes

TEACHER = Model(Sizes(36, 4096, 12_288, 4096, 1024, 151_936), 8_190_735_360)
STUDENT = Model(Sizes(26, 3072, 9216, 4096, 1024, 151_936), 3_959_854_592)
SETTINGS: dict[str, Any] = {
    "name": "card",
    "corpus": {"sources": [{"kind": "text", "path": "text", "licence": "PSF-2.0"}], "sequence_length": 2048},
    "teacher": {"kind": "huggingface", "name": "owner/model"},
}


def planned(gigabytes: float, **distill: Any) -> dict[str, Any]:
    distill = {"batch_tokens": 65_536, "micro_batch_tokens": 8192} | distill
    recipe = Recipe.model_validate(SETTINGS | {"distill": distill})
    return card_plan(recipe, Card("", int(gigabytes * 1e9)), TEACHER, STUDENT, 100_000_000, 2048)


def test_the_most_exact_layout_that_fits_is_chosen() -> None:
    assert planned(80)["state"] == 12
    assert planned(80)["gradient_checkpointing"]
    assert planned(140)["state"] == "plain"
    assert planned(100, state=8)["state"] == 8
    assert all(needed < 0.95 * 80e9 for needed in planned(80)["stages"].values())
    assert planned(80)["loss_chunk"] == 1024


def test_capture_takes_smaller_batches_where_they_do_not_fit() -> None:
    assert planned(140)["capture_batch_tokens"] == 65_536
    recipe = Recipe.model_validate(
        SETTINGS | {"capture": {"batch_tokens": 1_048_576}, "distill": {"micro_batch_tokens": 8192}}
    )
    found = card_plan(recipe, Card("", int(80e9)), TEACHER, STUDENT, 100_000_000, 2048)
    assert 2048 <= found["capture_batch_tokens"] < 1_048_576
    assert found["stages"]["capture"] < 0.95 * 80e9


@pytest.mark.parametrize(
    ("gigabytes", "distill", "words"),
    [
        (24, {}, "The stage `shrink`|Training"),
        (80, {"state": 16}, "Training 3.96 billion parameters"),
        (15, {}, "The stage `capture`|Training"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(gigabytes: float, distill: dict[str, Any], words: str) -> None:
    with pytest.raises(OutOfMemory, match=words):
        planned(gigabytes, **distill)


def test_it_is_refused_before_anything_is_spent(
    small_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", tmp_path / "teacher", layers=4)
    monkeypatch.setattr(pilot, "run_pilot", lambda *_: pytest.fail("the pilot ran"))
    recipe = Recipe.model_validate(small_recipe(model, limits={"gpu_memory_bytes": 10_000}))
    with pytest.raises(OutOfMemory, match="of the GPU's memory"):
        plan.make_plan(recipe, tmp_path)


def test_a_quiet_run_heeds_the_limit_of_the_gpu_however_small_its_models_are(small_recipe: Any, tmp_path: Path) -> None:
    model = tiny_model("llama", tmp_path / "teacher")
    with pytest.raises(OutOfMemory, match="of the GPU's memory"):
        pipeline.run(small_recipe(model, limits={"gpu_memory_bytes": 10_000}), tmp_path / "runs", quiet=True)


def test_several_teachers_are_counted_together_where_they_are_in_memory_together() -> None:
    def stages(*asked: Any) -> dict[str, float]:
        sources = [SETTINGS["corpus"]["sources"][0] | ({"teacher": each} if each else {}) for each in asked]
        settings = SETTINGS | {"corpus": SETTINGS["corpus"] | {"sources": sources}, "distill": {"state": 12}}
        teachers = {"code": {"kind": "huggingface", "name": "owner/code"}} if any(asked) else {}
        recipe = Recipe.model_validate(settings | {"teachers": teachers})
        others = {"code": STUDENT} if teachers else {}
        found: dict[str, float] = card_plan(recipe, Card("", int(300e9)), TEACHER, STUDENT, 10**8, 2048, others)[
            "stages"
        ]
        return found

    alone, routed, mixed = stages(None), stages(None, "code"), stages({"teacher": 1, "code": 1})
    assert routed["capture"] == alone["capture"]
    assert mixed["capture"] == alone["capture"] + 2 * STUDENT.parameters
    assert routed["evaluate"] == mixed["evaluate"] == alone["evaluate"] + 4 * STUDENT.parameters
    # A small teacher of one's own, and a large one for all of the text.
    recipe_of_large = stages("code")
    assert recipe_of_large["capture"] < alone["capture"]


def test_a_plan_says_what_the_gpu_holds_and_what_it_costs(
    small_recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model("llama", tmp_path / "teacher", layers=4)
    limits = {"gpu_memory_bytes": "16GB", "price_per_hour": 2.0}
    made = plan.make_plan(Recipe.model_validate(small_recipe(model, limits=limits)), tmp_path)
    assert set(made["gpu"]["stages"]) == {"capture", "shrink", "distill", "evaluate"}
    assert made["price"]["low"] == made["price"]["high"] == pytest.approx(2.0 * made["seconds"] / 3600)
    plan.show_plan(made)
    shown = capsys.readouterr().err
    assert "GPU       16.0 GB" in shown
    assert "price     about" in shown


def test_prices_come_from_the_recipe_or_from_the_table_with_its_source() -> None:
    recipe = Recipe.model_validate(SETTINGS)
    found = price_of(recipe, Card("NVIDIA H100 80GB HBM3", int(80e9)), 3600.0)
    assert found is not None
    assert (found["low"], found["high"]) == (2.35, 2.95)
    assert "2026" in found["source"]
    assert price_of(recipe, Card("another card", 1), 3600.0) is None
    assert price_of(recipe, None, 3600.0) is None
    own = Recipe.model_validate(SETTINGS | {"limits": {"price_per_hour": 0.5}})
    assert price_of(own, None, 7200.0) == {
        "low": 1.0,
        "high": 1.0,
        "per_hour": [0.5, 0.5],
        "source": "limits.price_per_hour",
    }
