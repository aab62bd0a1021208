"""AdamW in fewer bytes: the same steps where its formats are, unbiased rounding, and a layout that fits."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import make_model

from stillroom.core.errors import OutOfMemory, UsageError
from stillroom.recipe.training import DistillConfig
from stillroom.training import averages as averages_module
from stillroom.training import lean as lean_module
from stillroom.training.averages import BLOCK, decode, encode
from stillroom.training.checkpoint import State, load_checkpoint, save_checkpoint
from stillroom.training.lean import LeanAdamW, rounded_at_random
from stillroom.training.memory import Sizes, choose_layout
from stillroom.training.optimizer import clip_gradients, make_optimizer
from stillroom.training.refusals import require_group_s_checkpoint

CONFIG = DistillConfig(learning_rate=1e-2, gradient_clip=0.5)
QWEN3_4B = Sizes(36, 2560, 9728, 4096, 1024, 151_936)


@pytest.mark.parametrize(("averages", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.uint8, 6e-2)])
def test_steps_are_those_of_adamw(averages, error, monkeypatch):
    monkeypatch.setattr(lean_module, "LEAST", 1)
    plain = make_model("llama", rows=48, layers=1)
    lean = copy.deepcopy(plain)
    start = copy.deepcopy(plain)
    first, second = make_optimizer(plain, CONFIG), LeanAdamW(lean, CONFIG, averages)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for mine, theirs in zip(plain.parameters(), lean.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            second.gradients[id(theirs)] = mine.grad.clone()
        assert float(second.clip(0.5)) == pytest.approx(clip_gradients(plain, 0.5), rel=1e-5)
        first.step()
        second.step()
    for begun, mine, theirs in zip(start.parameters(), plain.parameters(), lean.parameters(), strict=True):
        moved = mine - begun
        assert float((theirs - mine).norm() / moved.norm()) < error


def test_rounding_at_random_is_right_on_average():
    value = torch.full((200_000,), 1.0 + 2**-10)
    found = rounded_at_random(value).float()
    assert set(found.unique().tolist()) == {1.0, 1.0 + 2**-7}
    assert float(found.mean()) == pytest.approx(1.0 + 2**-10, abs=5e-5)
    assert torch.equal(rounded_at_random(torch.tensor([1.5, -0.25, 0.0])).float(), torch.tensor([1.5, -0.25, 0.0]))


@pytest.mark.parametrize("signed", [True, False])
def test_averages_in_eight_bits_are_right_on_average(signed, monkeypatch):
    """Magnitudes from 1 to 1e-5 of a block's largest; of squares, the root is what is drawn."""
    monkeypatch.setattr(averages_module, "SLICE", 4 * BLOCK)  # so that there are several
    torch.manual_seed(0)
    one = torch.logspace(0, -5, 300)
    one = one * torch.where(torch.arange(300) % 2 == 0, 1, -1) if signed else one.square()
    found = []
    for _ in range(400):
        codes, scales = encode(one, signed=signed)
        assert (codes.dtype, codes.numel(), scales.numel()) == (torch.uint8, 2 * BLOCK, 2)
        again = decode(codes, scales, one.shape, signed=signed)
        found.append(again if signed else again.sqrt())
    drawn, exact = torch.stack(found), one if signed else one.sqrt()
    error = (drawn.mean(0) - exact).abs()
    # What is nearly one of the values is seldom drawn as its neighbour: hence the hundredth.
    assert bool((error <= 5 * drawn.std(0) / 20 + 1e-2 * exact.abs()).all())
    assert float(drawn[:, 0].max() - drawn[:, 0].min()) == 0
    largest = torch.tensor([-3.0, 1.0, 0.5])
    codes, scales = encode(largest if signed else largest.abs(), signed=signed)
    assert float(decode(codes, scales, largest.shape, signed=signed)[0]) == pytest.approx(-3.0 if signed else 3.0)


def test_an_average_that_is_not_zero_stays_so():
    """A step divides by the root of squared gradients; and an average that changes a little moves."""
    squares = torch.full((BLOCK,), 1e-16)
    squares[0], squares[1] = 1.0, 0.0
    found = decode(*encode(squares, signed=False), squares.shape, signed=False)
    assert bool((found[2:] > 0).all())
    assert float(found[1]) == 0
    assert float(found[0]) == 1
    value = torch.full((4096,), 0.05)
    value[::BLOCK] = 1.0  # one step between neighbours is 0.0028 there
    for _ in range(100):
        value = decode(*encode(value - 1e-4 * (value < 1), signed=True), value.shape, signed=True)
    assert float(value[value < 0.9].mean()) == pytest.approx(0.04, abs=1e-3)


