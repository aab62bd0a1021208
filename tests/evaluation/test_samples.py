"""Answers side by side: which prompts are found, what counts as degenerate, and that nothing is generated twice."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillroom.corpus.cutting import cut
from stillroom.corpus.pieces import PieceList
from stillroom.corpus.sequences import Sequences
from stillroom.corpus.tokens import Tokens
from stillroom.evaluation.answers import Answer, Speaker
from stillroom.evaluation.heldout import InMemory
from stillroom.evaluation.measures import do_measures
from stillroom.evaluation.metrics.samples import (
    BEGINNING,
    GRAM,
    LONGEST,
    METRIC,
    SHOWN,
    find_prompts,
    has_repetition,
    sections,
    summarize,
    summary,
    weaknesses,
)
from stillroom.evaluation.sections import SideBySide, Table

Document = tuple[list[int], list[bool]]


def packed(documents: list[Document], length: int = 64) -> InMemory:
    """Documents one after the other; one that does not fit goes on in the next sequence."""
    ids = [token for tokens, _ in documents for token in tokens]
    learned = [value for _, values in documents for value in values]
    owner = [number for number, (tokens, _) in enumerate(documents) for _ in tokens]
    room = -len(ids) % length
    shape = (-1, length)
    tensor_owner = torch.tensor(owner + [-1] * room, dtype=torch.int32).reshape(shape)
    return InMemory(
        Sequences(
            torch.tensor(ids + [0] * room).reshape(shape),
            tensor_owner.clone(),
            torch.tensor(learned + [False] * room).reshape(shape),
            tensor_owner,
            torch.ones_like(tensor_owner),
            torch.zeros(len(documents), dtype=torch.int32),
        )
    )


def chat(number: int, question: int = 10, answer: int = 20) -> Document:
    return [1000 + number] * question + [5] * answer, [False] * question + [True] * answer


def plain(number: int, length: int = 50, bos: bool = True) -> Document:
    return [2000 + number] * length, [not bos] + [True] * (length - 1)


def test_a_chat_s_prompt_ends_where_its_answer_begins_and_a_text_s_is_its_beginning() -> None:
    prompts = find_prompts(packed([chat(0), plain(1), plain(2, 20, bos=False), chat(3, question=7)], 256), 20)
    assert [(prompt.chat, prompt.ids) for prompt in prompts] == [
        (True, (1000,) * 10),
        (False, (2001,) * 25),
        (False, (2002,) * 10),
        (True, (1003,) * 7),
    ]
    assert len(find_prompts(packed([plain(0, 200)], 256), 20)[0].ids) == BEGINNING


def test_what_goes_on_in_another_sequence_is_no_beginning() -> None:
    # The second document begins in the first sequence and goes on in the second and third.
    prompts = find_prompts(packed([plain(0, 40), plain(1, 120), chat(2)]), 20)
    assert [prompt.ids[0] for prompt in prompts] == [2000, 2001, 1002]
    # A chat whose answer is in another sequence has no whole prompt in its first.
    assert find_prompts(packed([chat(0, question=70)]), 20) == []
    assert find_prompts(packed([chat(0, question=LONGEST + 1)], 512), 20) == []


def test_a_piece_that_repeats_what_came_before_is_no_beginning() -> None:
    ids, learned = plain(1, 100)
    ids[:4] = [7, 8, 9, 10]
    tokens = Tokens(np.array(ids), np.array(learned), np.ones(100, np.int32))
    pieces = PieceList(64, 16, False, None)
    pieces.add(cut(tokens, 64, 16), 0)
    rows = Sequences.pack(pieces.finish())
    assert rows.repeated is not None
    assert rows.repeated.any()
    assert [prompt.ids[:4] for prompt in find_prompts(InMemory(rows), 20)] == [(7, 8, 9, 10)]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 15)), max_size=30), st.integers(1, 25))
def test_prompts_differ_and_are_as_many_as_can_be(kinds: list[tuple[bool, int]], wanted: int) -> None:
    if not kinds:
        return
    heldout = packed([chat(number) if kind else plain(number) for kind, number in kinds], 4096)
    prompts = find_prompts(heldout, wanted)
    assert len({prompt.ids for prompt in prompts}) == len(prompts) == min(wanted, len(set(kinds)))
    assert find_prompts(heldout, wanted) == prompts


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 10))
def test_a_repetition_is_a_second_occurrence(ids: list[int], tokens: int) -> None:
    text = "".join(map(str, ids))
    parts = [text[start : start + tokens] for start in range(len(text) - tokens + 1)]
    assert has_repetition(ids, tokens) == any(text.find(part, start + 1) >= 0 for start, part in enumerate(parts))


def rows(repeats: int, count: int = 20, tokens: int = 40) -> list[dict[str, Any]]:
    return [
        {"text": f"a{index}", "tokens": tokens, "ended": index % 2 == 0, "degenerate": index < repeats}
        for index in range(count)
    ]


def test_counts_are_against_the_teacher_s() -> None:
    found = summarize({"teacher": rows(1), "baseline": rows(4), "student": rows(9, tokens=20)}, 0.95)
    assert found["models"]["student"]["degenerate"]["count"] == 9
    bounds = found["bounds"]
    assert bounds["degenerate"][0] == pytest.approx(0.45)
    assert bounds["degenerate"][1] < 0.45 < bounds["degenerate"][2]
    assert bounds["degenerate_over_teacher"] == [8.0, None, None]
    assert bounds["median_tokens_over_teacher"] == [0.5, None, None]
    assert weaknesses(found)
    # Two more of twenty may be chance.
    assert not weaknesses(summarize({"teacher": rows(1), "student": rows(3)}, 0.95))


def test_no_prompt_is_said_and_no_number_is_made_up() -> None:
    found = summarize({"teacher": [], "student": []}, 0.95) | {"prompts": 0, "items": []}
    assert found["bounds"] == {}
    assert "No held-out document" in str(sections(found)[0].parts)


def test_the_teacher_as_its_student_answers_the_same_and_nothing_is_generated_twice(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, _ = world
    config = bench.config.model_copy(update={"samples": bench.config.samples.model_copy(update={"max_tokens": 12})})
    bench = dataclasses.replace(bench, folder=tmp_path, config=config)
    found = do_measures(bench, ["samples"])["samples"]
    assert found["prompts"] > 1
    assert len(found["items"]) == found["prompts"]
    for entry in found["items"]:
        assert entry["prompt"]
        assert entry["answers"]["student"] == entry["answers"]["teacher"]
    assert found["models"]["student"] == found["models"]["teacher"]
    assert found["bounds"]["degenerate_over_teacher"][0] == 0
    assert "items" not in summary(found)
    section = sections(found)[0]
    assert section.order < 0
    shown = next(part for part in section.parts if isinstance(part, SideBySide))
    assert len(shown.asked) == min(SHOWN, found["prompts"])
    assert [type(part) for part in section.parts if isinstance(part, (SideBySide, Table))] == [SideBySide, Table]

    def never(*_: Any, **__: Any) -> list[list[int]]:
        raise AssertionError("generated twice")

    monkeypatch.setattr(Speaker, "answers", never)
    assert do_measures(bench, ["samples"])["samples"] == found
    # Half done, then killed: the parts are kept.
    (tmp_path / "samples.json").unlink()
    assert do_measures(bench, ["samples"])["samples"] == found


def test_degenerate_answers_are_counted_by_the_teacher_s_tokens(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, _ = world
    bench = dataclasses.replace(bench, folder=tmp_path)
    tokenizer = bench.load("teacher").tokenizer
    word = tokenizer.decode(tokenizer("list", add_special_tokens=False).input_ids)
    loop = " ".join([word] * 4 * GRAM)
    monkeypatch.setattr(Speaker, "answers", lambda _self, prompts, *_, **__: [Answer(loop, 1, True) for _ in prompts])
    found = METRIC.measure(bench)
    assert found["bounds"]["degenerate"][0] == 1
    assert found["models"]["student"]["median_tokens"] == len(tokenizer(loop, add_special_tokens=False).input_ids)
