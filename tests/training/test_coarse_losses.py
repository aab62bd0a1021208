"""Losses of coarse signals: gradients equal autograd's, never above the dense ones, equal to them where every id is listed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.core.errors import SignalError, VocabularyMismatch
from stillroom.signals.signal import CoarseSignal, DenseSignal, SignalKind
from stillroom.training.losses.objective import Objective
from stillroom.training.losses.registry import make_objective

NAMES = ("forward_kl", "reverse_kl", "jensen_shannon", "total_variation")
IDS = 13


def coarse_of(logprobs: torch.Tensor, k: int, fillers: int = 0) -> CoarseSignal:
    """The k most probable ids of each position, and behind them entries that only fill the list."""
    best, ids = logprobs.topk(k, dim=1)
    rest = (1.0 - best.double().exp().sum(1)).clamp_min(0.0) if k < logprobs.shape[1] else torch.zeros(len(best))
    best = torch.cat([best, torch.full((len(best), fillers), float("-inf"), dtype=best.dtype)], dim=1)
    ids = torch.cat([ids, ids[:, :1].repeat(1, fillers)], dim=1)
    return CoarseSignal(ids, best, rest.to(logprobs.dtype))


def formula(name: str, logits: torch.Tensor, signal: CoarseSignal) -> torch.Tensor:
    """The textbook divergence of the events, summed, position by position and event by event."""
    total = logits.new_zeros(())
    for row, q in enumerate(logits.softmax(1)):
        listed = [int(i) for i, log in zip(signal.ids[row], signal.logprobs[row], strict=True) if log > -1e30]
        ps = [*(float(log.exp()) for log in signal.logprobs[row] if log > -1e30), float(signal.rest[row])]
        others = [i for i in range(len(q)) if i not in listed]
        qs = [*(q[i] for i in listed), q[others].sum()]
        for p, mass in zip(ps, qs, strict=True):
            if name == "forward_kl":
                total = total + (p * (torch.tensor(p, dtype=torch.float64).log() - mass.log()) if p > 0 else 0.0)
            elif name == "reverse_kl":
                total = total + mass * (mass.log() - torch.tensor(p, dtype=torch.float64).log())
            elif name == "jensen_shannon":
                middle = (mass + p) / 2
                total = total + 0.5 * mass * (mass / middle).log()
                total = total + (0.5 * p * (p / middle).log() if p > 0 else 0.0)
            else:
                total = total + 0.5 * (mass - p).abs()
    return total


@settings(max_examples=60)
@given(
    name=st.sampled_from(NAMES),
    positions=st.integers(1, 5),
    k=st.integers(1, IDS - 2),
    fillers=st.integers(0, 3),
    spread=st.sampled_from([0.5, 2.0, 6.0]),
    seed=st.integers(0, 2**16),
)
def test_gradients_equal_autograd(name: str, positions: int, k: int, fillers: int, spread: float, seed: int) -> None:
    torch.manual_seed(seed)
    teacher = torch.log_softmax(spread * torch.randn(positions, IDS, dtype=torch.float64), dim=1)
    logits = (spread * torch.randn(positions, IDS, dtype=torch.float64)).requires_grad_()
    signal = coarse_of(teacher, k, fillers)
    expected = formula(name, logits, signal)
    expected.backward()
    losses, gradient = make_objective(name).chunk(torch.log_softmax(logits.detach(), 1), signal)
    assert float(losses.sum()) == pytest.approx(float(expected.detach()), rel=1e-5, abs=1e-9)
    assert logits.grad is not None
    assert torch.allclose(gradient, logits.grad, rtol=1e-5, atol=1e-9)


@settings(max_examples=60)
@given(name=st.sampled_from(NAMES), k=st.integers(1, IDS), seed=st.integers(0, 2**16))
def test_coarse_is_at_most_dense_and_equal_where_all_is_listed(name: str, k: int, seed: int) -> None:
    torch.manual_seed(seed)
    teacher = torch.log_softmax(3 * torch.randn(4, IDS), dim=1)
    student = torch.log_softmax(3 * torch.randn(4, IDS), dim=1)
    objective = make_objective(name)
    dense, dense_gradient = objective.chunk(student.clone(), DenseSignal(teacher))
    coarse, gradient = objective.chunk(student.clone(), coarse_of(teacher, k))
    assert bool((coarse <= dense + 1e-5).all())
    if k == IDS:
        assert torch.allclose(coarse, dense, atol=2e-5)
        assert torch.allclose(gradient, dense_gradient, atol=2e-5)


@given(name=st.sampled_from(NAMES), k=st.integers(1, IDS), seed=st.integers(0, 2**16))
def test_the_teacher_as_its_own_student_has_nothing_to_learn(name: str, k: int, seed: int) -> None:
    teacher = torch.log_softmax(3 * torch.randn(4, IDS, generator=torch.Generator().manual_seed(seed)), dim=1)
    losses, gradient = make_objective(name).chunk(teacher.clone(), coarse_of(teacher, k))
    assert torch.allclose(losses, torch.zeros(4), atol=1e-5)
    # At its least the total variation has a corner: rounding decides the sign there, not the size of the loss.
    if name != "total_variation":
        assert torch.allclose(gradient, torch.zeros(4, IDS), atol=1e-5)


def test_an_objective_that_does_not_know_coarse_signals_refuses_them() -> None:
    class Other(Objective):
        name, linear = "other", True

        def chunk(self, logprobs: torch.Tensor, signal: object) -> tuple[torch.Tensor, torch.Tensor]:
            raise AssertionError

    with pytest.raises(SignalError, match="`other` cannot take the list"):
        Other.require(SignalKind.COARSE)
    with pytest.raises(VocabularyMismatch):
        make_objective("forward_kl").check(coarse_of(torch.log_softmax(torch.randn(2, IDS), 1), 4), 3)