def test_eight_bits_go_through_a_checkpoint(tmp_path):
    model = torch.nn.Linear(70, 70, bias=False)
    optimizer = LeanAdamW(model, CONFIG, torch.uint8)

    def step(stepped, by):
        by.gradients[id(stepped.weight)] = torch.linspace(-1, 1, 4900).view(70, 70)
        by.step()

    step(model, optimizer)
    state = optimizer.state[model.weight]
    assert sum(value.nbytes for value in state.values()) < 2.2 * model.weight.numel()
    plain = torch.optim.AdamW(model.parameters())
    save_checkpoint(tmp_path, model, plain, State(step=0))
    require_group_s_checkpoint(tmp_path, 2)
    save_checkpoint(tmp_path, model, optimizer, State(step=1))
    with pytest.raises(UsageError, match=r"step-0000001: .*distill.state: 10.*--workers 2"):
        require_group_s_checkpoint(tmp_path, 2)
    step(model, optimizer)
    again = torch.nn.Linear(70, 70, bias=False)
    resumed = LeanAdamW(again, CONFIG, torch.uint8)
    load_checkpoint(tmp_path, again, resumed)
    step(again, resumed)
    assert torch.equal(again.weight, model.weight)
    for key, value in optimizer.state[model.weight].items():
        assert torch.equal(resumed.state[again.weight][key], value)


FORMATS = [None, torch.float32, torch.bfloat16, torch.uint8]
"""Of averages; None is AdamW itself."""


@pytest.mark.parametrize("wrote", FORMATS)
@pytest.mark.parametrize("reads", FORMATS)
def test_a_checkpoint_is_taken_over_in_the_format_of_the_one_that_goes_on(tmp_path, wrote, reads):
    """Where `state: auto` chooses otherwise on another card."""

    def made(averages):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(70, 70, bias=False), torch.nn.Linear(70, 2))
        return model, make_optimizer(model, CONFIG) if averages is None else LeanAdamW(model, CONFIG, averages)

    def step(model, optimizer):
        for parameter in model.parameters():
            grad = torch.linspace(-1, 1, parameter.numel()).view(parameter.shape)
            if isinstance(optimizer, LeanAdamW):
                optimizer.gradients[id(parameter)] = grad
            else:
                parameter.grad = grad
        optimizer.step()

    def exact(optimizer, parameter):
        return [LeanAdamW._float(optimizer.state[parameter], name, parameter) for name in lean_module.NAMES]

    model, optimizer = made(wrote)
    for _ in range(3):
        step(model, optimizer)
    save_checkpoint(tmp_path, model, optimizer, State(step=3))
    again, resumed = made(reads)
    load_checkpoint(tmp_path, again, resumed)
    fresh, begun = made(reads)
    step(fresh, begun)
    for mine, theirs, new in zip(again.parameters(), model.parameters(), fresh.parameters(), strict=True):
        assert {key: value.dtype for key, value in resumed.state[mine].items()} == {
            key: value.dtype for key, value in begun.state[new].items()
        }
        assert float(resumed.state[mine]["step"]) == 3
        for found, expected in zip(exact(resumed, mine), exact(optimizer, theirs), strict=True):
            if wrote == reads:
                assert torch.equal(found, expected)
            assert float((found - expected).norm() / expected.norm()) < (
                6e-2 if torch.uint8 in (wrote, reads) else 5e-3
            )
    before = [parameter.clone() for parameter in again.parameters()]
    step(again, resumed)
    step(model, optimizer)
    for old, mine, theirs in zip(before, again.parameters(), model.parameters(), strict=True):
        assert float((mine - theirs).norm() / (theirs - old).norm()) < 0.1


def test_small_steps_are_not_lost():
    """A weight in bfloat16 that moves by a thousandth of itself a step: to the nearest it would stay where it is."""
    model = torch.nn.Linear(64, 64, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(1.0)
    optimizer = LeanAdamW(model, DistillConfig(learning_rate=1e-3, weight_decay=0.0), torch.bfloat16)
    for _ in range(20):
        optimizer.gradients[id(model.weight)] = torch.ones_like(model.weight)
        optimizer.step()
    assert float(model.weight.float().mean()) == pytest.approx(0.98, abs=2e-3)


@pytest.mark.parametrize(
    ("memory", "expected"), [(141e9, ("plain", True)), (80e9, (12, True)), (60e9, (10, True)), (52e9, (8, True))]
)
def test_the_most_exact_layout_that_fits(memory, expected):
    found = choose_layout(
        DistillConfig(), QWEN3_4B, 4_022_468_096, 16_384, 1024, int(memory), precise=False, accumulates=False
    )
    assert found == expected


def test_what_fits_nothing_is_refused_with_numbers():
    with pytest.raises(OutOfMemory, match=r"4\.02 billion parameters with 16,384 tokens .* there are 24"):
        choose_layout(
            DistillConfig(), QWEN3_4B, 4_022_468_096, 16_384, 1024, int(24e9), precise=False, accumulates=False
        )
    assert choose_layout(
        DistillConfig(), QWEN3_4B, 4_022_468_096, 16_384, 1024, None, precise=False, accumulates=False
    ) == ("plain", False)
