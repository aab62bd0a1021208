"""Packing: nothing lost, nothing twice, no piece across documents, no waste."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.corpus.packing import Packer
from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.corpus.tokens import Tokens

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def documents(lengths: list[int]) -> list[Tokens]:
    """Every token has another id, so that each can be followed."""
    ends = np.cumsum(lengths)
    return [
        Tokens(np.arange(end - size, end) + 1, np.arange(size) % 3 != 1, np.arange(size, dtype=np.int32) % 5)
        for end, size in zip(ends, lengths, strict=True)
    ]


def packed(
    lengths: list[int], length: int, cross: bool = False, limit: int | None = None, tail: bool = True
) -> Sequences:
    packer = Packer(length, cross, limit)
    for index, tokens in enumerate(documents(lengths)):
        if not packer.full:
            packer.add(tokens, index % 3)
    return packer.finish(keep_tail=tail)


@settings(max_examples=200)
@given(lengths=LENGTHS, length=st.integers(8, 20), cross=st.booleans())
def test_every_token_once_and_in_order(lengths: list[int], length: int, cross: bool) -> None:
    found = packed(lengths, length, cross)
    real = found.segments >= 0
    whole = documents(lengths)
    assert found.ids[real].tolist() == list(range(1, sum(lengths) + 1))
    assert found.loss_mask[real].tolist() == np.concatenate([t.learned for t in whole]).tolist()
    assert found.token_bytes[real].tolist() == np.concatenate([t.bytes for t in whole]).tolist()
    assert found.documents[real].tolist() == np.repeat(np.arange(len(lengths)), lengths).tolist()
    assert found.document_sources.tolist() == [index % 3 for index in range(len(lengths))]
    for padding in (found.ids, found.token_bytes, found.loss_mask):
        assert not padding[~real].any()
    assert (found.documents[~real] == -1).all()


@settings(max_examples=200)
@given(lengths=LENGTHS, length=st.integers(8, 20))
def test_a_segment_is_one_documents_piece(lengths: list[int], length: int) -> None:
    found = packed(lengths, length)
    for segments, owners in zip(found.segments.tolist(), found.documents.tolist(), strict=True):
        pieces = dict.fromkeys(zip(segments, owners, strict=True))
        real = [piece for piece in pieces if piece[0] >= 0]
        assert [segment for segment, _ in real] == list(range(len(real)))
        # Padding stands at the end only.
        assert segments == sorted(segments, key=lambda segment: segment < 0)
    # What a position predicts is the next token of its own document.
    rows, columns = torch.nonzero(found.targets != IGNORED, as_tuple=True)
    assert (found.targets[rows, columns] == found.ids[rows, columns] + 1).all()
    assert (found.documents[rows, columns] == found.documents[rows, columns + 1]).all()


@settings(max_examples=200)
@given(lengths=LENGTHS, length=st.integers(8, 20))
def test_no_waste(lengths: list[int], length: int) -> None:
    found = packed(lengths, length)
    padding = (found.segments < 0).sum(dim=1)
    # Only the last sequence may be short; another leaves out at most the one place where a piece could predict nothing.
    assert (padding[:-1] <= 1).all()
    sizes = [
        (int(owner), int((row[0] == segment).sum()))
        for row in zip(found.segments, found.documents, strict=True)
        for segment in range(int(row[0].max()) + 1)
        for owner in row[1][row[0] == segment][:1]
    ]
    seen: dict[int, int] = {}
    for owner, size in sizes:
        seen[owner] = seen.get(owner, 0) + size
        # A piece of one token is a document's rest, or all of it.
        assert size > 1 or seen[owner] == lengths[owner]


@settings(max_examples=100)
@given(lengths=LENGTHS, length=st.integers(8, 20))
def test_across_documents_a_sequence_is_one_segment(lengths: list[int], length: int) -> None:
    found = packed(lengths, length, cross=True)
    real = found.segments >= 0
    assert (found.segments[real] == 0).all()
    assert real[:-1].all()
    assert (found.positions == torch.arange(length))[real].all()


@settings(max_examples=100)
@given(lengths=LENGTHS, length=st.integers(8, 20), limit=st.integers(1, 5))
def test_a_limit_is_a_beginning(lengths: list[int], length: int, limit: int) -> None:
    everything = packed(lengths, length)
    some = packed(lengths, length, limit=limit)
    assert len(some) == min(limit, len(everything))
    assert torch.equal(some.ids, everything.ids[: len(some)])
    assert some.digests == everything.digests[: len(some)]


def test_the_tail_of_training() -> None:
    assert len(packed([10, 3], 10, tail=False)) == 1
    assert len(packed([10, 5], 10, tail=False)) == 2
    assert len(packed([10, 3], 10, tail=True)) == 2
    # It is kept when it is all there is.
    assert len(packed([3], 10, tail=False)) == 1


def test_positions_begin_again_with_each_piece() -> None:
    found = packed([3, 6, 4], 8)
    assert found.positions[0].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert found.segments[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert found.segments[1].tolist() == [0, 1, 1, 1, 1, -1, -1, -1]


def test_nothing_to_pack() -> None:
    found = Packer(8, cross_documents=False).finish(keep_tail=True)
    assert len(found) == 0
    assert found.tokens == 0
    assert found.ids.shape == (0, 8)
