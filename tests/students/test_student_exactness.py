"""Cutting what contributes nothing changes nothing, in every family."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_families import CHANNELS, FAMILIES, GROUPS, HEAD, HEADS, IDS, LAYERS, WIDTH, tiny

from stillroom.models.families.registry import family_of
from stillroom.models.forward import hidden_states, logits_from_hidden, output_head
from stillroom.students.embeddings import keep_rows
from stillroom.students.narrow import Widths, blocks, narrow

pytestmark = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    with torch.no_grad():
        head = output_head(model)
        hidden = hidden_states(model, ids, positions)
        # logits_from_hidden rounds to float32, which would hide what is looked for here.
        assert torch.allclose(logits_from_hidden(model, hidden), logits_from_hidden(model, hidden))
        values = torch.nn.functional.linear(hidden, head.matrix, head.bias) * head.scale
        return values if head.softcap is None else head.softcap * torch.tanh(values / head.softcap)


def some_ids(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, IDS, (2, 20), generator=torch.Generator().manual_seed(seed))


def chosen(count: int, of: int, seed: int) -> torch.Tensor:
    return torch.randperm(of, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def others(kept: torch.Tensor, size: int) -> torch.Tensor:
    mask = torch.ones(size, dtype=torch.bool)
    mask[kept] = False
    return mask


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [0, 1])
def test_dead_channels_groups_and_widths_can_go(family: str, tied: bool, seed: int, tmp_path: Any) -> None:
    model = tiny(family, tied, seed)
    channels = [chosen(32, CHANNELS, 10 * seed + layer) for layer in range(LAYERS)]
    groups = [chosen(1, GROUPS, 20 * seed + layer) for layer in range(LAYERS)]
    hidden = chosen(24, WIDTH, seed)
    with torch.no_grad():
        model.base_model.embed_tokens.weight[:, others(hidden, WIDTH)] = 0
        for number, layer in enumerate(model.base_model.layers):
            down, output = layer.mlp.down_proj.weight, layer.self_attn.o_proj.weight
            queries = others(blocks(groups[number], HEADS // GROUPS * HEAD), HEADS * HEAD)
            down[:, others(channels[number], CHANNELS)] = 0
            down[others(hidden, WIDTH)] = 0
            output[:, queries] = 0
            output[others(hidden, WIDTH)] = 0
            if family in ("olmo2", "olmo3"):
                # One norm runs over all heads here, so that a head is dead only where it adds nothing to that norm.
                layer.self_attn.q_proj.weight[queries] = 0
                layer.self_attn.k_proj.weight[others(blocks(groups[number], HEAD), GROUPS * HEAD)] = 0
    before = logits(model, some_ids(seed))
    smaller = narrow(model, family_of(model), Widths(channels, groups, hidden))
    after = logits(smaller, some_ids(seed))
    assert before.abs().max() > 0.1
    assert (before - after).abs().max() < 1e-5
    assert smaller.config.hidden_size == 24
    assert sum(p.numel() for p in smaller.parameters()) < 0.75 * sum(p.numel() for p in model.parameters())
    smaller.save_pretrained(tmp_path)
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert torch.equal(after, logits(again, some_ids(seed)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dead_width_that_is_kept_changes_the_result(family: str, tied: bool) -> None:
    model = tiny(family, tied)
    hidden = chosen(24, WIDTH, 0)
    smaller = narrow(model, family_of(model), Widths(hidden=hidden))
    assert (logits(model, some_ids()) - logits(smaller, some_ids())).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_dead_layers_can_go(family: str, tied: bool) -> None:
    model = tiny(family, tied)
    dead = [1, 3, 4]
    with torch.no_grad():
        for index in dead:
            model.base_model.layers[index].mlp.down_proj.weight.zero_()
            model.base_model.layers[index].self_attn.o_proj.weight.zero_()
    before = logits(model, some_ids())
    smaller = copy.deepcopy(model)
    kept = [index for index in range(LAYERS) if index not in dead]
    family_of(smaller).keep_layers(smaller, kept)
    assert smaller.config.num_hidden_layers == 3
    for key in ("layer_types", "no_rope_layers"):
        whole = getattr(model.config, key, None)
        if whole is not None:
            assert getattr(smaller.config, key) == [whole[index] for index in kept]
    assert (before - logits(smaller, some_ids())).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_smaller_vocabulary_keeps_the_logits_of_what_it_keeps(family: str, tied: bool) -> None:
    model = tiny(family, tied)
    kept = chosen(60, IDS, 3).tolist()
    ids = torch.randint(0, 60, (2, 20), generator=torch.Generator().manual_seed(1))
    before = logits(model, torch.tensor(kept)[ids])[..., kept]
    smaller = copy.deepcopy(model)
    keep_rows(smaller, kept, 64)
    after = logits(smaller, ids)
    assert after.shape[-1] == 64
    assert torch.equal(before, after[..., :60])
