"""Students with another tokenizer: both tokenizations of a text, aligned by bytes, and what is learned from what."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import Kind, make_tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from stillroom.core.errors import VocabularyMismatch
from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.signals.alignment import Alignment, describe, load_vocabulary, text_logprobs
from stillroom.signals.signal import CoarseSignal, DenseSignal, SparseSignal
from stillroom.signals.vocabulary_map import VocabularyMap

TEXTS = st.text(alphabet=st.sampled_from("aeiou rst\n{}()_=0123é你🙂"), min_size=1, max_size=60)


def alignment_of(teacher: Kind, student: Kind, sizes: tuple[int, int] = (700, 400)) -> tuple[Any, Any, Alignment]:
    theirs, mine = make_tokenizer(teacher, sizes[0]), make_tokenizer(student, sizes[1])
    return theirs, mine, Alignment.of(theirs, mine, len(theirs) + 3, len(mine) + 5)


def sequences_of(tokenizer: Any, texts: list[str], learned: float = 1.0) -> Sequences:
    """One row, a segment for each text."""
    parts = [torch.tensor(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
    ids = torch.cat(parts)[None]
    segments = torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts)])[None].int()
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, : int((1 - learned) * ids.shape[1])] = False
    return Sequences(ids, segments, mask, segments.clone(), torch.ones_like(segments), torch.zeros(len(texts)).int())


@settings(max_examples=40)
@given(
    pair=st.sampled_from([("bpe", "bpe"), ("bpe", "bpe_fallback"), ("bpe_fallback", "bpe"), ("qwen", "bpe")]),
    text=TEXTS,
)
def test_chunks_hold_the_same_text_on_both_sides(pair: tuple[Kind, Kind], text: str) -> None:
    theirs, mine, alignment = alignment_of(*pair)
    ids = torch.tensor(theirs(text, add_special_tokens=False).input_ids)
    found = alignment.tokenize(ids)
    # The ids are those of the student's own tokenizer on the text that the teacher's tokens spell.
    spelled = b"".join(alignment.teacher_bytes[index] or b"" for index in ids.tolist())
    assert found.ids.tolist() == mine(spelled.decode(), add_special_tokens=False).input_ids
    for chunk, whole in enumerate(found.whole.tolist()):
        if not whole:
            continue
        left = b"".join(alignment.student_bytes[i] or b"" for i in found.ids[found.chunk == chunk].tolist())
        right = b"".join(alignment.teacher_bytes[i] or b"" for i in ids.numpy()[found.teacher_chunk == chunk].tolist())
        assert left == right != b""
    # Every token is in a chunk, in order.
    assert (found.chunk[1:] >= found.chunk[:-1]).all()
    assert (found.teacher_chunk[1:] >= found.teacher_chunk[:-1]).all()
    assert not found.whole[0]


@settings(max_examples=25)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3), learned=st.sampled_from([1.0, 0.6]))
def test_every_position_learns_from_one_thing(texts: list[str], learned: float) -> None:
    theirs, _, alignment = alignment_of("bpe", "bpe_fallback")
    sequences = sequences_of(theirs, texts, learned)
    row = alignment.row(sequences, 0)
    targets = row.targets != IGNORED
    inside = row.chunk >= 0
    assert not bool((row.speaks & inside).any())
    assert bool((targets | ~(row.speaks | inside)).all())
    assert len(row.taken) == int(row.speaks.sum())
    assert bool((row.taken >= 0).all())
    # Where the teacher's distribution is compared, it predicts the very token that the student has to predict.
    text = sequences.targets[0][sequences.targets[0] != IGNORED]
    wanted = row.targets[row.speaks]
    assert alignment.same[text[row.taken]].tolist() == wanted.tolist()
    # The members of each chunk spell its text.
    member, owner = row.members
    for number in range(row.chunks):
        right = b"".join(alignment.teacher_bytes[i] or b"" for i in text[member[owner == number]].tolist())
        left = b"".join(alignment.student_bytes[i] or b"" for i in row.targets[row.chunk == number].tolist())
        assert left == right != b""
    if learned == 1.0 and row.chunks == 0 and not bool(row.speaks.any()):
        assert int(targets.sum()) == 0


def test_with_one_tokenizer_everything_is_aligned() -> None:
    theirs, _, alignment = alignment_of("bpe", "bpe", (500, 500))
    sequences = sequences_of(theirs, ["for x in range(10):\n    print(x)", "naïve café 🙂 你好"])
    row = alignment.row(sequences, 0)
    assert row.ids.tolist() == sequences.ids[0].tolist()
    assert torch.equal(row.targets, sequences.targets[0])
    assert torch.equal(row.speaks, sequences.targets[0] != IGNORED)
    assert row.taken.tolist() == list(range(len(row.taken)))
    assert row.chunks == 0
    assert bool(row.covered.all())
    logprobs = torch.log_softmax(torch.randn(6, len(theirs) + 3), dim=1)
    coarse = alignment.coarse(DenseSignal(logprobs))
    dense = VocabularyMap.from_pieces(
        [[i] if i < len(theirs) else [] for i in range(len(theirs) + 3)], len(theirs) + 5, len(theirs)
    ).project_dense(logprobs)[:, : len(theirs)]
    assert float(coarse.rest.max()) == 0
    assert torch.allclose(
        torch.full_like(dense, float("-inf")).scatter(1, coarse.ids, coarse.logprobs), dense, atol=1e-5
    )
    found = describe(alignment, sequences)
    assert (found["distribution"], found["chunks"], found["student_tokens_per_teacher_token"]) == (1.0, 0.0, 1.0)


def test_lists_and_distributions_say_the_same() -> None:
    theirs, mine, alignment = alignment_of("bpe", "bpe_fallback")
    logprobs = torch.log_softmax(3 * torch.randn(5, len(theirs) + 3).double(), dim=1)
    logprobs[:, len(theirs) :] = float("-inf")
    whole = alignment.coarse(DenseSignal(logprobs))
    assert whole.fault(len(mine)) is None
    listed, ids = logprobs.topk(20, dim=1)
    rest = logprobs.exp().scatter(1, ids, 0.0).sum(1)
    few = alignment.coarse(CoarseSignal(ids, listed, rest))
    assert few.fault(len(mine)) is None
    student = torch.log_softmax(torch.randn(5, len(mine)).double(), dim=1)
    dense = torch.full((5, len(mine)), float("-inf")).double().scatter(1, whole.ids, whole.logprobs)
    for row in range(5):
        for entry in few.listed[row].nonzero().squeeze(1).tolist():
            assert float(few.logprobs[row, entry]) == pytest.approx(float(dense[row, few.ids[row, entry]]), rel=1e-6)
    # A coarser statement about the same teacher is no further away.
    assert bool((few.divergence_from(student) <= whole.divergence_from(student) + 1e-9).all())
    with pytest.raises(VocabularyMismatch, match="sample"):
        alignment.coarse(SparseSignal(ids, listed.exp()))
    with pytest.raises(VocabularyMismatch, match="bits per byte"):
        alignment.project_dense(logprobs)


def test_a_teacher_that_rules_out_all_that_occurs_says_nothing() -> None:
    theirs, mine, alignment = alignment_of("bpe", "bpe_fallback")
    logprobs = torch.full((3, len(theirs) + 3), float("-inf"))
    logprobs[0, len(theirs) :] = -math.log(3)
    # As a dense cache keeps it: the least that it stores.
    logprobs[1] = math.log(1e-38)
    logprobs[1, -1] = 0.0
    dense = alignment.coarse(DenseSignal(logprobs))
    ids = torch.tensor([[len(theirs), len(theirs) + 1]]).expand(3, 2)
    listed = alignment.coarse(CoarseSignal(ids, torch.full((3, 2), -math.log(2)), torch.zeros(3)))
    for found in (dense, listed):
        assert found.silent.tolist() == [True] * 3
        assert found.fault(len(mine)) is None
        assert found.divergence_from(torch.log_softmax(torch.randn(3, len(mine)), 1)).abs().max() < 1e-6


def test_the_text_is_known_where_a_list_holds_it() -> None:
    logprobs = torch.log_softmax(torch.randn(2, 9), dim=1)
    targets = logprobs.argsort(1, descending=True)[:, [0, 5]].diagonal()
    assert torch.equal(text_logprobs(DenseSignal(logprobs), targets), logprobs.gather(1, targets[:, None])[:, 0])
    listed, ids = logprobs.topk(3, dim=1)
    found = text_logprobs(CoarseSignal(ids, listed, 1 - listed.exp().sum(1)), targets)
    assert float(found[0]) == float(listed[0, 0])
    assert bool(found[1].isnan())


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    theirs, _, alignment = alignment_of("bpe_fallback", "bpe")
    alignment.save(tmp_path / "vocabulary.safetensors")
    again = load_vocabulary(tmp_path / "vocabulary.safetensors")
    assert isinstance(again, Alignment)
    assert not again.is_identity
    ids = torch.tensor(theirs("def f(x): return '你好'", add_special_tokens=False).input_ids)
    assert [part.tolist() for part in again.expand(ids)] == [part.tolist() for part in alignment.expand(ids)]
    assert again.specials == alignment.specials
    assert again.by_role == alignment.by_role
    assert torch.equal(again.same, alignment.same)


def test_a_special_token_that_the_student_lacks_is_refused() -> None:
    theirs, mine = make_tokenizer("bpe", 500), make_tokenizer("bpe", 400)
    alignment = Alignment.of(theirs, mine, 500, 400)
    start = theirs.convert_tokens_to_ids("<|im_start|>")
    ids = torch.tensor([start, *theirs("hello", add_special_tokens=False).input_ids])
    assert alignment.expand(ids)[0][0] == mine.convert_tokens_to_ids("<|im_start|>")
    lacking = Alignment(**{**vars_of(alignment), "specials": {}})
    with pytest.raises(VocabularyMismatch, match="special token"):
        lacking.expand(ids)


def vars_of(alignment: Alignment) -> dict[str, Any]:
    return {name: getattr(alignment, name) for name in alignment.__dataclass_fields__}


def test_half_a_character_is_left_out() -> None:
    theirs, mine, alignment = alignment_of("bpe", "bpe_fallback")
    ids = torch.tensor(theirs("a🙂b", add_special_tokens=False).input_ids)
    assert len(ids) == 6
    found = alignment.tokenize(ids[:3])  # the emoji's bytes are four tokens
    assert mine.decode(found.ids.tolist()) == "a"
    later = alignment.tokenize(ids[2:])
    assert mine.decode(later.ids.tolist()) == "b"


def test_what_no_text_has_is_taught_as_impossible() -> None:
    theirs, mine = make_tokenizer("bpe", 500), make_tokenizer("bpe", 500)
    mine.add_special_tokens({"additional_special_tokens": ["<|reserved_7|>"]})
    reserved = int(mine.convert_tokens_to_ids("<|reserved_7|>"))
    alignment = Alignment.of(theirs, mine, len(theirs), len(mine))
    logprobs = torch.log_softmax(torch.randn(4, len(theirs)), dim=1)
    listed, ids = logprobs.topk(20, dim=1)
    rest = logprobs.exp().scatter(1, ids, 0.0).sum(1)
    # What the teacher says and the student has no id for is no reason to say what no text has.
    for said in (DenseSignal(logprobs), CoarseSignal(ids, listed, rest)):
        coarse = alignment.coarse(said)
        assert coarse.fault(len(mine)) is None
        place = coarse.ids == reserved
        assert bool((coarse.logprobs[place] < -60).all())
        assert int((place & coarse.listed).sum()) == len(coarse)
    student = torch.zeros(4, len(mine))
    student[:, reserved] = 5.0
    student.requires_grad_()
    coarse = alignment.coarse(DenseSignal(logprobs))
    torch.autograd.backward(-(coarse.logprobs.exp() * coarse.listed_of(student.log_softmax(1))).sum())
    assert student.grad is not None
    assert bool((student.grad[:, reserved] > 0.1).all())


def test_without_others_nothing_is_left_for_them() -> None:
    theirs, _, alignment = alignment_of("bpe", "bpe", (700, 400))
    assert alignment._no_others
    logprobs = torch.log_softmax(torch.randn(4, len(theirs) + 3), dim=1)
    coarse = alignment.coarse(DenseSignal(logprobs))
    assert float(coarse.rest.max()) == 0
    assert torch.allclose(coarse.logprobs.exp().sum(1), torch.ones(4), atol=1e-5)


def test_a_role_begins_and_ends_a_text_and_does_not_mark_a_turn(tmp_path: Path) -> None:
    theirs, like_it = make_tokenizer("bpe", 500), make_tokenizer("bpe", 400)
    ends = str(theirs.eos_token)
    rules = like_it.backend_tokenizer.to_str().replace(json.dumps(ends), '"</s>"')
    mine = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(rules), eos_token="</s>")
    alignment, text = Alignment.of(theirs, mine, len(theirs), len(mine)), theirs("for x in y").input_ids
    by_role = sorted(alignment.by_role)
    assert theirs.eos_token_id in by_role
    whole = torch.tensor([*text, theirs.eos_token_id])
    assert len(alignment.tokenize(whole).ids) > 0
    with pytest.raises(VocabularyMismatch) as refused:
        alignment.tokenize(torch.tensor([*text, theirs.eos_token_id, *text]))
    assert f"`{ends}`" in str(refused.value)
    # So is what the stage `shrink` wrote, by which later stages tokenize.
    alignment.save(tmp_path / "vocabulary.safetensors")
    again = load_vocabulary(tmp_path / "vocabulary.safetensors")
    assert isinstance(again, Alignment)
    with pytest.raises(VocabularyMismatch, match="special token"):
        again.tokenize(torch.tensor([*text, theirs.eos_token_id, *text]))
