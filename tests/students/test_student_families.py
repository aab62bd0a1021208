"""Every family that can be pruned along some axes only, and every mixture of experts: what is removed was not needed, what
stays is as it was, and what a family lacks is refused by name.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import tiny_sequences
from transformers import AutoModelForCausalLM

from benchmarks.tiny_configs import SMALL, SPECIAL, VOCABULARY, tiny_config, tiny_model
from stillroom.core.errors import RecipeError
from stillroom.models.families.family import cut_config
from stillroom.models.families.registry import families
from stillroom.students.importance import Sample
from stillroom.students.measured import Measured
from stillroom.students.narrow import Widths, narrow
from stillroom.students.shape import Anatomy, shaped_config
from stillroom.students.shrink import described, shrink

PARTLY = sorted(name for name, family in families().items() if family.cuts and not family.uniform)
MIXTURES = [name for name in PARTLY if "experts" in families()[name].cuts]
GATED = [name for name in PARTLY if "channels" in families()[name].cuts]
EXPERTS, KEPT = 8, [0, 2, 3, 4, 6, 7]
"""Experts of the tiny mixtures, and those that stay: in groups of two, three of each four."""


@pytest.fixture(autouse=True)
def eight_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("num_experts", "num_local_experts", "n_routed_experts"):
        monkeypatch.setitem(SMALL, key, EXPERTS)
    monkeypatch.setitem(SPECIAL, "ernie4_5_moe", SPECIAL["ernie4_5_moe"] | {"moe_num_experts": EXPERTS})


def random_model(name: str) -> Any:
    model = tiny_model(tiny_config(name), AutoModelForCausalLM)
    model.tie_weights()
    model.get_input_embeddings().weight.data[model.config.pad_token_id] = 0  # as some families load it
    for key, parameter in model.named_parameters():
        if key.endswith("correction_bias"):
            parameter.data.zero_()
    return model.requires_grad_(requires_grad=False)


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(3, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return found


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() < 1e-4 * one.std())


def reloaded(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_that_are_never_chosen_can_go(name: str, tmp_path: Path) -> None:
    model, family = random_model(name), families()[name]
    assert family.experts(model.config) == EXPERTS
    gone = [index for index in range(EXPERTS) if index not in KEPT]
    # One entry of the stream is large and positive, and the routers' rows of what goes see it alone, negatively.
    model.get_input_embeddings().weight[:, 0] = 20.0
    routers = 0
    for key, parameter in model.named_parameters():
        router = "shared" not in key and key.endswith(("gate.weight", "router.weight", "gate.wg.weight"))
        if router and parameter.shape[0] == EXPERTS:
            parameter[gone] = 0
            parameter[gone, 0] = -50.0
            routers += 1
    assert routers
    kept = [torch.tensor(KEPT)] * model.config.num_hidden_layers
    smaller = narrow(model, family, Widths(experts=kept))
    assert family.experts(smaller.config) == len(KEPT)
    before = logits(model)
    assert same(before, logits(smaller))
    assert torch.equal(logits(smaller), logits(reloaded(smaller, tmp_path)))
    # Others would have been needed.
    wrong = [torch.tensor([index for index in range(EXPERTS) if index not in (3, 7)])] * len(kept)
    assert not same(before, logits(narrow(model, family, Widths(experts=wrong))))


@pytest.mark.parametrize("name", GATED)
def test_dead_channels_can_go(name: str, tmp_path: Path) -> None:
    from stillroom.models.families.family import matrix_of

    model, family = random_model(name), families()[name]
    channels = family.channels(model.config)
    generator = torch.Generator().manual_seed(3)
    layers = family.layers(model)
    kept = [torch.randperm(channels, generator=generator)[:64].sort().values for _ in layers]
    for layer, stays in zip(layers, kept, strict=True):
        gone = torch.ones(channels, dtype=torch.bool)
        gone[stays] = False
        matrix_of(family.feed_forward_matrix(layer))[:, gone] = 0
    before = logits(model)
    state = torch.get_rng_state()
    smaller = narrow(model, family, Widths(channels=kept))
    assert torch.equal(state, torch.get_rng_state()), "weights were drawn, though all come from the model"
    assert family.channels(smaller.config) == 64
    assert same(before, logits(smaller))
    assert torch.equal(logits(smaller), logits(reloaded(smaller, tmp_path)))


@pytest.mark.parametrize("name", PARTLY)
def test_dead_layers_can_go(name: str, tmp_path: Path) -> None:
    model, family = random_model(name), families()[name]
    count = model.config.num_hidden_layers
    choices = {str(index): [other for other in range(count) if other != index] for index in range(1, count)}
    kept = next(iter(described(choices, model, family).values()))
    (gone,) = set(range(count)) - set(kept)
    for parameter in family.layers(model)[gone].parameters():
        parameter.zero_()
    before = logits(model)
    smaller = copy.deepcopy(model)
    family.keep_layers(smaller, kept)
    assert same(before, logits(smaller))
    assert same(before, logits(reloaded(smaller, tmp_path)))


@pytest.mark.parametrize("name", PARTLY)
def test_shrink_gives_the_shape(name: str) -> None:
    model, family = random_model(name), families()[name]
    anatomy = Anatomy.of(model, family)
    whole = anatomy.teacher
    sample = Sample.of(tiny_sequences(2, ids=VOCABULARY), 48)
    measured = Measured.of(model, family, sample)
    assert len(measured.influence) == whole.layers
    experts = whole.experts and whole.experts - 2
    layers = whole.layers - int(not whole.channels and not experts)
    asked = type(whole)(layers, whole.channels and 64, whole.groups, whole.hidden, whole.vocabulary, experts)
    anatomy.require_possible(asked)
    cut = shrink(model, family, asked, measured, repair=True)
    real = sum(parameter.numel() for parameter in cut.model.parameters())
    assert anatomy.parameters(asked) == real if anatomy.exact(asked) else anatomy.parameters(asked) >= real
    assert anatomy.parameters(asked) < anatomy.parameters(whole)
    assert cut.best_kl >= 0
    assert cut.best_kl < 20
    if cut.healed_kl is not None:
        assert cut.best_kl <= cut.kl
    if whole.experts:
        routed = measured.widths.tokens.sum(1) > 0
        assert routed.any()
        assert torch.allclose(measured.widths.experts.sum(1)[routed], torch.ones(1, dtype=torch.float64))
        assert 0 <= cut.lost["experts"] < 1
    # The config that the plan counts with is that of the student.
    planned = shaped_config(model.config, family, asked)
    mine = copy.deepcopy(cut.model.config)
    cut_config(mine, list(range(asked.layers)))
    assert planned.num_hidden_layers == mine.num_hidden_layers
    assert family.experts(planned) == family.experts(mine)


def test_what_a_family_lacks_is_refused_by_name() -> None:
    import dataclasses

    model, family = random_model("qwen3_moe"), families()["qwen3_moe"]
    anatomy = Anatomy.of(model, family)
    for change, words in (
        ({"hidden": 32}, r"`student.hidden_size` cannot be pruned in the family `qwen3_moe`"),
        ({"groups": 1}, r"`student.kv_heads` cannot be pruned"),
        ({"experts": 1}, r"`student.experts` is 1, and each token goes through 2"),
    ):
        with pytest.raises(RecipeError, match=words):
            anatomy.require_possible(dataclasses.replace(anatomy.teacher, **change))
    with pytest.raises(RecipeError, match=r"`student.target` is not possible for the family `qwen3_moe`"):
        anatomy.require_counted()
    model, family = random_model("deepseek_v3"), families()["deepseek_v3"]
    anatomy = Anatomy.of(model, family)
    with pytest.raises(RecipeError, match="a multiple of its 2 groups"):
        anatomy.require_possible(dataclasses.replace(anatomy.teacher, experts=5))
    anatomy.require_possible(dataclasses.replace(anatomy.teacher, experts=6))
