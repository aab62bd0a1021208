"""The quickstart's questions and answers are what their tool would keep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.quickstart_text import ASKED, TOPICS, fault

ROWS = [
    json.loads(line) for line in (Path(__file__).parent.parent / "recipes" / "quickstart.jsonl").open(encoding="utf-8")
]


def test_every_answer_of_the_recipe_is_one_that_is_kept() -> None:
    topics = TOPICS.read_text(encoding="utf-8").splitlines()
    asked = {form.format(topic=topic): topic for topic in topics for form in ASKED}
    questions = [row["messages"][0]["content"] for row in ROWS]
    assert len(set(questions)) == len(questions) > 1000
    for row in ROWS:
        question, answer = row["messages"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        assert fault(asked[question["content"]], answer["content"], ended=True) == ""


@pytest.mark.parametrize(
    ("answer", "ended", "why"),
    [
        ("A queue is a list that is read in the order in which it was written", False, "does not end"),
        ("A queue is a list.", True, "too short or too long"),
        ("A queue is a list that is read, and a queue is a list that grows.", True, "repeats itself"),
        ("A one-sentence definition of a queue is that it keeps its order.", True, "is about the question"),
        ("It is a list that is read in the order in which it was written.", True, "does not name its topic"),
        ("A queue is a list that is read in the order in which it was written.", True, ""),
    ],
)
def test_why_an_answer_is_left_out(answer: str, ended: bool, why: str) -> None:
    assert fault("a queue", answer, ended) == why
