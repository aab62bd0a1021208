"""The evaluator that all students of the benchmarks pass through, on tiny real models."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch

from benchmarks import judge
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.students.embeddings import keep_rows
from stillroom.students.trim import trim
from tests.tiny_models import make_model, make_tokenizer

CHATS: list[judge.Chat] = [
    (
        {"role": "user", "content": f"What is {word}?"},
        {"role": "assistant", "content": f"{word} is a {word} of {word}s."},
    )
    for word in ("list", "tuple", "function", "naïve 🙂", "class")
]


@pytest.fixture(scope="module")
def world():  # type: ignore[no-untyped-def]
    tokenizer = make_tokenizer("bpe", 512)
    teacher, student = (
        make_model("llama", rows=len(tokenizer), tokenizer=tokenizer, layers=2, seed=seed).eval() for seed in (0, 1)
    )
    return tokenizer, teacher, student


def test_the_teacher_as_its_own_student_is_at_zero(world) -> None:  # type: ignore[no-untyped-def]
    tokenizer, teacher, _ = world
    found = judge.judge(teacher, tokenizer, {"self": (teacher, VocabularyMap.identity(len(tokenizer)))}, CHATS)["self"]
    assert np.allclose(found.kl, 0, atol=1e-5)
    assert np.array_equal(found.agreement, found.positions)
    assert (found.positions > 0).all()


def test_kl_is_what_both_models_say_directly(world) -> None:  # type: ignore[no-untyped-def]
    tokenizer, teacher, student = world
    found = judge.judge(teacher, tokenizer, {"it": (student, VocabularyMap.identity(len(tokenizer)))}, CHATS[:1])["it"]
    whole = tokenizer.apply_chat_template(list(CHATS[0]), tokenize=False)
    asked = tokenizer.apply_chat_template(list(CHATS[0][:-1]), tokenize=False, add_generation_prompt=True)
    ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt").input_ids
    begin = len(tokenizer(asked, add_special_tokens=False).input_ids)
    count = int(found.positions[0])
    with torch.inference_mode():
        p, q = (torch.log_softmax(model(input_ids=ids).logits[0].double(), dim=1) for model in (teacher, student))
    rows = slice(begin - 1, begin - 1 + count)
    expected = float((p[rows].exp() * (p[rows] - q[rows])).sum())
    assert found.kl[0] == pytest.approx(expected, rel=1e-4)
    text = q[rows].gather(1, ids[0, begin : begin + count, None])
    assert found.nats[0] == pytest.approx(-float(text.sum()), rel=1e-4)


def test_fewer_ids_never_make_a_kl_larger_and_bytes_stay(world) -> None:  # type: ignore[no-untyped-def]
    tokenizer, teacher, student = world
    counts: Counter[int] = Counter(range(300))
    trimmed = trim(tokenizer, counts, 400, len(tokenizer), 8)
    small = copy.deepcopy(student)
    keep_rows(small, trimmed.kept, trimmed.vocabulary.student_size)
    found = judge.judge(
        teacher,
        tokenizer,
        {"whole": (student, VocabularyMap.identity(len(tokenizer))), "small": (small, trimmed.vocabulary)},
        CHATS,
        trimmed.vocabulary,
    )
    assert trimmed.vocabulary.student_used < len(tokenizer)
    assert (found["whole"].kl_common <= found["whole"].kl + 1e-6).all()
    assert found["whole"].kl_common.sum() < found["whole"].kl.sum()
    assert np.array_equal(found["small"].kl, found["small"].kl_common)
    assert np.array_equal(found["small"].text_bytes, found["whole"].text_bytes)
    assert np.array_equal(found["small"].positions, found["whole"].positions)


def test_sums_come_back_and_a_student_against_itself_is_one(world) -> None:  # type: ignore[no-untyped-def]
    tokenizer, teacher, student = world
    found = judge.judge(teacher, tokenizer, {"it": (student, VocabularyMap.identity(len(tokenizer)))}, CHATS)["it"]
    again = judge.Judged.from_sums(found.sums())
    assert np.array_equal(again.kl, found.kl)
    assert judge.kl_ratio(found, again).value == pytest.approx(1)
    assert judge.agreement_gain(found, again).value == 0
    assert np.allclose(judge.mean([found, again]).kl, found.kl)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [(list(range(40)), False), ([1, 2] * 10, True), ([*range(8), 9, *range(8)], True), ([1] * 8, False)],
)
def test_an_answer_that_repeats_eight_tokens_is_degenerate(ids: list[int], expected: bool) -> None:
    assert judge.degenerate(ids) is expected
