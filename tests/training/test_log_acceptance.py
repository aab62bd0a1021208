"""The objective `log_acceptance`: its gradient is autograd's, and it is 0 for the teacher itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.core.errors import SignalError
from stillroom.signals.signal import CoarseSignal, DenseSignal, SignalKind
from stillroom.training.losses.registry import make_objective

IDS = 9


@settings(max_examples=50)
@given(spread=st.sampled_from([0.5, 2.0, 5.0]), k=st.integers(1, IDS - 2), seed=st.integers(0, 2**16))
def test_gradients_equal_autograd(spread: float, k: int, seed: int) -> None:
    torch.manual_seed(seed)
    teacher = torch.log_softmax(spread * torch.randn(4, IDS, dtype=torch.float64), dim=1)
    logits = (spread * torch.randn(4, IDS, dtype=torch.float64)).requires_grad_()
    objective = make_objective("log_acceptance")
    listed, ids = teacher.topk(k, dim=1)
    rest = teacher.exp().scatter(1, ids, 0.0).sum(1)
    coarse, dense = CoarseSignal(ids, listed, rest), DenseSignal(teacher)
    q = logits.softmax(1)
    others = q.scatter(1, ids, 0.0).sum(1, keepdim=True)
    of_events = torch.minimum(torch.cat([q.gather(1, ids), others], 1), torch.cat([listed.exp(), rest[:, None]], 1))
    for signal, accepted in ((dense, torch.minimum(q, teacher.exp())), (coarse, of_events)):
        expected = -accepted.sum(1).log()
        (expected_grad,) = torch.autograd.grad(expected.sum(), logits, retain_graph=True)
        losses, gradient = objective.chunk(torch.log_softmax(logits.detach(), 1), signal)
        assert torch.allclose(losses, expected.detach(), rtol=1e-5, atol=1e-9)
        assert torch.allclose(gradient, expected_grad, rtol=1e-5, atol=1e-9)
    # A coarser statement is a lower bound; the teacher itself is accepted always.
    logprobs = torch.log_softmax(logits.detach(), 1)
    assert bool(
        (objective.chunk(logprobs.clone(), coarse)[0] <= objective.chunk(logprobs.clone(), dense)[0] + 1e-9).all()
    )
    assert float(objective.chunk(teacher.clone(), dense)[0].abs().max()) < 1e-9


def test_a_sample_is_refused() -> None:
    with pytest.raises(SignalError, match="not linear"):
        make_objective("log_acceptance").require(SignalKind.SAMPLED)
