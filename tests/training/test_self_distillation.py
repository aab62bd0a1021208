"""The teacher as its own student: loss 0 with every codec, and also where the student lacks some of its ids."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch.nn import functional

from benchmarks.self_kl import codecs, self_kl, vocabularies
from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.models.forward import Head
from stillroom.pipeline import run
from stillroom.recipe.capture import DenseCodec, ThresholdCodec, TopKCodec
from stillroom.recipe.recipe import Recipe
from stillroom.signals.batches import Batch, BatchSource
from stillroom.signals.cache.registry import signal_kind
from stillroom.signals.signal import DenseSignal, Signal, SignalKind, SparseSignal
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.teachers.projected import FILE
from stillroom.training.losses.fused import FusedLoss
from stillroom.training.losses.registry import make_objective, objective_names
from stillroom.training.stage import meaning_of_kl

IDS = 12
KEPT = (0, 1, 2, 4, 5, 6, 7, 8, 10)
"""Ids that the student has; 3 and 9 are said in two, and 11 never occurs."""


@pytest.mark.parametrize("vocabulary", vocabularies())
@pytest.mark.parametrize("name", codecs())
def test_the_teacher_as_its_own_student_validates_at_zero_within_noise(name: str, vocabulary: str) -> None:
    value, error = self_kl(
        codecs()[name], vocabulary=vocabularies()[vocabulary], sequences=240 if vocabulary == "whole" else 80
    )
    if vocabulary == "much padding" and signal_kind(codecs()[name]) in (SignalKind.PARTIAL, SignalKind.COARSE):
        # A list does not say how much of the others' mass is on ids that never occur.
        assert 0 < value < 0.005
        return
    assert abs(value) <= 3 * error
    assert error < 0.02, "an error that hides a bias of some percent would prove nothing"


@pytest.mark.parametrize("vocabulary", ["trimmed", "much padding"])
def test_an_entropy_that_is_estimated_from_the_draw_makes_the_kl_a_lower_bound(
    vocabulary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the teacher at hand; it is closer than with the entropy over the teacher's own ids, as release 0.1.0 had it."""
    ids = vocabularies()[vocabulary]
    value, error = self_kl(ThresholdCodec(), vocabulary=ids, measured=False, sequences=40)
    monkeypatch.setattr(VocabularyMap, "least_lost", lambda _, signal: torch.zeros(len(signal)))
    before, _ = self_kl(ThresholdCodec(), vocabulary=ids, measured=False, sequences=40)
    assert before + error < value < -3 * error


def heavier(signal: Signal) -> Signal:
    """One percent too much weight on what was sampled; a rest that is a twentieth too large; a teacher that is too sure."""
    if isinstance(signal, DenseSignal):
        return DenseSignal(torch.log_softmax(1.02 * signal.logprobs, 1))
    if signal.rest is not None:
        return dataclasses.replace(signal, rest=1.05 * signal.rest)
    return dataclasses.replace(signal, weights=1.01 * signal.weights)


def unspoken(signal: Signal) -> Signal:
    """The kept ids taken for the whole distribution, as release 0.1.0 did."""
    assert isinstance(signal, SparseSignal)
    return SparseSignal(signal.ids, signal.weights)


@pytest.mark.parametrize(
    ("codec", "planted"),
    [
        (ThresholdCodec(), heavier),
        (ThresholdCodec(tau=1 / 8), heavier),
        (TopKCodec(), heavier),
        (DenseCodec(), heavier),
        (TopKCodec(), unspoken),
    ],
)
def test_a_planted_bias_is_found(codec: Any, planted: Any) -> None:
    value, error = self_kl(codec, planted=planted)
    assert abs(value) > 3 * error


def test_the_old_reading_of_top_k_made_the_teacher_worse_than_nothing() -> None:
    value, _ = self_kl(TopKCodec(), planted=unspoken)
    assert value < -1


def trimmed() -> VocabularyMap:
    number = {teacher: student for student, teacher in enumerate(KEPT)}
    pieces = [[number[index]] if index in number else [] for index in range(IDS)]
    pieces[3], pieces[9] = [number[0], number[1]], [number[1], number[0]]
    return VocabularyMap.from_pieces(pieces, len(KEPT), len(KEPT))


