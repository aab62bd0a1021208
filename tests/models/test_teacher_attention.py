"""Packed attention is attention: the same outputs and gradients as the models' own, and nothing crosses documents."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, make_model
from torch.nn import functional

from stillroom.models.attention import BLOCK, applies, blocks_of, packed_attention
from stillroom.models.forward import hidden_states


def packed_positions(lengths, total):
    parts = torch.cat([torch.arange(length) for length in lengths])
    return parts[:total]


@settings(max_examples=20)
@given(
    st.lists(st.integers(1, 200), min_size=3, max_size=8),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([70, 128, 200]),
    st.integers(0, 2**16),
)
def test_outputs_and_gradients_equal_the_formula(lengths, groups, repeats, total, seed):
    torch.manual_seed(seed)
    positions = torch.stack([packed_positions([*lengths, total], total), torch.arange(total)])
    document = (positions == 0).cumsum(1)
    shapes = [(2, groups * repeats, total, 8), (2, groups, total, 8), (2, groups, total, 8)]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    weight = torch.randn(2, total, groups * repeats, 8)
    found = []
    for own in (True, False):
        query, key, value = inputs
        if own:
            output = packed_attention(query, key, value, blocks_of(positions, torch.float32), 0.3)
        else:
            allowed = (document[:, :, None] == document[:, None, :]) & torch.ones(total, total).tril().bool()
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
            output = functional.scaled_dot_product_attention(query, key, value, allowed[:, None], scale=0.3).transpose(
                1, 2
            )
        found.append((output.detach(), *torch.autograd.grad((output * weight).sum(), inputs)))
    for ours, theirs in zip(*found, strict=True):
        assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_models_compute_the_same(family):
    model = make_model(family, rows=64, layers=2)
    torch.manual_seed(0)
    ids = torch.randint(64, (2, 150))
    positions = torch.stack([packed_positions([70, 80], 150), packed_positions([10, 120, 20], 150)])
    assert applies(model, ids) is (family not in ("gemma2", "gemma3_text"))
    found = []
    for compute in (
        lambda: hidden_states(model, ids, positions),
        lambda: model.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state,
    ):
        model.zero_grad()
        hidden = compute()
        (hidden * torch.linspace(-1, 1, hidden.numel()).view(hidden.shape)).sum().backward()
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append((hidden.detach(), torch.cat(grads)))
    for ours, theirs in zip(*found, strict=True):
        assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm())
    assert model.config._attn_implementation in ("sdpa", "eager")


def test_few_shapes_of_products_whatever_the_documents():
    """For each shape that is new to it, oneDNN makes code first."""
    torch.manual_seed(0)
    shapes = set()
    for _ in range(30):
        positions = packed_positions([*torch.randint(1, 200, (30,)).tolist(), 512], 512)[None]
        shapes |= {(block.end - block.begin, block.end - block.first) for block in blocks_of(positions, torch.float32)}
    assert len(shapes) <= 512 // BLOCK


def test_under_autocast_outputs_and_gradients_are_those_of_float32_but_for_rounding():
    model = make_model("llama", rows=64, layers=2)
    ids = torch.randint(64, (2, 150), generator=torch.Generator().manual_seed(0))
    positions = torch.stack([packed_positions([70, 80], 150), packed_positions([10, 120, 20], 150)])
    found = []
    for rounds in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=rounds):
            hidden = hidden_states(model, ids, positions).float()
        (hidden * torch.linspace(-1, 1, hidden.numel()).view(hidden.shape)).sum().backward()
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append((hidden.detach(), torch.cat(grads)))
    for exact, rounded in zip(*found, strict=True):
        assert 0 < float((rounded - exact).norm()) <= 2e-2 * float(exact.norm())


def test_a_document_does_not_see_the_one_before():
    model = make_model("llama", rows=64, layers=2)
    ids = torch.randint(64, (1, 140), generator=torch.Generator().manual_seed(1))
    positions = packed_positions([50, 90], 140)[None]
    changed = ids.clone()
    changed[:, :50] = (changed[:, :50] + 1) % 64
    with torch.no_grad():
        one, other = (hidden_states(model, some, positions)[:, 50:] for some in (ids, changed))
    assert torch.equal(one, other)


def test_windows_and_caps_keep_the_models_own_attention():
    windowed = make_model("mistral", rows=64, layers=2, sliding_window=32)
    ids = torch.zeros(1, 150, dtype=torch.int64)
    assert not applies(windowed, ids)
    assert not applies(make_model("llama", rows=64, layers=2), ids[:, :20])
