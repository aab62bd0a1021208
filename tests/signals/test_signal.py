"""What a signal means: which ways of writing it are the same teacher, and that projection and cutting keep its mass."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillroom.core.errors import SignalError, VocabularyMismatch
from stillroom.signals.signal import CoarseSignal, DenseSignal, Signal, SparseSignal
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.training.losses.forward_kl import ForwardKL
from stillroom.training.losses.objective import rows_of
from stillroom.training.losses.reverse_kl import ReverseKL

IDS = 11
"""Ids of the vocabulary."""


def dense(positions: int, seed: int, ids: int = IDS) -> DenseSignal:
    logits = torch.randn(positions, ids, generator=torch.Generator().manual_seed(seed)).mul(3)
    return DenseSignal(logits.log_softmax(1))


@st.composite
def sparse_signals(draw: st.DrawFn) -> SparseSignal:
    """Any sparse signal: ids in any order and more than once, weights of zero, positions without any mass."""
    positions, entries = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    shape = positions * entries
    ids = draw(st.lists(st.integers(0, IDS - 1), min_size=shape, max_size=shape))
    weights = draw(st.lists(st.sampled_from((0.0, 0.03125, 0.25, 0.5, 1.0)), min_size=shape, max_size=shape))
    return SparseSignal(
        torch.tensor(ids, dtype=torch.int64).reshape(positions, entries),
        torch.tensor(weights, dtype=torch.float32).reshape(positions, entries),
    )


def spread(signal: SparseSignal, ids: int = IDS) -> torch.Tensor:
    """The estimate over all ids, [N, V]: entries of one id add up, an id without an entry has probability zero."""
    return torch.zeros(len(signal), ids).scatter_add_(1, signal.ids, signal.weights)


def said(signal: Signal, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and gradients that a student of this signal gets."""
    return ForwardKL().chunk(dense(len(signal), seed).logprobs.clone(), signal)


