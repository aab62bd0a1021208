"""Cutting: every learned token is a target once, with what came before it in sight; chats keep head and turns.

Documents here have another id at every token, so that each can be followed through its pieces.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import Kind, make_tokenizer

from stillroom.corpus.cutting import Piece, capped, cut, overlap_of
from stillroom.corpus.documents import Document
from stillroom.corpus.packing import best_fit
from stillroom.corpus.pieces import PieceList, Pieces
from stillroom.corpus.sequences import IGNORED, Sequences, targets_without_context
from stillroom.corpus.tokens import Encoder, Tokens


@st.composite
def plain(draw: st.DrawFn) -> Tokens:
    size = draw(st.integers(1, 200))
    bos = draw(st.integers(0, 1))
    learned = np.asarray(draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=bool)
    learned[:bos] = False
    return Tokens(np.arange(size) + 1, learned, np.arange(size, dtype=np.int32) % 5, bos, bos)


@st.composite
def chat(draw: st.DrawFn) -> Tokens:
    """A head, and turns of a question and an answer."""
    bos = draw(st.integers(0, 1))
    head = bos + draw(st.integers(0, 30))
    turns, learned = [], [False] * head
    for _ in range(draw(st.integers(1, 8))):
        question, answer = draw(st.integers(1, 30)), draw(st.integers(1, 60))
        turns.append((len(learned), len(learned) + question))
        learned += [False] * question + [True] * answer
    size = len(learned)
    return Tokens(np.arange(size) + 1, np.asarray(learned), np.ones(size, dtype=np.int32), bos, head, tuple(turns))


LENGTH = st.integers(8, 64)
ANY = st.one_of(plain(), chat())


@settings(max_examples=400)
@given(tokens=ANY, length=LENGTH)
def test_every_learned_token_is_a_target_once(tokens: Tokens, length: int) -> None:
    pieces = cut(tokens, length)
    own = np.concatenate([piece.ids[piece.repeated :] for piece in pieces])
    assert own.tolist() == tokens.ids.tolist()
    assert np.concatenate([piece.bytes[piece.repeated :] for piece in pieces]).tolist() == tokens.bytes.tolist()
    assert not any(piece.bytes[: piece.repeated].any() for piece in pieces)
    targets = [target for piece in pieces for target in piece.ids[1:][piece.learned[1:]].tolist()]
    # Nothing predicts a document's first token.
    assert targets == tokens.ids[1:][tokens.learned[1:]].tolist()
    assert [piece.targets for piece in pieces] == [int(piece.learned[1:].sum()) for piece in pieces]
    assert all(len(piece.ids) <= length for piece in pieces)
    assert all(piece.own > 0 for piece in pieces)


@settings(max_examples=400)
@given(tokens=ANY, length=LENGTH)
def test_every_target_sees_its_beginning_or_enough_before_it(tokens: Tokens, length: int) -> None:
    overlap = overlap_of(length)
    for piece in cut(tokens, length):
        assert not piece.learned[: piece.repeated].any()
        first = int(piece.ids[piece.repeated])
        if piece.begins:
            assert piece.ids[: piece.repeated].tolist() == list(range(1, first))
        else:
            # The tokens before its own are those that stand before them in the document.
            assert piece.ids[piece.repeated - overlap : piece.repeated].tolist() == list(range(first - overlap, first))
        # A document that begins with the beginning-of-text token does so in every piece.
        assert not tokens.bos or piece.ids[0] == 1


@settings(max_examples=400)
@given(tokens=chat(), length=LENGTH)
def test_chats_are_cut_at_turns_and_keep_their_head(tokens: Tokens, length: int) -> None:
    overlap = overlap_of(length)
    starts = [start for start, _ in tokens.turns]
    pieces = cut(tokens, length)
    budget = min(length // 2, 3 * length // 4 - overlap)
    for piece, after in pairwise(pieces):
        begin, end = int(piece.ids[piece.repeated]) - 1, int(after.ids[after.repeated]) - 1
        if end not in starts:
            # Inside a turn only where no turn begins within reach.
            assert not any(begin < start <= begin + length - piece.repeated for start in starts)
        if tokens.head <= budget:
            assert after.ids[: tokens.head].tolist() == tokens.ids[: tokens.head].tolist()
        turn, answer = next(((s, a) for s, a in reversed(tokens.turns) if s <= end), (end, end))
        if end > answer and tokens.head + answer - turn <= budget:
            # The question of an answer that goes on stands before it.
            assert set(range(turn + 1, answer + 1)) <= set(after.ids[: after.repeated].tolist())


@settings(max_examples=200)
@given(tokens=ANY, length=LENGTH, most=st.integers(1, 80))
def test_a_capped_document_is_its_beginning(tokens: Tokens, length: int, most: int) -> None:
    pieces = cut(tokens, length)
    kept, dropped = capped(pieces, most)
    whole, some = (
        [target for piece in some for target in piece.ids[1:][piece.learned[1:]].tolist()] for some in (pieces, kept)
    )
    assert some == whole[:most]
    assert dropped == len(whole) - len(some)


def listed(documents: list[Tokens], length: int, cross: bool = False, limit: int | None = None) -> Pieces:
    gathered = PieceList(length, overlap_of(length), cross, limit)
    for index, tokens in enumerate(documents):
        gathered.add(cut(tokens, length), index % 3)
    return gathered.finish()


@settings(max_examples=100)
@given(documents=st.lists(ANY, min_size=1, max_size=8), length=LENGTH)
def test_rows_hold_every_piece_whole_with_its_address(documents: list[Tokens], length: int) -> None:
    pieces = listed(documents, length)
    rows = Sequences.pack(pieces)
    assert pieces.targets_without_context == 0
    assert sorted(rows.digests) == sorted(pieces.addresses)
    assert rows.tokens == pieces.tokens
    assert int((rows.targets != IGNORED).sum()) == int(pieces.targets.sum())
    counted = dict(zip(pieces.addresses, pieces.targets.tolist(), strict=True))
    order = best_fit(pieces.sizes, length)
    for index, row in enumerate(order):
        assert rows.addresses[index] == [pieces.addresses[piece] for piece in row]
        assert rows.counts[index] == [counted[address] for address in rows.addresses[index]]
        # The targets of a row are those of its pieces, one after the other.
        targets = rows.targets[index][rows.targets[index] != IGNORED].tolist()
        expected = []
        for piece in row:
            ids = pieces.ids[pieces.offsets[piece] : pieces.offsets[piece + 1]]
            learned = pieces.learned[pieces.offsets[piece] : pieces.offsets[piece + 1]]
            expected += ids[1:][learned[1:]].tolist()
        assert targets == expected
    assert (rows.segments[:, 1:] < 0)[(rows.segments[:, :-1] < 0)].all(), "padding stands at the end"


@settings(max_examples=50)
@given(documents=st.lists(ANY, min_size=1, max_size=8), length=LENGTH, seed=st.integers(0, 9))
def test_an_address_does_not_depend_on_neighbours(documents: list[Tokens], length: int, seed: int) -> None:
    alone = {address for document in documents for address in listed([document], length).addresses}
    shuffled = [documents[index] for index in np.random.default_rng(seed).permutation(len(documents))]
    assert set(listed(shuffled, length).addresses) == alone


@settings(max_examples=50)
@given(documents=st.lists(ANY, min_size=2, max_size=8), length=LENGTH, data=st.data())
def test_some_pieces_are_packed_anew(documents: list[Tokens], length: int, data: st.DataObject) -> None:
    rows = Sequences.pack(listed(documents, length))
    if not rows.digests:
        return
    wanted = set(data.draw(st.lists(st.sampled_from(rows.digests), min_size=1)))
    some = rows.only(wanted)
    assert sorted(some.digests) == sorted(wanted)
    counts = {
        a: n
        for row, numbers in zip(rows.addresses, rows.counts, strict=True)
        for a, n in zip(row, numbers, strict=True)
    }
    for row, numbers in zip(some.addresses, some.counts, strict=True):
        assert numbers == [counts[address] for address in row]


def test_across_documents_a_row_is_one_segment_with_one_address() -> None:
    documents = [Tokens(np.arange(20) + 100 * index, np.ones(20, bool), np.ones(20, np.int32)) for index in range(5)]
    rows = Sequences.pack(listed(documents, 64, cross=True))
    assert (rows.segments[rows.segments >= 0] == 0).all()
    assert (rows.positions == torch.arange(64))[rows.segments >= 0].all()
    assert [len(row) for row in rows.addresses] == [1, 1]
    # The first token of a document is predicted from the one before it.
    assert int((rows.targets != IGNORED).sum()) == 100 - len(rows)


def test_pieces_without_a_target_are_left_out_and_counted() -> None:
    gathered = PieceList(8, 2)
    gathered.add(cut(Tokens(np.arange(6), np.zeros(6, bool), np.zeros(6, np.int32)), 8), 0)
    gathered.add(cut(Tokens(np.arange(4), np.ones(4, bool), np.zeros(4, np.int32)), 8), 0)
    assert (gathered.unlearned, gathered.tokens) == (6, 4)
    assert gathered.finish().documents.tolist() == [1]


def test_a_limit_ends_with_the_piece_that_reaches_it() -> None:
    documents = [Tokens(np.arange(30) + 100 * index, np.ones(30, bool), np.ones(30, np.int32)) for index in range(5)]
    everything, some = listed(documents, 16), listed(documents, 16, limit=35)
    assert 35 <= some.tokens < 35 + 16
    assert some.addresses == everything.addresses[: len(some)]


def test_the_overlap_is_a_quarter_and_512_at_most() -> None:
    assert [overlap_of(length) for length in (8, 64, 1024, 4096)] == [2, 16, 256, 512]


def test_targets_without_context_of_a_corpus_of_0_1_0() -> None:
    # Two rows of 0.1.0: document 1 goes on in the second one.
    documents = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 2, 2, -1]], dtype=torch.int32)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, -1]], dtype=torch.int32)
    ones = torch.ones(2, 6, dtype=torch.int32)
    rows = Sequences(ones.long(), segments, ones.bool(), documents, ones, torch.zeros(3, dtype=torch.int32))
    assert targets_without_context(rows) == 2


QUESTIONS = [f"Question {index}, and {'what ' * 3}is it?" for index in range(6)]
ANSWERS = [f"Answer {index}: {'well ' * (12 + index)}so." for index in range(6)]


def conversation(turns: int, system: str | None = None) -> Document:
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in zip(QUESTIONS[:turns], ANSWERS[:turns], strict=True):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Document(messages=tuple(messages))


@pytest.mark.parametrize("system", [None, "Be short, be kind, and never lie."])
@pytest.mark.parametrize("length", [256, 320])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_real_chat_keeps_head_question_and_turns(kind: Kind, system: str | None, length: int) -> None:
    tokenizer = make_tokenizer(kind)
    tokens = Encoder(tokenizer).encode([conversation(6, system)])[0]
    assert len(tokens.turns) == 6
    for number, (start, answer) in enumerate(tokens.turns):
        begun = tokenizer.decode(tokens.ids[start:answer].tolist())
        assert QUESTIONS[number] in begun
        assert ANSWERS[max(0, number - 1)] not in begun
        assert tokens.learned[answer]
    head = tokenizer.decode(tokens.ids[: tokens.head].tolist())
    assert (system in head) if system else QUESTIONS[0] not in head
    pieces = cut(tokens, length)
    assert len(pieces) > 1
    starts = [start for start, _ in tokens.turns]
    reached = 0
    for piece in pieces:
        text = tokenizer.decode(piece.ids.tolist())
        assert not system or system in text
        assert reached in [0, *starts], "cut at a turn"
        reached += piece.own


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_an_answer_longer_than_a_sequence_goes_on_with_its_question(kind: Kind) -> None:
    tokenizer = make_tokenizer(kind)
    long = "word " * 400
    messages = ({"role": "user", "content": "Say it often."}, {"role": "assistant", "content": long.strip()})
    tokens = Encoder(tokenizer).encode([Document(messages=messages)])[0]
    pieces: list[Piece] = cut(tokens, 128)
    assert len(pieces) > 2
    for piece in pieces:
        assert "Say it often." in tokenizer.decode(piece.ids[: max(piece.repeated, 60)].tolist())
        assert piece.begins or piece.repeated >= overlap_of(128)
