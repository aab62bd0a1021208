"""Batches carry signals to the right positions in the student's ids, and errors of the reading thread arrive."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.signals.batches import BatchSource
from stillroom.signals.signal import DenseSignal, SparseSignal
from stillroom.signals.vocabulary_map import VocabularyMap

ROWS = 12


def a_text() -> Sequences:
    ids = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 0]])
    segments = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, -1]], dtype=torch.int32)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 1] = False
    return Sequences(
        ids, segments, mask, segments, torch.ones(2, 6, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    )


class Said:
    """A cache that says the target itself at every position."""

    def __init__(self, text: Sequences, dense: bool) -> None:
        self.text, self.dense = text, dense

    def read(self, digests):
        rows = [self.text.digests.index(digest) for digest in digests]
        targets = torch.cat([row[row != IGNORED] for row in self.text.targets[rows]])
        counts = [int((row != IGNORED).sum()) for row in self.text.targets[rows]]
        if self.dense:
            logprobs = torch.full((len(targets), ROWS), -30.0)
            return DenseSignal(logprobs.scatter_(1, targets[:, None], 0.0)), counts
        return SparseSignal(targets[:, None], torch.full((len(targets), 1), 0.5)), counts

    def entropy(self, digest):
        return 2.0


class RuledOut(Said):
    """A cache that gives all mass to the last id, at every position."""

    def read(self, digests):
        said, counts = super().read(digests)
        logprobs = torch.full_like(said.logprobs, math.log(1e-38))
        logprobs[:, -1] = 0.0
        return DenseSignal(logprobs), counts


def test_positions_that_teach_nothing_are_counted():
    text = a_text()
    lacks_the_last = VocabularyMap.from_pieces([[index] for index in range(ROWS - 1)] + [[]], ROWS, ROWS - 1)
    ids = text.ids.clamp(max=ROWS - 2)
    text = dataclasses.replace(text, ids=ids)
    batch = BatchSource(text, lacks_the_last, RuledOut(text, True)).batch([0, 1])
    assert batch.silent == len(batch.targets) > 0
    assert batch.to(torch.device("cpu")).silent == batch.silent
    assert BatchSource(text, lacks_the_last, Said(text, True)).batch([0, 1]).silent == 0


def split_two() -> VocabularyMap:
    """The student predicts the teacher's id 3 as 0, 1, and 9 as 1, 0; every other id is its own."""
    pieces = [[index] for index in range(ROWS)]
    pieces[3], pieces[9] = [0, 1], [1, 0]
    return VocabularyMap.from_pieces(pieces, ROWS, ROWS)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("order", [[0, 1], [1, 0], [1]])
def test_the_signal_stands_at_the_target_that_it_speaks_of(dense, order):
    text = a_text()
    batch = BatchSource(text, VocabularyMap.identity(ROWS), Said(text, dense)).batch(order)
    expected = text.targets[order].flatten()
    assert torch.equal(batch.rows, (expected != IGNORED).nonzero().squeeze(1))
    assert torch.equal(batch.targets, expected[expected != IGNORED])
    said = batch.signal.logprobs.argmax(1) if dense else batch.signal.ids[:, 0]
    assert torch.equal(said, batch.targets)
    assert batch.left_out == (0.0 if dense else 2.0 * len(order))


@pytest.mark.parametrize("dense", [False, True])
def test_inside_an_id_that_the_student_lacks_the_next_piece_is_certain(dense):
    text = a_text()
    source = BatchSource(text, split_two(), Said(text, dense))
    batch = source.batch([0, 1])
    # 1 2 0 1 | 4 5 6 and 7 8 1 0 10 11 behind a target that is not learned
    assert batch.ids.tolist() == [[1, 2, 0, 1, 4, 5, 6], [7, 8, 1, 0, 10, 11, 0]]
    assert batch.positions.tolist()[0] == [0, 1, 2, 3, 0, 1, 2]
    assert batch.targets.tolist() == [2, 0, 1, 5, 6, 1, 0, 10, 11]
    said = batch.signal.logprobs.argmax(1) if dense else batch.signal.ids[:, 0]
    assert said.tolist() == batch.targets.tolist()
    if not dense:
        assert batch.signal.weights[:, 0].tolist() == [0.5, 0.5, 1.0, 0.5, 0.5, 0.5, 1.0, 0.5, 0.5]
    assert source.origin(0).tolist() == [0, 1, 2, 2, 3, 4, 5]
    assert len(source.speaking(0)) == 4
    assert source.targets == 9


def test_streams_keep_the_order_and_pass_errors_on():
    text = a_text()
    source = BatchSource(text, VocabularyMap.identity(ROWS), Said(text, False))
    order = [[0], [1], [1, 0]]
    found = [batch.ids.tolist() for batch in source.stream(order)]
    assert found == [source.batch(indices).ids.tolist() for indices in order]
    with pytest.raises(IndexError):
        list(source.stream([[0], [5]]))
    early = source.stream(order * 10)
    next(early)
    early.close()


def test_a_batch_moves_with_its_signal():
    text = a_text()
    for dense in (False, True):
        batch = BatchSource(text, VocabularyMap.identity(ROWS), Said(text, dense)).batch([0])
        moved = batch.to(torch.device("meta"))
        for field in dataclasses.fields(moved.signal):
            value = getattr(moved.signal, field.name)
            assert not isinstance(value, torch.Tensor) or value.device.type == "meta"
        assert moved.entropy == batch.entropy
        assert len(batch.signal) == 4
