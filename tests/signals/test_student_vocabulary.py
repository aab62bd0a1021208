"""The vocabulary map: nothing is lost on the way from the teacher's ids to the student's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.core.errors import VocabularyMismatch
from stillroom.signals.signal import SparseSignal
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
