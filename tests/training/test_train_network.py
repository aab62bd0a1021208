"""The student and its fused loss: exact in float32 for every family, and close in bfloat16."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, make_model
from torch import nn
from torch.nn import functional

from stillroom.core.errors import UnsupportedModel
from stillroom.signals.batches import Batch
from stillroom.signals.signal import DenseSignal, SparseSignal
from stillroom.training.losses.fused import FusedLoss
from stillroom.training.losses.registry import make_objective
from stillroom.training.network import LossNetwork


def a_batch(vocabulary_size: int, signal: str = "dense", seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    ids = torch.randint(vocabulary_size, (2, 40))
    positions = torch.stack([torch.arange(40), torch.cat([torch.arange(15), torch.arange(25)])])
    rows = torch.arange(80)[torch.rand(80) < 0.7]  # the others are masked labels
    targets = torch.randint(vocabulary_size, rows.shape)
    if signal == "sparse":
        said = SparseSignal(torch.randint(vocabulary_size, (len(rows), 4)), torch.full((len(rows), 4), 0.25))
    else:
        said = DenseSignal(torch.log_softmax(torch.randn(len(rows), vocabulary_size), dim=1))
    return Batch(ids, positions, rows, targets, said)


def gradient(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("signal", ["dense", "sparse"])
def test_gradients_of_all_weights_equal_autograds_on_the_models_logits(family, signal):
    used, share = 60, 0.3
    model = make_model(family, rows=64, layers=2)  # the last four rows are padding
    batch = a_batch(used, signal)
    loss = FusedLoss(make_objective("forward_kl"), share, 1.0, used, chunk=7)
    network = LossNetwork(model, torch.float32)
    assert network.worker is model
    value = network(batch, loss, 56.0).value
    value.backward()
    network.collect()
    ours = gradient(model)
    model.zero_grad()
    logits = model(input_ids=batch.ids, position_ids=batch.positions, use_cache=False).logits.flatten(0, 1)[
        batch.rows, :used
    ]
    student = torch.log_softmax(logits, dim=1)
    if isinstance(batch.signal, SparseSignal):
        distance = -(batch.signal.weights * student.gather(1, batch.signal.ids)).sum()
    else:
        teacher = batch.signal.logprobs
        distance = (teacher.exp() * (teacher - student)).sum()
    entropy = functional.nll_loss(student, batch.targets, reduction="sum")
    expected = ((1 - share) * distance + share * entropy) / 56.0
    expected.backward()
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    theirs = gradient(model)
    assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_a_bfloat16_copy_computes_and_float32_weights_learn(family):
    model = make_model(family, rows=64, layers=2)
    exact = make_model(family, rows=64, layers=2)
    batch = a_batch(64)
    loss = FusedLoss(make_objective("forward_kl"))
    network = LossNetwork(model, torch.bfloat16)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    worker = network.worker
    assert (worker.get_output_embeddings().weight is worker.get_input_embeddings().weight) is tied
    value = network(batch, loss, 50.0).value
    value.backward()
    network.collect()
    expected = LossNetwork(exact, torch.float32)(batch, loss, 50.0).value
    expected.backward()
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=2e-2)
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    assert float((gradient(model) - gradient(exact)).norm()) <= 5e-2 * float(gradient(exact).norm())
    assert all(parameter.grad is None for parameter in worker.parameters())


def test_gradients_of_micro_batches_add_up_in_float32():
    model = make_model("llama", rows=64, layers=2)
    network = LossNetwork(model, torch.bfloat16)
    loss = FusedLoss(make_objective("forward_kl"))
    parts = []
    for seed in (1, 2):
        network(a_batch(64, seed=seed), loss, 50.0).value.backward()
        network.collect()
        parts.append(gradient(model).clone())
        model.zero_grad()
    for seed in (1, 2):
        network(a_batch(64, seed=seed), loss, 50.0).value.backward()
        network.collect()
    assert torch.equal(gradient(model), parts[0] + parts[1])


def test_the_copy_follows_the_weights():
    model = make_model("llama", rows=64, layers=2)
    network = LossNetwork(model, torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    network.refresh()
    for own, worker in zip(model.parameters(), network.worker.parameters(), strict=True):
        assert torch.equal(own.bfloat16(), worker)
    frequencies = [buffer.dtype for name, buffer in network.worker.named_buffers() if "inv_freq" in name]
    assert frequencies
    assert set(frequencies) == {torch.float32}


def test_dropout_is_refused():
    model = make_model("llama", rows=64, layers=2)
    model.add_module("noise", nn.Dropout(0.1))
    with pytest.raises(UnsupportedModel, match="dropout"):
        LossNetwork(model, torch.float32)
