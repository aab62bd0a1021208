"""AdamW in fewer bytes: the same steps where its formats are, unbiased rounding, and a layout that fits."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import make_model

from stillroom.core.errors import OutOfMemory
from stillroom.recipe.training import DistillConfig
from stillroom.training.lean import LeanAdamW, rounded_at_random
from stillroom.training.memory import Sizes, choose_layout
from stillroom.training.optimizer import clip_gradients, make_optimizer

CONFIG = DistillConfig(learning_rate=1e-2, gradient_clip=0.5)
QWEN3_4B = Sizes(36, 2560, 9728, 4096, 1024, 151_936)


@pytest.mark.parametrize(("averages", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_steps_are_those_of_adamw(averages, error):
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


@pytest.mark.parametrize(("memory", "expected"), [(141e9, ("plain", True)), (80e9, (12, True)), (52e9, (8, True))])
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
