"""Least-squares repairs, the walk through layers, and the orders in which inputs can go."""

from __future__ import annotations

import pytest
import torch
from tiny_families import CHANNELS, FAMILIES, GROUPS, IDS, LAYERS, WIDTH, tiny, tiny_sequences

from benchmarks.material import evenly_spaced
from stillroom.models.families.registry import families, family_of
from stillroom.models.forward import hidden_states
from stillroom.students import layerwise
from stillroom.students.heal import RIDGE, RIDGES, _normed_weights, _weights, heal, ridge_change
from stillroom.students.importance import Sample, judged_kl, judged_logprobs
from stillroom.students.layerwise import Layerwise
from stillroom.students.measured import Measured
from stillroom.students.narrow import Widths
from stillroom.students.shape import Shape
from stillroom.students.shrink import layer_choices, shrink
from stillroom.students.widths import measure_orders, measure_widths, removal_order

SAMPLE = Sample.of(tiny_sequences(24, 24), 24 * 24)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_walk_gives_what_the_whole_model_gives(family: str) -> None:
    model = tiny(family)
    part = tiny_sequences(3)
    with torch.no_grad():
        walk = Layerwise(model, family_of(model), part)
        walk.advance(LAYERS)
        normed = torch.cat([model.base_model.norm(state) for state in walk.states])
        assert torch.allclose(normed, hidden_states(model, part.ids, part.positions), atol=1e-6)
    # The model is as it was.
    assert all("forward" not in vars(layer) for layer in family_of(model).layers(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_walk_in_bfloat16_keeps_its_stream_in_float32(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The repair walks so, where a CPU has instructions for it; nothing else does."""
    model, part = tiny(family).float(), tiny_sequences(3)
    monkeypatch.setattr(layerwise, "fast_bfloat16", lambda _device: True)
    streams = {}
    with torch.no_grad():
        for rounded in (False, True):
            walk = Layerwise(model, family_of(model), part, rounded=rounded)
            walk.advance(LAYERS)
            streams[rounded] = walk.stream
            assert {state.dtype for state in walk.states} == {torch.float32}
    error = float((streams[True] - streams[False]).norm() / streams[False].norm())
    assert 1e-5 < error < 0.05


def test_the_repair_is_as_good_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama", seed=3).float()
    adapter, kept = family_of(model), [0, 1, 4, 5]
    reference = judged_logprobs(model, SAMPLE.judge)
    before = judged_kl(reference, shrink_plainly(model, kept), SAMPLE.judge)
    left = {}
    for rounded in (False, True):
        monkeypatch.setattr(layerwise, "fast_bfloat16", lambda _device, rounded=rounded: rounded)
        student = shrink_plainly(model, kept)
        heal(student, model, adapter, kept, SAMPLE.fit, everywhere=True)
        left[rounded] = judged_kl(reference, student, SAMPLE.judge) / before
        assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    assert left[False] < 0.75
    assert left[True] == pytest.approx(left[False], rel=0.03)


def test_ridge_change_is_the_minimum() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    missing = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    weights = torch.rand(50, generator=generator, dtype=torch.float64)
    change = ridge_change(inputs, missing, weights, 0.2)
    penalty = 0.2 * (inputs.T @ (inputs * weights[:, None])).diagonal().mean()

    def loss(matrix: torch.Tensor) -> torch.Tensor:
        return (weights * (missing - inputs @ matrix.T).square().sum(1)).sum() + penalty * matrix.square().sum()

    for _ in range(20):
        nudge = 1e-3 * torch.randn(change.shape, generator=generator, dtype=torch.float64)
        assert loss(change + nudge) > loss(change)


def test_how_far_a_matrix_may_move_is_decided_on_tokens_that_it_is_not_fitted_on() -> None:
    """Little where what is missing is mostly noise, far where it is not, and not at all where it is nothing but noise."""
    generator = torch.Generator().manual_seed(0)
    inputs, wanted = torch.randn(400, 40, generator=generator), torch.randn(8, 40, generator=generator) / 40**0.5
    noise, ones = torch.randn(400, 8, generator=generator), torch.ones(400)
    chosen = {}
    for name, missing in {
        "clear": inputs @ wanted.T + 0.01 * noise,
        "noisy": inputs @ wanted.T + 2 * noise,
        "noise": noise,
    }.items():
        change = ridge_change(inputs, missing, ones)
        same = [ridge for ridge in RIDGES if torch.equal(change, ridge_change(inputs, missing, ones, ridge))]
        chosen[name] = same[0] if same else float(change.abs().max())
        errors = [float((ridge_change(inputs, missing, ones, ridge) - wanted).norm()) for ridge in RIDGES]
        if name != "noise":
            assert float((change - wanted).norm()) < 1.1 * min(errors)
    assert chosen["clear"] < RIDGE <= chosen["noisy"]
    assert chosen["noise"] in (0.0, RIDGES[-1])


def test_few_tokens_are_all_fitted_on() -> None:
    inputs, missing, ones = torch.randn(9, 4), torch.randn(9, 3), torch.ones(9)
    assert torch.equal(ridge_change(inputs, missing, ones), ridge_change(inputs, missing, ones, RIDGE))


def test_sums_that_rounding_spoiled_take_the_next_larger_ridge() -> None:
    """In bfloat16 inputs that say the same can leave sums of products that are not positive definite."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(4000, 2, generator=generator) @ torch.randn(2, 64, generator=generator)
    missing = inputs @ torch.randn(64, 8, generator=generator)
    change = ridge_change(inputs, missing, torch.ones(4000), rounded=True)
    assert torch.isfinite(change).all()
    assert float((missing - inputs @ change.T).norm() / missing.norm()) < 0.05


def test_a_change_from_rounded_moments_is_nearly_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, wanted = torch.randn(3000, 24, generator=generator), torch.randn(16, 24, generator=generator)
    inputs[:, 1::2] += inputs[:, ::2]  # inputs go together, as channels do
    missing = inputs @ wanted.T + torch.randn(3000, 16, generator=generator)
    weights = torch.rand(3000, generator=generator) * 4
    exact, rounded = (ridge_change(inputs, missing, weights, rounded=rounded) for rounded in (False, True))
    assert float((rounded - exact).norm() / exact.norm()) < 5e-3
    assert not torch.equal(rounded, exact)
    assert rounded.dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_redundant_channels_and_heads_are_made_up_for(family: str) -> None:
    """Every removed channel is a copy of a kept one, and every removed group too: the repair finds that out exactly."""
    model = tiny(family, seed=1)
    half = CHANNELS // 2
    with torch.no_grad():
        for layer in family_of(model).layers(model):
            if hasattr(layer.mlp, "gate_up_proj"):
                fused = layer.mlp.gate_up_proj.weight
                fused[half:CHANNELS] = fused[:half]
                fused[CHANNELS + half :] = fused[CHANNELS : CHANNELS + half]
            else:
                if hasattr(layer.mlp, "gate_proj"):
                    layer.mlp.gate_proj.weight[half:] = layer.mlp.gate_proj.weight[:half]
                layer.mlp.up_proj.weight[half:] = layer.mlp.up_proj.weight[:half]
    adapter = family_of(model)
    reference = judged_logprobs(model, SAMPLE.judge)
    kept = list(range(LAYERS))
    widths = Widths(channels=[torch.arange(half)] * LAYERS)
    from stillroom.students.narrow import narrow

    student = narrow(model, adapter, widths)
    before = judged_kl(reference, student, SAMPLE.judge)
    assert heal(student, model, adapter, kept, SAMPLE.fit, widths) == LAYERS
    assert judged_kl(reference, student, SAMPLE.judge) < 0.35 * before


@pytest.mark.parametrize("family", [family for family in FAMILIES if not families()[family].norm_after])
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_linear_run_of_layers_is_replaced(family: str, everywhere: bool) -> None:
    """Removed layers whose effect is nearly linear in the stream are stood in for by the layer before them."""
    model = tiny(family, seed=2)
    adapter = family_of(model)
    with torch.no_grad():
        for index in (2, 3):
            adapter.layers(model)[index].self_attn.o_proj.weight.mul_(0.05)
    kept = [0, 1, 4, 5]
    reference = judged_logprobs(model, SAMPLE.judge)
    student = shrink_plainly(model, kept)
    before = judged_kl(reference, student, SAMPLE.judge)
    assert heal(student, model, adapter, kept, SAMPLE.fit, everywhere=everywhere) >= 1
    assert judged_kl(reference, student, SAMPLE.judge) < before


def shrink_plainly(model: object, kept: list[int]) -> object:
    from stillroom.students.shrink import _cut

    return _cut(model, family_of(model), kept, Widths())


@pytest.mark.parametrize("family", [family for family in FAMILIES if families()[family].norm_after])
def test_families_with_a_norm_behind_are_left_alone_in_depth(family: str) -> None:
    model = tiny(family)
    student = shrink_plainly(model, [0, 1, 4, 5])
    old = {name: value.clone() for name, value in student.state_dict().items()}
    assert heal(student, model, family_of(model), [0, 1, 4, 5], SAMPLE.fit, everywhere=True) == 0
    assert all(torch.equal(value, old[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_shrink_gives_the_shape_and_never_a_worse_repair(family: str) -> None:
    model = tiny(family, seed=3)
    adapter = family_of(model)
    measured = Measured.of(model, adapter, SAMPLE)
    shape = Shape(4, 32, 1, 24, IDS)
    cut = shrink(model, adapter, shape, measured, True)
    config = cut.model.config
    assert (config.num_hidden_layers, config.intermediate_size) == (4, 32)
    assert (config.num_key_value_heads, config.hidden_size) == (1, 24)
    assert len(cut.kept) == 4
    assert cut.healed == (cut.healed_kl is not None and cut.healed_kl < cut.kl)
    assert judged_kl(measured.reference, cut.model, SAMPLE.judge) == pytest.approx(cut.best_kl, abs=1e-5)
    assert set(cut.lost) == {"channels", "groups", "hidden"}
    names = {"block_influence", "leave_one_out_kl", "channels", "groups", "hidden", "channel_order", "group_order"}
    assert set(measured.tensors()) == names


def test_uncut_shape_is_the_teacher() -> None:
    model = tiny("llama")
    measured = Measured.of(model, family_of(model), SAMPLE)
    cut = shrink(model, family_of(model), Shape(LAYERS, CHANNELS, GROUPS, WIDTH, IDS), measured, True)
    assert cut.kl == 0.0
    assert judged_kl(measured.reference, cut.model, SAMPLE.judge) == pytest.approx(0.0, abs=1e-6)


def test_importance_finds_what_does_nothing() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[:, 7] = 0
        model.model.layers[3].self_attn.o_proj.weight[:, 16:] = 0
    importance = measure_widths(model, family_of(model), SAMPLE.fit)
    assert importance.channels[2, 7] == 0
    assert importance.groups[3].tolist() == pytest.approx([1.0, 0.0])
    assert torch.allclose(importance.hidden.sum(), torch.tensor(1.0, dtype=torch.float64))
    orders = measure_orders(model, family_of(model), SAMPLE.fit, importance)
    assert orders.channel_order is not None
    assert orders.group_order is not None
    assert 7 in orders.channel_order[2, :2]
    assert orders.group_order[3].tolist() == [1, 0]
    assert all(sorted(row.tolist()) == list(range(CHANNELS)) for row in orders.channel_order)


def test_removal_order_takes_the_redundant_first() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 8, generator=generator)
    inputs[:, 5] = inputs[:, 0] + inputs[:, 1]  # large, and said by others
    matrix = torch.ones(4, 8)
    matrix[:, 3] = 1e-3
    order = removal_order(inputs, torch.ones(400), matrix, 1).tolist()
    assert order[0] == 3
    assert order[1] in (0, 1, 5)
    assert sorted(removal_order(inputs, torch.ones(400), matrix, 2).tolist()) == [0, 1, 2, 3]


def test_layer_choices() -> None:
    influence = [0.9, 0.1, 0.02, 0.03, 0.04, 0.05, 0.5, 0.8]
    choices = layer_choices(influence, 4)
    assert choices["block influence"] == [0, 1, 6, 7]
    assert choices["block influence, runs of at most 2"] == [0, 1, 4, 7]
    for name, kept in choices.items():
        assert len(kept) == 4
        assert kept == sorted(set(kept))
        if name.startswith("block"):
            assert kept[0] == 0
            assert kept[-1] == 7
    gone = [index for index in range(8) if index not in choices["block influence, runs of at most 2"]]
    assert not any({index, index + 1, index + 2} <= set(gone) for index in gone)
    both = layer_choices(influence, 6, [0.1, 0.5, 0.5, 0.1, 0.5, 0.1, 0.5, 0.1])
    assert both["block influence"] == [0, 1, 4, 5, 6, 7]
    assert both["leave-one-out KL, runs of at most 3"] == [0, 1, 2, 4, 6, 7]
    assert layer_choices(influence, 8) == {"all": list(range(8))}
    assert len(layer_choices(influence, 1)["block influence"]) == 1
    assert evenly_spaced(30, 22)[0] == 0
    assert evenly_spaced(30, 22)[-1] == 29
    assert len(set(evenly_spaced(30, 22))) == 22


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("length", [24, 160])
def test_layer_by_layer_is_the_whole_model(family, length):
    """Documents are kept apart in a walk over single layers too, whatever attention the model is given."""
    model = tiny(family, dtype=torch.float32)
    text = tiny_sequences(1, length)
    with torch.no_grad():
        walk = Layerwise(model, family_of(model), text)
        walk.advance(len(walk.layers))
        found = model.base_model.norm(walk.states[0])
        expected = hidden_states(model, text.ids, text.positions)
    assert torch.allclose(found, expected, atol=1e-4)


def test_behind_a_norm_an_error_weighs_what_it_is_in_the_stream() -> None:
    """However large a token's output is before the norm."""
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(6, 32, generator=generator, dtype=torch.float64) * torch.logspace(-2, 2, 6)[:, None]
    error = torch.randn(6, 32, generator=generator, dtype=torch.float64)
    error -= (
        output * ((error * output).sum(1) / output.square().sum(1))[:, None]
    )  # what is along it, the norm takes away
    error *= 1e-4 * output.norm(dim=1, keepdim=True) / error.norm(dim=1, keepdim=True)

    def normed(values: torch.Tensor) -> torch.Tensor:
        return values / values.square().mean(1, keepdim=True).sqrt()

    stream = torch.ones(6, 32, dtype=torch.float64)
    weighed = _normed_weights(output, stream) * error.square().sum(1)
    assert torch.allclose(weighed, (normed(output + error) - normed(output)).square().sum(1), rtol=1e-4)
    # A larger stream makes less of it, as it does without the norm.
    assert torch.allclose(_normed_weights(output, 4 * stream), _normed_weights(output, stream) / 4)
    assert torch.allclose(_weights(4 * stream), _weights(stream) / 4)


@pytest.mark.parametrize("family", ["gemma3_text", "llama"])
def test_a_repair_that_makes_it_worse_is_said_and_not_kept(family: str) -> None:
    from stillroom.students.stage import repaired_words

    assert repaired_words(None, False) == ""
    assert repaired_words(1.24, True) == ", repaired by least squares 1.24"
    assert "3.15 on text that it was not fitted on, and is not kept" in repaired_words(3.15, False)
    # One sequence to fit hundreds of weights of each row on.
    model = tiny(family, seed=4)
    adapter = family_of(model)
    sample = Sample.of(tiny_sequences(2, 8), 16)
    measured = Measured.of(model, adapter, sample)
    found = shrink(model, adapter, Shape(LAYERS, 8, GROUPS, WIDTH, IDS), measured, True)
    assert found.healed_kl is not None
    assert found.healed == (found.healed_kl < found.kl)
    assert judged_kl(measured.reference, found.model, sample.judge) == pytest.approx(
        min(found.kl, found.healed_kl), abs=1e-5
    )
