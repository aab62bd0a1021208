"""Answers shown blind: the key alone says whose they are, and choices are counted by it."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.blind import answers_of, count, figures_of, shuffled


def items(number: int = 20, equal: int = 2) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"What is {index}?",
            "chat": True,
            "answers": {
                "teacher": {"text": "t"},
                "student": {"text": f"first {index}"},
                "baseline": {"text": f"first {index}" if index < equal else f"second {index}"},
            },
        }
        for index in range(number)
    ]


def test_the_text_says_what_the_key_means_and_not_whose_it_is() -> None:
    text, key = shuffled(items(), random.Random(1))
    assert key["equal"] == 2
    assert len(key["pairs"]) == 18
    assert "student" not in text
    assert "baseline" not in text
    for number, letters in key["pairs"].items():
        for letter, name in letters.items():
            found = re.search(rf"^--- {number} {letter} -+\n(.*)$", text, re.MULTILINE)
            assert found is not None
            assert found[1].startswith("first" if name == "student" else "second")
    # Both come first about as often: it is drawn.
    assert 3 < sum(letters["A"] == "student" for letters in key["pairs"].values()) < 15
    assert shuffled(items(), random.Random(2))[0] != text


def test_choices_are_counted() -> None:
    key = {"pairs": {"1": {"A": "student", "B": "baseline"}, "2": {"A": "baseline", "B": "student"}}, "equal": 3}
    assert count("1 A\n\n2. b\n", key) == {
        "student": 2, "baseline": 0, "no difference": 0, "equal answers, not shown": 3, "not chosen": 0,
    }  # fmt: skip
    assert count("2 =", key)["no difference"] == 1
    for wrong in ("3 A", "1 C", "1", "1 A\n1 B"):
        with pytest.raises(SystemExit, match="line"):
            count(wrong, key)


def test_the_share_is_of_the_pairs_in_which_one_was_preferred() -> None:
    found = figures_of({"student": 9, "baseline": 1, "no difference": 4})
    assert found["student_preferred_share"] == 0.9
    low, high = found["student_preferred_share_interval"]
    assert low < 0.9 < high
    assert found["sign_test_p_value"] == pytest.approx(22 / 1024)
    assert figures_of({"student": 0, "baseline": 0, "no difference": 4})["student_preferred_share"] is None


def test_a_run_without_answers_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--only samples"):
        answers_of(tmp_path)
