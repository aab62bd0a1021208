"""The vocabulary map: nothing is lost on the way from the teacher's ids to the student's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.core.errors import VocabularyMismatch
from stillroom.signals.signal import CoarseSignal, SparseSignal
from stillroom.signals.vocabulary_map import VocabularyMap


@st.composite
def maps(draw: st.DrawFn) -> VocabularyMap:
    used = draw(st.integers(2, 12))
    padding = draw(st.integers(0, 3))
    pieces = draw(st.lists(st.lists(st.integers(0, used - 1), min_size=0, max_size=4), min_size=3, max_size=30))
    pieces[0] = [0]
    return VocabularyMap.from_pieces(pieces, used + padding, used)


@given(maps(), st.integers(0, 2**31))
def test_dense_mass_is_kept_and_lies_on_first_pieces(vocabulary: VocabularyMap, seed: int) -> None:
    logprobs = (
        torch.randn(5, vocabulary.teacher_size, generator=torch.Generator().manual_seed(seed)).mul(3).log_softmax(1)
    )
    projected = vocabulary.project_dense(logprobs)
    assert projected.shape == (5, vocabulary.student_size)
    assert torch.allclose(projected.exp().sum(1), torch.ones(5), atol=1e-5)
    assert bool((projected[:, vocabulary.student_used :] == float("-inf")).all())
    occurs = vocabulary.first >= 0
    expected = torch.zeros(5, vocabulary.student_size)
    expected.index_add_(1, vocabulary.first[occurs], logprobs.exp()[:, occurs])
    assert torch.allclose(projected.exp(), expected / expected.sum(1, keepdim=True), atol=1e-5)


@given(maps(), st.integers(0, 2**31))
def test_sparse_and_dense_agree(vocabulary: VocabularyMap, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logprobs = torch.randn(4, vocabulary.teacher_size, generator=generator).log_softmax(1)
    logprobs[:, vocabulary.first < 0] = float("-inf")
    logprobs = logprobs.log_softmax(1)
    ids = torch.arange(vocabulary.teacher_size).expand(4, -1)
    sparse = vocabulary.project_sparse(SparseSignal(ids, logprobs.exp()))
    spread = torch.zeros(4, vocabulary.student_size).scatter_add_(1, sparse.ids, sparse.weights)
    assert torch.allclose(spread, vocabulary.project_dense(logprobs).exp(), atol=1e-5)


@given(maps(), st.integers(0, 2**31))
def test_the_mass_of_a_sparse_signal_is_that_of_the_dense_one_on_what_occurs(
    vocabulary: VocabularyMap, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logprobs = torch.randn(4, vocabulary.teacher_size, generator=generator).mul(4).log_softmax(1)
    # Entries in any order, some ids in two halves.
    ids = torch.randperm(vocabulary.teacher_size, generator=generator).repeat(4, 1)
    weights = logprobs.exp().gather(1, ids)
    halved = SparseSignal(torch.cat([ids, ids[:, :2]], 1), torch.cat([weights, weights[:, :2] / 2], 1))
    halved.weights[:, :2] /= 2
    certain = torch.tensor([True, False, False, True])
    sparse = vocabulary.project_sparse(SparseSignal(halved.ids, halved.weights, certain=certain))
    occurs = logprobs.exp()[:, vocabulary.first >= 0].sum(1, keepdim=True)
    spread = torch.zeros(4, vocabulary.student_size).scatter_add_(1, sparse.ids, sparse.weights)
    assert torch.allclose(spread, vocabulary.project_dense(logprobs).exp() * occurs, atol=1e-5)
    assert sparse.certain is certain


@given(maps(), st.integers(0, 2**31), st.data())
def test_a_projected_list_has_distinct_ids_and_all_of_the_mass(
    vocabulary: VocabularyMap, seed: int, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.randn(4, vocabulary.teacher_size, generator=generator).mul(2).softmax(1)
    weights, ids = probabilities.topk(data.draw(st.integers(1, vocabulary.teacher_size)), dim=1)
    rest = probabilities.scatter(1, ids, 0.0).sum(1)
    projected = vocabulary.project_sparse(SparseSignal(ids, weights, unbiased=False, rest=rest))
    listed, others = projected.shares()
    assert torch.allclose(listed.sum(1) + others, torch.ones(4), atol=1e-5)
    reached = set(vocabulary.first[vocabulary.first >= 0].tolist())
    for row in range(4):
        named = projected.ids[row][projected.weights[row] > 0].tolist()
        assert len(set(named)) == len(named)
        assert set(named) <= reached
        # By hand: what is listed and occurs, by first sub-token, over all that is not known never to occur.
        mass = torch.zeros(vocabulary.student_size)
        first = vocabulary.first[ids[row]]
        mass.index_add_(0, first[first >= 0], weights[row][first >= 0])
        # Where no sub-token is left for them, the others are among the listed.
        left = float(rest[row]) if set(named) != reached else 0.0
        if not named:
            assert float(others[row]) == 1.0
            continue
        expected = mass / (mass.sum() + left)
        found = torch.zeros(vocabulary.student_size).scatter_add_(0, projected.ids[row], listed[row])
        assert torch.allclose(found, expected, atol=1e-5)


def test_a_teacher_that_rules_out_all_that_occurs_asks_for_nothing() -> None:
    vocabulary = VocabularyMap.from_pieces([[0], [1], []], 2, 2)
    never = float("-inf")
    dense = vocabulary.project_dense(torch.tensor([[never, never, 0.0], [-5000.0, -5001.0, 0.0]]))
    assert dense[0].tolist() == [never, never]
    assert torch.allclose(dense[1], torch.tensor([0.0, -1.0]).log_softmax(0), atol=1e-3)
    coarse = vocabulary.project_coarse(
        CoarseSignal(
            torch.tensor([[2, 0], [2, 0]]), torch.tensor([[0.0, never], [-1.0, -2.0]]), torch.tensor([0.0, 0.5])
        )
    )
    assert coarse.rest[0] == 1.0
    assert not bool(coarse.listed[0].any())


def test_what_is_not_listed_is_nothing_where_all_that_occurs_is_listed() -> None:
    vocabulary = VocabularyMap.from_pieces([[0], [0], [1], []], 3, 3)
    logprobs = torch.tensor([[0.5, 0.25, 0.125]]).log()
    coarse = vocabulary.project_coarse(CoarseSignal(torch.tensor([[0, 1, 2]]), logprobs, torch.tensor([0.125])))
    assert float(coarse.rest) == 0.0
    assert float(coarse.logprobs.exp().sum()) == pytest.approx(1.0)


@given(maps(), st.data())
def test_expansion_says_where_each_piece_came_from(vocabulary: VocabularyMap, data: st.DataObject) -> None:
    possible = (vocabulary.lengths > 0).nonzero().squeeze(1).tolist()
    ids = data.draw(st.lists(st.sampled_from(possible), max_size=20))
    pieces, source = vocabulary.expand(torch.tensor(ids, dtype=torch.int64))
    expected = [
        (piece, place)
        for place, index in enumerate(ids)
        for piece in vocabulary.pieces[vocabulary.offsets[index] : vocabulary.offsets[index + 1]].tolist()
    ]
    assert list(zip(pieces.tolist(), source.tolist(), strict=True)) == expected


def test_small_probabilities_of_kept_ids_keep_their_value() -> None:
    vocabulary = VocabularyMap.from_pieces([[0], [1], [1, 0]], 2, 2)
    logprobs = torch.tensor([[0.0, -200.0, -201.0], [-300.0, 0.0, -1.0]])
    projected = vocabulary.project_dense(logprobs)
    assert projected[1, 0] == -300.0
    alone = VocabularyMap.from_pieces([[0], [1], []], 2, 2).project_dense(logprobs)
    assert torch.allclose(alone[0], torch.tensor([0.0, -200.0]))


def test_identity_hands_signals_through() -> None:
    vocabulary = VocabularyMap.identity(7)
    logprobs = torch.randn(2, 7)
    assert vocabulary.project_dense(logprobs) is logprobs
    assert vocabulary.is_identity
    assert torch.equal(vocabulary.expand(torch.tensor([3, 1]))[0], torch.tensor([3, 1]))


@given(maps())
@settings(max_examples=20)
def test_saved_and_loaded(tmp_path_factory: pytest.TempPathFactory, vocabulary: VocabularyMap) -> None:
    path = tmp_path_factory.mktemp("map") / "vocabulary.safetensors"
    vocabulary.save(path)
    again = VocabularyMap.load(path)
    assert torch.equal(again.pieces, vocabulary.pieces)
    assert torch.equal(again.offsets, vocabulary.offsets)
    assert (again.student_size, again.student_used) == (vocabulary.student_size, vocabulary.student_used)


def test_an_id_without_pieces_is_refused_by_number() -> None:
    vocabulary = VocabularyMap.from_pieces([[0], []], 1, 1)
    for wrong in (1, 2, -1):
        with pytest.raises(VocabularyMismatch, match=rf"id {wrong},"):
            vocabulary.expand(torch.tensor([0, wrong]))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(VocabularyMismatch, match="cannot be read"):
        VocabularyMap.load(path)
