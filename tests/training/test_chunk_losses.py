"""Chunks compared as wholes: gradients equal autograd's, nothing where both agree, and the plain loss with one tokenizer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.core.errors import SignalError
from stillroom.models.forward import Head
from stillroom.signals.signal import Chunks, CoarseSignal
from stillroom.training.losses.chunks import chunk_losses
from stillroom.training.losses.fused import FusedLoss
from stillroom.training.losses.registry import make_objective

IDS, WIDTH = 11, 6


@settings(max_examples=60)
@given(temperature=st.sampled_from([1.0, 10.0, 100.0]), spread=st.floats(0.01, 20.0), seed=st.integers(0, 2**16))
def test_derivatives_equal_autograd(temperature: float, spread: float, seed: int) -> None:
    torch.manual_seed(seed)
    teacher = -spread * torch.rand(5, dtype=torch.float64) - 1e-3
    student = (-spread * torch.rand(5, dtype=torch.float64) - 1e-3).requires_grad_()
    t, s = (teacher / temperature).exp(), (student / temperature).exp()
    expected = temperature * (t * (t.log() - s.log()) + (1 - t) * ((1 - t).log() - (1 - s).log()))
    expected.sum().backward()
    losses, derivative = chunk_losses(teacher, student.detach(), temperature)
    assert torch.allclose(losses, expected.detach(), rtol=1e-5, atol=1e-9)
    assert student.grad is not None
    assert torch.allclose(derivative, student.grad, rtol=1e-5, atol=1e-7)
    assert bool((losses > -1e-9).all())
    same, nothing = chunk_losses(teacher, teacher, temperature)
    assert float(same.abs().max()) < 1e-9
    assert float(nothing.abs().max()) < 1e-9


def textbook(
    hidden: torch.Tensor,
    matrix: torch.Tensor,
    targets: torch.Tensor,
    signal: CoarseSignal,
    chunks: Chunks,
    weight: float,
) -> torch.Tensor:
    """Forward KL of the events plus the chunks' losses, by autograd."""
    logprobs = torch.log_softmax(hidden @ matrix.T, dim=1)
    total = signal.divergence_from(logprobs).sum()
    text = logprobs.gather(1, targets[:, None]).squeeze(1)
    for number, teacher in enumerate(chunks.logprobs):
        if not bool((chunks.number == number).any()):
            continue
        t, s = (teacher / 100).exp(), (text[chunks.number == number].sum() / 100).exp()
        total = total + weight * 100 * (t * (t.log() - s.log()) + (1 - t) * ((1 - t).log() - (1 - s).log()))
    return total


@pytest.mark.parametrize("piece", [2, 100])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_fused_loss_equals_autograd(piece: int, share: float) -> None:
    torch.manual_seed(piece)
    hidden = torch.randn(7, WIDTH, requires_grad=True)
    matrix = torch.randn(IDS, WIDTH, requires_grad=True)
    targets = torch.randint(0, IDS, (7,))
    listed, ids = torch.log_softmax(torch.randn(7, IDS), dim=1).topk(3, dim=1)
    rest = 1 - listed.exp().sum(1)
    # Chunks reach over the borders of the pieces that logits are made in; number 2 has lost its positions.
    number = torch.tensor([-1, 0, 0, 0, -1, 1, 1])
    inside = number >= 0
    listed = torch.where(inside[:, None], float("-inf"), listed)
    rest = torch.where(inside, 1.0, rest)
    signal, chunks = CoarseSignal(ids, listed, rest), Chunks(number, torch.tensor([-4.0, -1.5, -2.0]))
    loss = FusedLoss(make_objective("forward_kl"), share, chunk=piece, chunk_weight=0.7)
    found = loss(hidden, Head(matrix), targets, signal, 1.0, chunks)
    found.value.backward()
    mine = hidden.grad, matrix.grad
    hidden.grad = matrix.grad = None
    expected = (1 - share) * textbook(hidden, matrix, targets, signal, chunks, 0.7)
    expected = expected + share * torch.nn.functional.cross_entropy(hidden @ matrix.T, targets, reduction="sum")
    expected.backward()
    assert float(found.value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for left, right in zip(mine, (hidden.grad, matrix.grad), strict=True):
        assert left is not None
        assert right is not None
        assert torch.allclose(left, right, rtol=1e-4, atol=1e-5)
    assert float(found.distances[[1, 2, 5]].abs().max()) < 1e-6
    with pytest.raises(SignalError, match="ids"):
        loss(hidden, Head(matrix), None, signal, 1.0, chunks)