def same(one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return all(torch.allclose(left, right, atol=1e-5) for left, right in zip(one, other, strict=True))


@given(sparse_signals(), st.randoms(use_true_random=False))
def test_the_order_of_entries_means_nothing(signal: SparseSignal, random: object) -> None:
    order = torch.randperm(signal.ids.shape[1], generator=torch.Generator().manual_seed(random.randrange(99)))  # type: ignore[attr-defined]
    assert same(said(signal), said(SparseSignal(signal.ids[:, order], signal.weights[:, order])))


@given(sparse_signals(), st.integers(0, IDS - 1), st.integers(1, 3))
def test_filling_with_weight_zero_and_any_id_means_nothing(signal: SparseSignal, filler: int, entries: int) -> None:
    ids = torch.cat([signal.ids, torch.full((len(signal), entries), filler)], dim=1)
    weights = torch.cat([signal.weights, torch.zeros(len(signal), entries)], dim=1)
    assert same(said(signal), said(SparseSignal(ids, weights)))


@given(sparse_signals())
def test_entries_of_one_id_add_up_and_missing_ids_have_probability_zero(signal: SparseSignal) -> None:
    whole = SparseSignal(torch.arange(IDS).expand(len(signal), -1), spread(signal))
    assert same(said(signal), said(whole))
    losses, gradient = said(signal)
    student = dense(len(signal), 0).logprobs
    # An id that the teacher does not name is pushed down by exactly what the student gives it.
    missing = spread(signal) == 0
    pushed = student.exp() * signal.weights.sum(1, keepdim=True)
    assert torch.allclose(gradient[missing], pushed[missing], atol=1e-6)
    assert torch.allclose(losses, -(spread(signal) * student).sum(1), atol=1e-5)


@given(st.integers(1, 4), st.integers(0, 2**31))
def test_a_dense_signal_and_all_its_entries_teach_the_same(positions: int, seed: int) -> None:
    whole = dense(positions, seed)
    entries = SparseSignal(torch.arange(IDS).expand(positions, -1), whole.logprobs.exp())
    (divergence, one), (cross_entropy, other) = said(whole), said(entries)
    entropy = -(whole.logprobs.exp() * whole.logprobs).sum(1)
    assert torch.allclose(one, other, atol=1e-6)
    assert torch.allclose(divergence + entropy, cross_entropy, atol=1e-4)
    assert bool((divergence >= -1e-6).all())


@given(sparse_signals(), st.data())
def test_cut_anywhere_and_put_together_a_signal_is_the_same(signal: SparseSignal, data: st.DataObject) -> None:
    middle = data.draw(st.integers(0, len(signal)))
    parts = [rows_of(signal, 0, middle), rows_of(signal, middle, len(signal))]
    assert [len(part) for part in parts] == [middle, len(signal) - middle]
    assert torch.equal(torch.cat([part.weights for part in parts]), signal.weights)  # type: ignore[union-attr]
    assert torch.equal(torch.cat([part.ids for part in parts]), signal.ids)  # type: ignore[union-attr]
    biased = dataclasses.replace(signal, unbiased=False)
    assert not rows_of(biased, 0, middle).unbiased  # type: ignore[union-attr]
    whole = dense(len(signal), 1)
    assert len(whole) == len(signal)
    assert torch.equal(rows_of(whole, middle, len(whole)).logprobs, whole.logprobs[middle:])  # type: ignore[union-attr]


@given(sparse_signals(), st.data())
def test_projection_keeps_the_mass_of_what_the_student_can_say(signal: SparseSignal, data: st.DataObject) -> None:
    used = data.draw(st.integers(1, 6))
    piece = st.lists(st.integers(0, used - 1), max_size=3)
    pieces = data.draw(st.lists(piece, min_size=IDS, max_size=IDS))
    pieces[0] = [0]  # somebody has to be able to say something
    vocabulary = VocabularyMap.from_pieces(pieces, used + 2, used)
    projected = vocabulary.project_sparse(signal)
    sayable = torch.tensor([float(bool(piece)) for piece in pieces])
    before = spread(signal)
    after = spread(projected, vocabulary.student_size)
    assert torch.allclose(after.sum(1), (before * sayable).sum(1), atol=1e-6)
    assert bool((after[:, used:] == 0).all())
    assert bool((projected.weights >= 0).all())
    for id_ in range(used):
        from_ids = [number for number, piece in enumerate(pieces) if piece and piece[0] == id_]
        assert torch.allclose(after[:, id_], before[:, from_ids].sum(1), atol=1e-6)
    assert projected.unbiased == signal.unbiased


def test_a_map_that_changes_nothing_gives_the_signal_itself() -> None:
    vocabulary = VocabularyMap.from_pieces([[number] for number in range(IDS)], IDS, IDS)
    signal = SparseSignal(torch.tensor([[3, 3]]), torch.tensor([[0.5, 0.5]]))
    assert vocabulary.project_sparse(signal) is signal


def test_objectives_refuse_what_would_be_wrong_unnoticed() -> None:
    signal = SparseSignal(torch.tensor([[IDS - 1]]), torch.tensor([[1.0]]))
    ForwardKL().check(signal, IDS)
    with pytest.raises(VocabularyMismatch, match=f"names id {IDS - 1}"):
        ForwardKL().check(signal, IDS - 1)
    with pytest.raises(SignalError, match="not linear"):
        ReverseKL().check(signal, IDS)
    ReverseKL().check(dense(2, 0), IDS)
    with pytest.raises(VocabularyMismatch, match=f"has {IDS} ids"):
        ReverseKL().check(dense(2, 0), IDS + 1)


def test_a_signal_is_not_exchanged_in_place() -> None:
    signal = dense(1, 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        signal.logprobs = torch.zeros(1, IDS)  # type: ignore[misc]


def listed_of(logprobs: torch.Tensor, k: int) -> CoarseSignal:
    """The k most probable ids of each position, exactly."""
    best, ids = logprobs.topk(k, dim=1)
    return CoarseSignal(ids, best, (1.0 - best.double().exp().sum(1)).clamp_min(0.0).float())


PIECES = [[0], [1], [2], [3], [0, 1], [0, 2], [1, 3], [4], [], [2, 2, 2], [5]]
"""Eleven ids of a teacher in the pieces of a student with six: several ids have one first piece, and one never occurs."""


@given(st.integers(1, IDS), st.integers(0, 2**16))
def test_a_projected_coarse_signal_is_exact_and_its_ids_are_distinct(k: int, seed: int) -> None:
    vocabulary = VocabularyMap.from_pieces(PIECES, 6, 6)
    teacher = dense(3, seed).logprobs
    # An id that never occurs has hardly any mass in a real teacher; here it has none.
    teacher[:, 8] = float("-inf")
    teacher = teacher.log_softmax(1)
    projected = vocabulary.project_coarse(listed_of(teacher, k))
    exact = vocabulary.project_dense(teacher)
    assert projected.fault(6) is None
    for row in range(3):
        where = projected.listed[row]
        ids = projected.ids[row][where]
        assert torch.allclose(projected.logprobs[row][where], exact[row][ids], atol=1e-4)
        assert float(projected.rest[row]) == pytest.approx(1 - float(exact[row][ids].exp().sum()), abs=1e-5)
    if k == IDS:
        assert int(projected.listed.sum(1).min()) == 6


def test_two_listed_ids_with_one_first_piece_are_one_event() -> None:
    """The trap: counted twice, the student's mass of all others went to nothing, and training ended above its start."""
    vocabulary = VocabularyMap.from_pieces([[0], [0, 1], [1], [2]], 3, 3)
    signal = CoarseSignal(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.25]]).log(), torch.tensor([0.25]))
    projected = vocabulary.project_coarse(signal)
    assert projected.listed.tolist() == [[True, False]]
    assert projected.ids[0, 0] == 0
    assert projected.logprobs[0, 0].exp() == pytest.approx(0.75)
    # With the second of them not listed the first piece is not known exactly, and is part of the others.
    half = CoarseSignal(torch.tensor([[0, 2]]), torch.tensor([[0.5, 0.25]]).log(), torch.tensor([0.25]))
    known = vocabulary.project_coarse(half)
    assert known.ids[known.listed].tolist() == [1]
    assert float(known.rest) == pytest.approx(0.75)


def test_what_no_coarse_signal_can_say_is_named() -> None:
    ids, log = torch.tensor([[1, 2]]), torch.tensor([[0.5, 0.25]]).log()
    assert CoarseSignal(ids, log, torch.tensor([0.25])).fault(3) is None
    assert "twice" in str(CoarseSignal(torch.tensor([[1, 1]]), log, torch.tensor([0.25])).fault(3))
    assert "not one of" in str(CoarseSignal(ids, log, torch.tensor([0.25])).fault(2))
    assert "sum to 1" in str(CoarseSignal(ids, log, torch.tensor([0.5])).fault(3))
    assert "above 1" in str(CoarseSignal(ids, log + 2, torch.tensor([0.0])).fault(3))
    assert "not a number" in str(CoarseSignal(ids, log * float("nan"), torch.tensor([0.25])).fault(3))
