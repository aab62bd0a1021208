"""Dense students of mixtures of experts: exact where they can be, repaired where not, and refused by name otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import tiny_sequences
from transformers import AutoModelForCausalLM

from benchmarks.tiny_configs import SMALL, SPECIAL, VOCABULARY, tiny_config, tiny_model
from benchmarks.tiny_files import exported, perturbed
from stillroom.core.errors import RecipeError, UnsupportedModel
from stillroom.models.families.registry import families
from stillroom.models.families.siblings import SIBLINGS, dense_config, sibling_of
from stillroom.recipe.student import DenseStudent
from stillroom.students.dense import Parts, densify, join, measure_use, require_same
from stillroom.students.experts import expected_loss
from stillroom.students.importance import Sample

EXTRA: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"norm_topk_prob": True},
    "dots1": {"norm_topk_prob": True, "routed_scaling_factor": 2.5, "sliding_window": 32},
    "hunyuan_v1_moe": {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
    "granitemoe": SPECIAL["granite"],
    "granitemoeshared": SPECIAL["granite"],
    "mixtral": {"sliding_window": 32},
}
"""Factors that are not one, windows shorter than the documents."""


def mixture(name: str, experts: int, chosen: int, **more: Any) -> Any:
    """A tiny random mixture."""
    from transformers import AutoConfig

    sibling = SIBLINGS[name]
    maker: Any = AutoConfig
    usual = maker.for_model(name).to_dict()
    said = {key: value for key, value in SMALL.items() if key in usual} | SPECIAL.get(name, {}) | EXTRA.get(name, {})
    counts = [
        key for key in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts") if key in usual
    ]
    said |= dict.fromkeys(counts, experts) | {sibling.chosen_key: chosen, "initializer_range": 0.1} | more
    model = tiny_model(maker.for_model(name, **said), AutoModelForCausalLM)
    generator = torch.Generator().manual_seed(5)
    for key, parameter in model.named_parameters():
        if "norm" in key:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.2
    return model.requires_grad_(requires_grad=False)


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(3, VOCABULARY, (2, 60), generator=torch.Generator().manual_seed(1))
    found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return found


def student(**more: Any) -> DenseStudent:
    return DenseStudent.model_validate({"importance": {"tokens": 1920}} | more)


TEXT = tiny_sequences(count=40, length=48, ids=VOCABULARY)


@pytest.mark.parametrize("name", sorted(SIBLINGS))
@torch.no_grad()
def test_where_all_experts_are_one_the_dense_family_is_the_mixture(name: str, tmp_path: Path) -> None:
    teacher = mixture(name, 2, 2)
    for key, parameter in teacher.named_parameters():
        if ".experts." in key:
            parameter[1] = parameter[0]
    made = densify(teacher, student(heal=False), TEXT)
    assert made.model.config.model_type == SIBLINGS[name].family
    expected, found = logits(teacher), logits(made.model)
    assert (expected - found).abs().max() < 1e-3 * expected.std()
    assert made.kl < 1e-6
    made.model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert torch.equal(logits(again), found)


@pytest.mark.parametrize("name", sorted(SIBLINGS))
@torch.no_grad()
def test_the_repair_is_kept_where_it_lowers_the_kl(name: str) -> None:
    teacher = mixture(name, 6, 2)
    made = densify(teacher, student(), TEXT)
    assert made.healed_kl is not None
    assert (made.unrepaired is not None) == (made.healed_kl < made.kl)
    if name != "hunyuan_v1_moe":  # of this random one the shared expert is nearly all
        assert made.healed_kl < made.kl
    parts = Parts.of(teacher.config)
    assert (parts.experts, parts.chosen) == (6, 2)
    assert made.model.config.intermediate_size == max(parts.shared + 2 * parts.width, parts.dense)
    for index in made.use.routed:
        assert len(made.kept[index]) == 2
        assert float(made.use.added[index].sum()) == pytest.approx(1)
        assert float(made.use.tokens[index].sum()) == 2 * float(Sample.of(TEXT, 1920).fit.tokens)


@torch.no_grad()
def test_a_file_of_a_dense_student_says_what_it_says(tmp_path: Path) -> None:
    made = densify(mixture("qwen3_moe", 6, 2), student(), TEXT)
    for parameter in made.model.parameters():
        parameter.copy_(parameter.half())
    assert exported(made.model, tmp_path)[-1] < 1e-4


@torch.no_grad()
def test_the_experts_that_add_most_are_joined() -> None:
    teacher = mixture("qwen3_moe", 6, 2)
    for layer in teacher.model.layers:
        layer.mlp.experts.down_proj[:4] *= 0.01
    sibling = sibling_of(teacher.config)
    use = measure_use(teacher, sibling, TEXT)
    model, kept = join(teacher, sibling, use, 2, 64)
    assert kept == [[4, 5]] * 4
    half = teacher.model.layers[1].mlp.experts.gate_up_proj[5]
    assert torch.equal(model.model.layers[1].mlp.gate_proj.weight[32:], half[:32])
    lost = expected_loss(use.added, 6)
    assert list(lost) == ["75%", "50%", "25%"]
    assert lost["75%"] < lost["50%"] < lost["25%"] < 1


@torch.no_grad()
def test_what_the_dense_family_computes_otherwise_is_refused() -> None:
    teacher = mixture("mixtral", 4, 2)
    sibling = sibling_of(teacher.config)
    model, _ = join(teacher, sibling, measure_use(teacher, sibling, TEXT), 2, 192)
    require_same(teacher, model, sibling, TEXT)
    blocks = [layer.mlp for layer in teacher.model.layers]
    model.model.layers[2].self_attn.scaling *= 1.5
    with pytest.raises(UnsupportedModel, match="`mistral` does not compute the other parts of this `mixtral`"):
        require_same(teacher, model, sibling, TEXT)
    assert [layer.mlp for layer in teacher.model.layers] == blocks


@pytest.mark.parametrize("name", ["olmoe", "qwen2_moe", "gpt_oss", "deepseek_v3", "ernie4_5_moe", "llama"])
def test_a_family_without_a_dense_sibling_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"`{name}` has no dense family"):
        Parts.of(tiny_config(name))


@pytest.mark.parametrize(
    ("width", "said"),
    [(50, "Give 32 or 64."), (16, "Give 32."), (400, "Give 192."), (224, "Give 192.")],
)
def test_widths_are_those_of_whole_experts(width: int, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Parts(6, 2, 32, 0, 0).kept(width)
    assert caught.value.todo == said


def test_a_dense_first_layer_bounds_the_width() -> None:
    parts = Parts(6, 2, 32, 32, 128)
    assert parts.kept(None) == (2, 128)
    assert parts.kept(160) == (4, 160)
    with pytest.raises(RecipeError, match="at least 128"):
        parts.kept(96)


def test_every_dense_family_can_be_exported_and_repaired() -> None:
    for sibling in SIBLINGS.values():
        family = families()[sibling.family]
        assert family.gguf is not None
        assert family.repairable


def saved(folder: Path) -> Path:
    """A tiny mixture with a tokenizer, as a teacher's folder."""
    from tiny_families import bpe_tokenizer

    words = bpe_tokenizer()
    mixture("qwen3_moe", 6, 2, vocab_size=len(words)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def test_from_a_recipe_to_a_student(text: Path, tmp_path: Path) -> None:
    from test_student_stage import made, opened, recipe

    from stillroom.planning.plan import make_plan

    teacher = saved(tmp_path / "teacher")
    asked = {"kind": "dense", "intermediate_size": 96, "importance": {"tokens": 512}, "vocabulary": {"size": 400}}
    plan = make_plan(recipe(text, teacher, asked), tmp_path / "runs", quiet=True)
    assert plan["student_note"].startswith(
        "A `qwen3` with an intermediate size of 96. 3 of 6 experts of each layer stay."
    )
    assert "Calibration tokens per expert: about 171." in plan["student_note"]
    folder, facts = made(tmp_path / "runs", text, teacher, asked)
    model, _, vocabulary = opened(folder)
    assert model.config.model_type == "qwen3"
    assert model.config.vocab_size == vocabulary.student_size <= 400
    assert facts["parameters"] == plan["student_parameters"] == sum(p.numel() for p in model.parameters())
    assert [len(kept) for kept in facts["experts"]["kept"].values()] == [3] * 4
    assert 0 < facts["experts"]["lost"] < 1
    assert (folder / "shrink" / "cut").is_dir() == facts["layers"]["healed"]
    with pytest.raises(RecipeError, match=r"`student.intermediate_size` is 90"):
        make_plan(recipe(text, teacher, asked | {"intermediate_size": 90}), tmp_path / "runs", quiet=True)


def test_a_plan_says_what_removed_experts_may_cost(text: Path, tmp_path: Path) -> None:
    from test_student_stage import made, recipe

    from stillroom.planning.plan import make_plan

    teacher = saved(tmp_path / "teacher")
    asked = {"kind": "shrink", "experts": 3, "importance": {"tokens": 256}, "vocabulary": {"keep": "all"}}
    note = make_plan(recipe(text, teacher, asked), tmp_path / "runs", quiet=True)["student_note"]
    assert note.startswith("3 of 6 experts of each layer stay. Calibration tokens per expert: about 85 (few: 300 ")
    assert "The least-squares repair does not apply: the family qwen3_moe" in note
    _, facts = made(tmp_path / "runs", text, teacher, asked)
    assert list(facts["experts"]["expected_loss"]) == ["75%", "50%", "25%"]
    assert facts["layers"]["note"] in note


def test_windows_go_over() -> None:
    config = tiny_config("qwen3_moe")
    config.use_sliding_window, config.sliding_window = True, 32
    dense: Any = dense_config(config, 64)
    assert dense.layer_types == ["sliding_attention"] * 4
    assert dense.sliding_window == 32
    assert perturbed(dense).config.sliding_window == 32