class Cache:
    """Random teacher's distributions, or their eight most probable ids."""

    def __init__(self, text: Sequences, top: int | None) -> None:
        generator = torch.Generator().manual_seed(0)
        counts = [int((row != IGNORED).sum()) for row in text.targets]
        self.logprobs = {
            digest: torch.log_softmax(2 * torch.randn(count, IDS, generator=generator), 1)
            for digest, count in zip(text.digests, counts, strict=True)
        }
        self.top = top

    def read(self, digests: list[str]) -> tuple[Signal, list[int]]:
        logprobs = torch.cat([self.logprobs[digest] for digest in digests])
        counts = [len(self.logprobs[digest]) for digest in digests]
        if self.top is None:
            return DenseSignal(logprobs), counts
        weights, ids = logprobs.exp().topk(self.top, 1)
        # With every id listed nothing is left, not what rounding leaves.
        rest = torch.zeros(len(ids)) if self.top == IDS else 1 - weights.sum(1)
        return SparseSignal(ids, weights, False, rest), counts

    def entropy(self, digest: str) -> float:
        return -float((self.logprobs[digest].exp() * self.logprobs[digest]).sum())


def a_batch(top: int | None = None) -> Batch:
    ids = torch.tensor([[1, 3, 2, 9, 4, 3], [7, 8, 9, 10, 3, 0]])
    segments = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, -1]], dtype=torch.int32)
    mask = torch.ones(2, 6, dtype=torch.bool)
    text = Sequences(
        ids, segments, mask, segments, torch.ones(2, 6, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    )
    cache: Any = Cache(text, top)
    return BatchSource(text, trimmed(), cache).batch([0, 1])


def loss_of(name: str, batch: Batch, logits: torch.Tensor, temperature: float = 1.0) -> Any:
    """The fused loss of a student that has these logits."""
    hidden = torch.eye(len(logits))
    loss = FusedLoss(make_objective(name), temperature=temperature, chunk=4, biased=True)
    return loss(hidden, Head(logits.T), batch.targets, batch.signal)


def ideal(batch: Batch) -> torch.Tensor:
    """Logits of the student that says all that the signal says."""
    assert isinstance(batch.signal, DenseSignal)
    return batch.signal.logprobs.clamp_min(-60.0)


@pytest.mark.parametrize("name", sorted(objective_names()))
def test_the_ideal_student_with_fewer_ids_has_no_loss_and_no_gradient(name: str) -> None:
    batch = a_batch()
    assert batch.signal is not None
    assert batch.signal.certain is not None
    assert batch.signal.certain.sum() >= 4
    logits = ideal(batch).requires_grad_(True)
    result = loss_of(name, batch, logits)
    result.value.backward()
    assert logits.grad is not None
    assert abs(float(result.value.detach())) <= 1e-6
    # The gradient of the overlap of p and q jumps where p = q: rounding decides on which side it is.
    if name not in ("total_variation", "log_acceptance"):
        assert float(logits.grad.abs().max()) <= 1e-6


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jensen_shannon", "total_variation"])
def test_with_fewer_ids_loss_and_gradient_are_those_of_autograd(name: str, temperature: float) -> None:
    """A divergence where the teacher speaks, cross-entropy inside the ids that the student lacks; float64 by autograd."""
    torch.manual_seed(1)
    batch = a_batch()
    assert isinstance(batch.signal, DenseSignal)
    assert batch.signal.certain is not None
    logits = torch.randn(len(batch.signal), len(KEPT), requires_grad=True)
    result = loss_of(name, batch, logits, temperature)
    result.value.backward()
    # 367 nats per token were seen here with reverse KL.
    assert float(result.distances.max()) < 20
    exact = logits.detach().double().requires_grad_(True)
    certain = batch.signal.certain
    p = batch.signal.logprobs[~certain].double().exp()
    q = torch.softmax(exact[~certain] / temperature, 1)
    middle = (p + q) / 2
    taught = {
        "forward_kl": lambda: (p * (p / q).log()).sum(),
        "reverse_kl": lambda: (q * (q / p).log()).sum(),
        "jensen_shannon": lambda: 0.5 * ((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()),
        "total_variation": lambda: 0.5 * (p - q).abs().sum(),
    }[name]()
    text = functional.cross_entropy(exact[certain], batch.targets[certain], reduction="sum")
    expected = (temperature**2 * taught + text) / len(exact)
    expected.backward()
    assert logits.grad is not None
    assert exact.grad is not None
    assert float(result.value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert torch.allclose(logits.grad.double(), exact.grad, atol=1e-6)


def test_a_partial_signal_in_fewer_ids_has_each_once_and_keeps_all_mass() -> None:
    batch = a_batch(8)
    signal = batch.signal
    assert isinstance(signal, SparseSignal)
    listed, rest = signal.shares()
    assert torch.allclose(listed.sum(1) + rest, torch.ones(len(signal)), atol=1e-6)
    for ids, weights in zip(signal.ids, signal.weights, strict=True):
        named = ids[weights > 0].tolist()
        assert len(named) == len(set(named))
    # Of the ideal student it asks nothing but what the others hold for listed sub-tokens, which the signal cannot know.
    result = loss_of("forward_kl", batch, ideal(a_batch()))
    assert bool((result.distances >= -1e-6).all())
    assert float(result.distances.mean()) < 0.05
    assert batch.left_out == 0.0


def test_all_ids_kept_project_as_the_dense_signal_does() -> None:
    """With every id listed nothing is lost: the partial signal's loss is the dense one's, also where an id never occurs."""
    torch.manual_seed(2)
    logits = torch.randn(len(a_batch().targets), len(KEPT))
    dense, partial = (loss_of("forward_kl", a_batch(top), logits).distances for top in (None, IDS))
    assert torch.allclose(dense, partial, atol=1e-5)


def test_what_the_validation_kl_is_is_said() -> None:
    assert meaning_of_kl(ThresholdCodec(), 1.0) == "KL(teacher ‖ student), nats per token"
    assert meaning_of_kl(TopKCodec(), 1.0).endswith("of the kept ids and all others as one")
    assert meaning_of_kl(DenseCodec(), 2.0).endswith("at temperature 2")
    assert math.isfinite(self_kl(TopKCodec(k=2))[0])


def test_a_run_learns_from_the_most_probable_ids_where_it_is_asked_to_and_says_what_its_kl_is(
    small_recipe: Any, tmp_path: Path
) -> None:
    settings = small_recipe(
        tiny_model("llama", tmp_path / "teacher", layers=2), student={"kind": "shrink", "layers": 1}
    )
    settings["capture"] = {"codec": {"kind": "top_k", "k": 8}, "temperature": 2.0}
    settings["distill"] |= {"biased": True, "temperature": 2.0, "epochs": 2}
    made = run(Recipe.model_validate(settings), tmp_path, quiet=True, until="distill")
    history = json.loads((made.path / "distill" / "history.json").read_text(encoding="utf-8"))
    said = "KL(teacher ‖ student), nats per token, of the kept ids and all others as one, at temperature 2"
    record = made.stage("distill").record
    assert record is not None
    assert history["kl_is"] == record["notes"]["validation_kl_is"] == said
    kls = [row["kl"] for row in history["validations"]]
    assert 0 < min(kls) < kls[0] < 10


def test_with_a_trimmed_vocabulary_a_run_starts_at_the_kl_that_whole_distributions_give(
    small_recipe: Any, tmp_path: Path
) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher", layers=2)
    found = {}
    for kind in ("dense", "threshold"):
        student = {"kind": "shrink", "layers": 1, "vocabulary": {"keep": "corpus", "size": 320}}
        settings = small_recipe(teacher, student=student)
        settings["name"], settings["capture"] = kind, {"codec": {"kind": kind}}
        made = run(Recipe.model_validate(settings), tmp_path, quiet=True, until="distill")
        history = json.loads((made.path / "distill" / "history.json").read_text(encoding="utf-8"))
        assert history["kl_is"] == "KL(teacher ‖ student), nats per token"
        found[kind] = history["validations"][0]["kl"]
        assert (made.path / FILE).is_file() == (kind == "threshold")
    assert found["threshold"] == pytest.approx(found["dense"], abs=0.1)
