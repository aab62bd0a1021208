"""Layers by hand are the models' own layers: same hidden states, whatever the documents and the number of threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, make_model

from stillroom.models import stack
from stillroom.models.forward import hidden_states

BY_HAND = ("llama", "mistral", "qwen2")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def packed(lengths, rows, length):
    positions = torch.cat([torch.arange(n) for n in [*lengths, rows * length]])[: rows * length].view(rows, length)
    for row in positions:  # a row begins a document, as the models' masks see it, wherever its positions begin
        row[: int((row.diff() != 1).nonzero()[0]) + 1 if bool((row.diff() != 1).any()) else length] -= row[0].clone()
    return positions


@pytest.mark.parametrize("family", FAMILIES)
def test_only_families_of_these_layers_are_taken(family):
    assert (stack.layers_of(make_model(family, rows=64, layers=2)) is not None) is (family in BY_HAND)


def test_windows_hooks_and_other_layers_are_left_to_the_model():
    assert stack.layers_of(make_model("mistral", rows=64, layers=2, sliding_window=32)) is None
    hooked = make_model("llama", rows=64, layers=2)
    handle = hooked.base_model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert stack.layers_of(hooked) is None
    handle.remove()
    assert stack.layers_of(hooked) is not None

    hooked.base_model.layers[0].forward = lambda state, **_: state
    assert stack.layers_of(hooked) is None
    del hooked.base_model.layers[0].forward
    norm = hooked.base_model.layers[0].input_layernorm

    class OtherNorm(type(norm)):
        pass

    norm.__class__ = OtherNorm
    assert stack.layers_of(hooked) is None
    norm.__class__ = OtherNorm.__base__
    assert stack.layers_of(hooked) is not None

    class Other(torch.nn.Linear):
        pass

    hooked.base_model.layers[1].mlp.up_proj.__class__ = Other
    assert stack.layers_of(hooked) is None
    compiled = make_model("llama", rows=64, layers=2)
    compiled.base_model.compile()
    assert stack.layers_of(compiled) is None


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(BY_HAND),
    st.lists(st.integers(1, 300), min_size=1, max_size=6),
    st.integers(1, 2),
    st.integers(2, 500),
    st.integers(1, 4),
)
def test_hidden_states_are_the_models(family, lengths, rows, length, threads):
    torch.set_num_threads(threads)
    model = make_model(family, rows=64, layers=2)
    positions = packed(lengths, rows, length)
    ids = torch.randint(64, (rows, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = hidden_states(model, ids, positions)
        theirs = model.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm())
    assert torch.get_num_threads() == threads


def test_in_bfloat16_it_is_as_exact_as_the_model():
    model = make_model("llama", rows=64, layers=4)
    rounded = make_model("llama", rows=64, layers=4).to(torch.bfloat16)
    for own, other in zip(model.parameters(), rounded.parameters(), strict=True):
        own.data = other.data.float()
    ids, positions = torch.randint(64, (1, 400)), packed([150, 250], 1, 400)
    with torch.inference_mode():
        exact = hidden_states(model, ids, positions)
        ours = hidden_states(rounded, ids, positions)
        theirs = rounded.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    assert float((ours - exact).norm()) <= 1.1 * float((theirs - exact).norm())


def test_only_what_is_wanted_is_computed():
    positions = packed([30, 50, 20], 1, 100)
    line = stack.line_of(torch.arange(100)[None], positions, torch.tensor([3, 7, 85]))
    assert line.ids.tolist() == [*range(8), *range(80, 86)]  # nothing of the second document, no tails
    assert line.starts == [0, 8]
    assert line.rows.tolist() == [3, 7, 13]


@given(st.lists(st.integers(1, 700), min_size=1, max_size=5), st.integers(1, 5))
def test_every_query_is_in_one_block_with_all_keys_of_its_document_before_it(lengths, shares):
    count = sum(lengths)
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    cuts = [count * share // shares for share in range(shares + 1)]
    line = stack.Line(torch.zeros(count), torch.zeros(count), starts, cuts, torch.zeros(0))
    seen = []
    for share in range(shares):
        for a, b, first in line.blocks(share):
            assert cuts[share] <= a < b <= cuts[share + 1]
            assert b - a <= stack.BLOCK
            assert first == max(start for start in starts if start <= a)
            assert not any(a < start < b for start in starts)
            seen += range(a, b)
    assert seen == list(range(count))


def test_joined_weights_keep_their_values():
    model = make_model("qwen2", rows=64, layers=2)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    stack.join_weights(stack.layers_of(model))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
    layer = stack.layers_of(model)[0]
    whole = stack._neighbours(layer.qkv)
    assert whole is not None
    assert torch.equal(whole, torch.cat(layer.qkv))
    assert stack._neighbours([layer.qkv[1], layer.qkv[0]]) is None
    assert stack._neighbours([layer.qkv[2], layer.down]) is None
