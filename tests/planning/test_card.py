"""The plan knows the GPU: what fits, what `auto` chooses, what it costs; what does not fit is refused by name, unspent."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_models import tiny_model

from stillroom import pipeline
from stillroom.core.errors import OutOfMemory
from stillroom.corpus.sequences import Sequences
from stillroom.planning import pilot, plan
from stillroom.planning.card import Card, Model, card_plan, entropy_bytes, original_bytes, price_of
from stillroom.planning.plan import _endpoint, teacher_shares
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.student import DenseStudent, ImportanceConfig, ShrinkStudent
from stillroom.students.importance import cut_short, few_tokens
from stillroom.students.shape import Shape
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


def test_a_teacher_in_sixteen_bits_is_stored_so_and_one_larger_than_the_card_in_the_host_s_memory() -> None:
    recipe = Recipe.model_validate(SETTINGS | {"distill": {"micro_batch_tokens": 8192, "state": 8}})

    def stages(gigabytes: float, teacher: Model) -> dict[str, Any]:
        return card_plan(recipe, Card("", int(gigabytes * 1e9)), teacher, STUDENT, 100_000_000, 2048)

    whole, half = stages(80, TEACHER), stages(80, dataclasses.replace(TEACHER, half=True))
    saved = whole["stages"]["shrink"] - half["stages"]["shrink"]
    # Two bytes of each parameter in the layers, less the layer that is at hand in float32.
    assert saved == pytest.approx(2 * (8.19e9 - 1.24e9) - 4 * 0.193e9, rel=0.01)
    assert half["layers_in_host_memory"] == []
    # Three times as deep: in bfloat16 alone it is larger than most of the card.
    large = dataclasses.replace(
        TEACHER, half=True, parameters=3 * TEACHER.parameters, sizes=dataclasses.replace(TEACHER.sizes, layers=108)
    )
    found = stages(160, large)
    assert found["layers_in_host_memory"] == []
    with pytest.raises(OutOfMemory, match="The stage `shrink`"):
        stages(60, large)
    existing = Recipe.model_validate(
        SETTINGS | {"distill": {"micro_batch_tokens": 8192, "state": 8}, "student": {"kind": "existing", "name": "a/b"}}
    )
    found = card_plan(existing, Card("", int(56e9)), large, STUDENT, 100_000_000, 2048)
    assert found["layers_in_host_memory"] == ["teacher (capture)", "teacher (evaluate)"]
    assert found["stages"]["capture"] < 20e9


def test_a_writer_is_counted_and_refused_by_name() -> None:
    recipe = Recipe.model_validate(SETTINGS | {"write": {}, "distill": {"micro_batch_tokens": 8192}})

    def plan_with(writer: Model | None) -> dict[str, Any]:
        return card_plan(recipe, Card("", int(80e9)), TEACHER, STUDENT, 10**8, 2048, writer=writer)

    found = plan_with(STUDENT)["stages"]
    cache = 2 * 2 * 26 * 1024 * 8 * (2000 / 4 + 64 + 256)
    assert found["write"] > 2 * STUDENT.parameters + cache
    assert "write" not in plan_with(None)["stages"]
    with pytest.raises(OutOfMemory, match="The stage `write`"):
        plan_with(dataclasses.replace(TEACHER, parameters=5 * TEACHER.parameters))


def test_passes_that_stages_begin_with_are_counted() -> None:
    recipe = Recipe.model_validate(SETTINGS | {"distill": {"micro_batch_tokens": 2048, "batch_tokens": 65_536}})
    small = dataclasses.replace(
        STUDENT, parameters=400_000_000, sizes=dataclasses.replace(STUDENT.sizes, layers=4, hidden=512)
    )

    def stages(asked: Recipe = recipe, gigabytes: float = 300, **more: Any) -> dict[str, float]:
        found: dict[str, float] = card_plan(asked, Card("", int(gigabytes * 1e9)), TEACHER, small, 10**8, 2048, **more)[
            "stages"
        ]
        return found

    plain = stages()
    # Of a small student the teacher's pass is the most of the stage.
    entropy = stages(measures_entropy=True)
    assert entropy["distill"] == entropy_bytes(TEACHER, 65_536, 2048) > plain["distill"]
    assert entropy | {"distill": 0.0} == plain | {"distill": 0.0}
    rounds = Recipe.model_validate(
        SETTINGS | {"distill": {"micro_batch_tokens": 2048, "batch_tokens": 65_536, "rounds": {"count": 3}}}
    )
    assert stages(rounds)["distill"] == plain["capture"]
    # One that is larger than all that is evaluated.
    large = dataclasses.replace(TEACHER, parameters=2 * TEACHER.parameters)
    evaluated = stages(originals={"code": (large, large)})["evaluate"]
    assert evaluated == round(original_bytes(large, large, 2048)) > plain["evaluate"]
    existing = Recipe.model_validate(SETTINGS | {"student": {"kind": "existing", "name": "a/b"}})
    found = card_plan(existing, Card("", int(60e9)), TEACHER, small, 10**8, 2048, originals={"code": (large, large)})
    assert {"code (evaluate)", "the original of code (evaluate)"} <= set(found["layers_in_host_memory"])


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


def test_each_endpoint_is_asked_for_the_text_that_is_learned_from_it() -> None:
    """By the sources that name it; padding does not count."""
    documents = torch.tensor([[0, 0, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2]], dtype=torch.int32)
    segments = torch.tensor([[0, 0, 1, 1, 1, -1], [0, 0, 0, 0, 0, -1]], dtype=torch.int32)
    ones = torch.ones(2, 6, dtype=torch.int32)
    train = Sequences(ones.long(), segments, ones.bool(), documents, ones, torch.tensor([0, 1, 2], dtype=torch.int32))
    source = SETTINGS["corpus"]["sources"][0]
    server = {
        "kind": "endpoint", "base_url": "http://127.0.0.1:1", "model": "m", "tokenizer": "t", "sends_text": True,
        "price": {"input": 2.0},
    }  # fmt: skip
    asked = [{}, {"teacher": "far"}, {"teacher": "far"}]
    settings = SETTINGS | {"corpus": {"sources": [source | each for each in asked]}, "teachers": {"far": server}}
    recipe = Recipe.model_validate(settings)
    assert teacher_shares(recipe, train) == pytest.approx({"teacher": 0.2, "far": 0.8})
    assert teacher_shares(Recipe.model_validate(SETTINGS), train) == {"teacher": 1.0}
    counts: Any = SimpleNamespace(train_tokens=1000, validation_tokens=100, heldout_tokens=100, sequence_length=10)
    config: Any = recipe.teachers["far"]
    found = _endpoint(config, counts, 0.8)
    assert (found["tokens_in"], found["requests"], found["tokens_out"]) == (960, 96, 96)
    assert found["cost"] == pytest.approx(960 * 2e-6)


def test_a_sample_that_is_small_for_the_repair_is_named() -> None:
    teacher = Shape(layers=36, channels=12_288, groups=8, hidden=4096, vocabulary=151_936)
    shape = dataclasses.replace(teacher, channels=9216, vocabulary=100_000)
    said = few_tokens(ShrinkStudent(), 10**8, teacher, shape)
    assert "10,240 tokens, 1.1 for each of a matrix's 9,216 inputs" in said
    wanted = int(said.partition("repair_tokens: ")[2].partition("`")[0])
    enough = ShrinkStudent(importance=ImportanceConfig(repair_tokens=wanted))
    assert few_tokens(enough, 10**8, teacher, shape) == ""
    assert few_tokens(enough, 12_288, teacher, shape) != "", "there is less text than that"
    assert few_tokens(ShrinkStudent(heal=False), 10**8, teacher, shape) == ""
    only_vocabulary = dataclasses.replace(teacher, vocabulary=100_000)
    assert few_tokens(ShrinkStudent(), 10**8, teacher, only_vocabulary) == ""


def test_a_sample_that_is_larger_than_the_text_is_named() -> None:
    assert cut_short(ImportanceConfig(), 1000) == [], "nobody asked for a number"
    # A recipe whose paths were completed has every key, as if it had been written.
    assert cut_short(ImportanceConfig(**ImportanceConfig().model_dump()), 1000) == []
    asked = ImportanceConfig(tokens=2000, repair_tokens=5000)
    assert [words.split("`")[1] for words in cut_short(asked, 3000)] == ["student.importance.repair_tokens"]
    assert len(cut_short(asked, 1000)) == 2
    assert cut_short(asked, 5000) == []


@pytest.mark.parametrize("student", [ShrinkStudent, DenseStudent])
def test_text_for_a_repair_that_is_left_out_is_refused(student: type[ShrinkStudent | DenseStudent]) -> None:
    with pytest.raises(ValidationError, match=r"repair_tokens.*would do nothing"):
        student(heal=False, importance=ImportanceConfig(repair_tokens=2000))


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
