"""What each stage takes: exact values for a fixed profile, and one table that names every stage's cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stillroom.models import compute
from stillroom.planning.plan import stage_costs
from stillroom.recipe.recipe import Recipe
from stillroom.runs.costs import Counts, Profile, StageCost
from stillroom.runs.stages import STAGES
from stillroom.students.shape import Shape
from stillroom.training.stage_cost import learning_rate_from, stage_cost, step_tokens, training_steps, with_holes

PROFILE = Profile(
    base_bytes=400_000_000,
    load_seconds=2.5,
    load_bytes=50_000_000,
    capture_rate=800.0,
    capture_bytes=90_000_000,
    bytes_per_position=21.5,
    cache_bytes=5000,
    exact_rate=1500.0,
    matrix_rate=40e9,
    token_seconds=0.001,
    step_seconds=0.04,
    token_bytes=30_000.0,
    train_bytes=600_000_000,
)
TEACHER = Shape(30, 1536, 3, 576, 49152)
BASE: dict[str, Any] = {
    "name": "golden",
    "corpus": {"sources": [{"kind": "text", "path": "text", "licence": "PSF-2.0"}]},
    "teacher": {"kind": "huggingface", "name": "teacher", "dtype": "float32"},
    "student": {"kind": "shrink", "layers": 20},
    "distill": {"batch_tokens": 2048, "learning_rate": 5e-4},
}
OLD_MEASURES = ["fidelity", "languages", "cost"]
"""Those of 0.1.0, whose plan the values below are."""
CASES: dict[str, dict[str, Any]] = {
    "layers": {},
    "target": {"student": {"kind": "shrink", "target": {"parameters": 60_000_000}}, "baseline": False},
    "width": {"student": {"kind": "shrink", "layers": 20, "heal": False, "importance": {"leave_one_out": True}}},
    "fresh": {"student": {"kind": "fresh", "config": {}}, "evaluate": {"speed_tokens": 0}},
    "export": {
        "export": {
            "gguf": ["F16", "Q4_K_M"],
            "choose": {"file_bytes": 10**8},
            "recover": {"steps": 10},
            "onnx": True,
        }
    },
    "batches": {
        "distill": BASE["distill"]
        | {"micro_batch_tokens": 1024, "epochs": 3, "evaluate_every": 50, "checkpoint_seconds": 5}
    },
}
EXPECTED: dict[str, dict[str, tuple[float, int, int]]] = {
    "layers": {
        "corpus": (3.0, 409_200_000, 3_680_000),
        "capture": (265.0, 1_030_000_000, 4_520_000),
        "shrink": (150.586, 2_350_371_712, 240_000_000),
        "distill": (298.038, 1_307_584_000, 2_160_000_000),
        "baseline": (298.038, 1_307_584_000, 2_160_000_000),
        "export": (26.18, 1_120_000_000, 0),
        "evaluate": (87.952, 1_682_984_832, 0),
    },
    "target": {
        "corpus": (3.0, 409_200_000, 3_680_000),
        "capture": (265.0, 1_030_000_000, 4_520_000),
        "shrink": (365.968, 2_350_371_712, 240_000_000),
        "distill": (298.038, 1_307_584_000, 2_160_000_000),
        "export": (26.18, 1_120_000_000, 0),
        "evaluate": (76.639, 1_682_984_832, 0),
    },
    "width": {
        "corpus": (3.0, 409_200_000, 3_680_000),
        "capture": (265.0, 1_030_000_000, 4_520_000),
        "shrink": (20.053, 1_831_326_592, 240_000_000),
        "distill": (298.038, 1_307_584_000, 2_160_000_000),
        "baseline": (298.038, 1_307_584_000, 2_160_000_000),
        "export": (26.18, 1_120_000_000, 0),
        "evaluate": (76.639, 1_682_984_832, 0),
    },
    "fresh": {
        "corpus": (3.0, 409_200_000, 3_680_000),
        "capture": (265.0, 1_030_000_000, 4_520_000),
        "shrink": (4.6, 1_831_326_592, 240_000_000),
        "distill": (298.038, 1_307_584_000, 2_160_000_000),
        "baseline": (298.038, 1_307_584_000, 2_160_000_000),
        "export": (26.18, 1_120_000_000, 0),
        "evaluate": (58.52, 1_682_984_832, 0),
    },
    "export": {
        "corpus": (3.0, 409_200_000, 3_680_000),
        "capture": (265.0, 1_030_000_000, 4_520_000),
        "shrink": (150.586, 2_350_371_712, 240_000_000),
        "distill": (298.038, 1_307_584_000, 2_160_000_000),
        "baseline": (298.038, 1_307_584_000, 2_160_000_000),
        "export": (118.585, 1_360_000_000, 242_600_000),
        "evaluate": (87.952, 1_682_984_832, 0),
    },
    "batches": {
        "corpus": (3.0, 409_200_000, 3_680_000),
        "capture": (265.0, 1_030_000_000, 4_520_000),
        "shrink": (150.586, 2_350_371_712, 240_000_000),
        "distill": (730.275, 1_273_792_000, 2_160_000_000),
        "baseline": (730.275, 1_273_792_000, 2_160_000_000),
        "export": (26.18, 1_120_000_000, 0),
        "evaluate": (87.952, 1_682_984_832, 0),
    },
}
"""Seconds, bytes of memory and bytes of disk, as the plan of 0.1.0 computed them; but a corpus of pieces has 16
bytes per token, and training a checkpoint at every
validation (three sizes of the weights beside the best ones), two checkpoints at most on the disk, and at most 2 % of the time
for others. Evaluation has one student in memory, beside the teacher."""


def counts(name: str, **changed: Any) -> Counts:
    """A student of 60M parameters from a teacher of 135M."""
    shapes = {"fresh": None, "target": Shape(20, 1024, 3, 576, 30000)}
    values: dict[str, Any] = {
        "teacher_parameters": 135_000_000,
        "student_parameters": 60_000_000,
        "untrimmed_parameters": 80_000_000,
        "teacher_shape": TEACHER,
        "student_shape": shapes.get(name, Shape(20, 1536, 3, 576, 30000)),
        "student_layers": 20,
        "train_tokens": 200_000,
        "text_tokens": 200_000,
        "validation_tokens": 10_000,
        "heldout_tokens": 20_000,
        "sequence_length": 512,
        "expansion": 1.1,
        "corpus_seconds": 3.0,
    }
    return Counts(**values | changed)


def test_samples_cost_by_prompts_tokens_and_models() -> None:
    def seconds(**sections: Any) -> float:
        recipe = BASE | {"evaluate": {"measures": OLD_MEASURES}} | sections
        return stage_costs(Recipe.model_validate(recipe), counts("layers"), PROFILE)["evaluate"].seconds

    def samples(baseline: bool = True, **config: int) -> float:
        evaluate = {"measures": [*OLD_MEASURES, "samples"], "samples": config}
        return seconds(evaluate=evaluate, baseline=baseline) - seconds(baseline=baseline)

    assert 0 < samples(False) < samples()
    assert samples(max_tokens=48) == pytest.approx(samples() / 2)
    # A batch reads the weights once: twice the prompts take less than twice the time.
    assert samples() < samples(prompts=40) < 2 * samples()


@pytest.mark.parametrize("name", CASES)
def test_costs_are_the_ones_of_the_first_release(name: str) -> None:
    evaluate = {"measures": OLD_MEASURES} | CASES[name].get("evaluate", {})
    recipe = Recipe.model_validate(BASE | CASES[name] | {"evaluate": evaluate})
    found = {
        stage: (round(cost.seconds, 3), round(cost.memory_bytes), round(cost.disk_bytes))
        for stage, cost in stage_costs(recipe, counts(name), PROFILE).items()
    }
    assert found == EXPECTED[name]
    assert list(found) == list(EXPECTED[name])


def test_the_repair_walks_as_fast_as_capturing_where_a_cpu_computes_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, fast = Recipe.model_validate(BASE), replace(PROFILE, capture_rate=6000.0)
    found = {}
    for rounded in (False, True):
        monkeypatch.setattr(compute, "fast_bfloat16", lambda _device, rounded=rounded: rounded)
        found[rounded] = stage_costs(recipe, counts("layers"), fast)["shrink"].seconds
    assert found[False] == stage_costs(recipe, counts("layers"), PROFILE)["shrink"].seconds
    assert 0.3 * found[False] < found[True] < found[False]


def test_text_known_by_heart_is_one_pass_over_its_passages() -> None:
    costs = [
        stage_costs(Recipe.model_validate(BASE | {"evaluate": {"measures": measures}}), counts("layers"), PROFILE)
        for measures in (OLD_MEASURES, [*OLD_MEASURES, "memorisation"])
    ]
    # 64 passages of 50 tokens and 8 more, by a student of 60 of the teacher's 135 million parameters.
    more = costs[1]["evaluate"].seconds - costs[0]["evaluate"].seconds
    assert more == pytest.approx(64 * 58 / PROFILE.exact_rate * counts("layers").ratio)


def test_a_plan_says_where_the_learning_rate_comes_from_and_what_a_sweep_costs() -> None:
    given = Recipe.model_validate(BASE)
    short = Recipe.model_validate(BASE | {"distill": {"batch_tokens": 2048}})
    long = Recipe.model_validate(BASE | {"distill": {"batch_tokens": 2048, "epochs": 10}})
    sizes = counts("layers")
    assert [learning_rate_from(recipe, sizes) for recipe in (given, short, long)] == ["given", "table", "sweep"]
    assert step_tokens(Recipe.model_validate(BASE | {"distill": {}}), sizes) == 1024
    same = Recipe.model_validate(BASE | {"distill": {"batch_tokens": 2048, "epochs": 10, "learning_rate": 5e-4}})
    swept, fixed = (stage_costs(recipe, sizes, PROFILE)["distill"].seconds for recipe in (long, same))
    assert 1.03 < swept / fixed < 1.06


def test_a_trimmed_vocabulary_costs_one_pass_of_the_teacher_over_the_validation_text() -> None:
    def costs(merges: bool = True, **changed: Any) -> dict[str, StageCost]:
        sizes = {key: changed.pop(key) for key in ("teacher_is_here",) if key in changed}
        return stage_costs(Recipe.model_validate(BASE | changed), counts("layers", merges_ids=merges, **sizes), PROFILE)

    plain, merged = costs(False), costs()
    more = merged["distill"].seconds - plain["distill"].seconds
    assert more == pytest.approx(PROFILE.load_seconds + 10_000 / PROFILE.capture_rate)
    assert merged["distill"].memory_bytes == max(plain["distill"].memory_bytes, plain["capture"].memory_bytes)
    assert merged["distill"].disk_bytes == plain["distill"].disk_bytes
    # The baseline reads what was measured.
    assert {name: cost for name, cost in merged.items() if name != "distill"} == {
        name: cost for name, cost in plain.items() if name != "distill"
    }
    # Whole distributions say the entropy themselves, and an endpoint cannot be asked for them.
    for changed in ({"capture": {"codec": {"kind": "hidden"}}}, {"teacher_is_here": False}):
        assert costs(**changed)["distill"].seconds == costs(False, **changed)["distill"].seconds
    # With rounds, both.
    rounds = {"distill": BASE["distill"] | {"rounds": {"count": 3}}}
    assert costs(**rounds)["distill"].seconds - costs(False, **rounds)["distill"].seconds == pytest.approx(more)


def test_files_of_the_export_are_part_of_its_disk() -> None:
    recipe = Recipe.model_validate(BASE)
    without = stage_costs(recipe, counts("layers"), PROFILE)["export"]
    files = stage_costs(recipe, counts("layers", gguf_bytes={"F16": 120, "Q8_0": 64}), PROFILE)["export"]
    assert files.disk_bytes - without.disk_bytes == 184


def test_a_student_with_only_another_vocabulary_is_not_repaired() -> None:
    def seconds(shape: Shape) -> float:
        return stage_costs(Recipe.model_validate(BASE), counts("layers", student_shape=shape), PROFILE)[
            "shrink"
        ].seconds

    assert seconds(Shape(30, 1536, 3, 576, 30000)) < seconds(Shape(30, 1536, 3, 512, 30000)) / 2


def test_another_teacher_that_writes_costs_by_its_own_size() -> None:
    recipe = Recipe.model_validate(BASE | {"write": {}})
    spec = next(spec for spec in STAGES if spec.name == "write")
    own = counts("layers")
    small, large = (
        spec.load_cost()(recipe, counts("layers", writer_parameters=times * own.teacher_parameters), PROFILE)
        for times in (1, 4)
    )
    assert small == spec.load_cost()(recipe, own, PROFILE)
    assert large.seconds == pytest.approx(4 * small.seconds)
    assert large.memory_bytes - small.memory_bytes == 3 * (own.teacher_bytes + PROFILE.load_bytes)


def test_every_stage_names_its_cost_beside_itself() -> None:
    for spec in STAGES:
        assert spec.cost.split(".")[0] == spec.function.split(".")[0]
        asked = BASE | {"write": {}} if spec.name == "write" else BASE
        cost = spec.load_cost()(Recipe.model_validate(asked), counts("layers"), PROFILE)
        assert isinstance(cost, StageCost)
        assert cost.seconds > 0
        assert cost.memory_bytes > PROFILE.base_bytes


def test_a_steps_size_follows_from_the_text_and_not_from_what_its_rows_repeat() -> None:
    # The long run of the docs: 590 rows of 540,619 tokens of text, seven passes.
    long = counts("layers", train_tokens=590 * 1024, text_tokens=540_619, sequence_length=1024)
    recipe = Recipe.model_validate(BASE | {"distill": {"epochs": 7}})
    assert (step_tokens(recipe, long), training_steps(recipe, long)) == (4096, 1036)


def test_longer_steps_come_to_hold_more_for_each_token_on_a_cpu() -> None:
    assert [round(with_holes(tokens), 1) for tokens in (256, 1024, 4096, 65_536)] == [1.5, 1.5, 4.9, 5.0]
    recipe = Recipe.model_validate(BASE | {"distill": {"batch_tokens": 4096}})
    sizes = counts("layers", expansion=1.0)
    first, later = (stage_cost(recipe, sizes, replace(PROFILE, holes=holes)).memory_bytes for holes in (False, True))
    assert later - first == pytest.approx(4096 * PROFILE.token_bytes * (with_holes(4096) - 1))
