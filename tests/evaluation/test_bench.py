"""How many models an evaluation holds at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stillroom.core.progress import Progress
from stillroom.evaluation.bench import ORDER, STUDENTS_AT_ONCE, Bench, Loaded, Subject


def bench(device: str, opened: list[str]) -> Bench:
    def opener(name: str) -> Any:
        def open_it() -> Any:
            opened.append(name)
            return Loaded(torch.nn.Linear(1, 1), name, None, 0)  # type: ignore[arg-type]

        return open_it

    nothing: Any = None
    return Bench(
        subjects={name: Subject(name, "", opener(name)) for name in ORDER},
        heldout=nothing,
        training=nothing,
        sources=[],
        config=nothing,
        student_languages=(),
        seed=0,
        device=torch.device(device),
        folder=Path("nowhere"),
        text_digest="",
        progress=Progress(quiet=True),
    )


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_gpu_holds_the_teacher_and_two_students(device: str) -> None:
    opened: list[str] = []
    made = bench(device, opened)
    for name in (*ORDER, "student", "shrunk", "student", "teacher"):
        made.load(name)
        held = [subject.name for subject in made.subjects.values() if subject.is_loaded]
        assert name in held
        assert "teacher" in held
        assert len(held) <= 1 + STUDENTS_AT_ONCE
    # The one that was used longest ago went, and only what went is loaded again.
    assert opened == [*ORDER, "shrunk"]


def test_a_cpu_holds_one_model() -> None:
    opened: list[str] = []
    made = bench("cpu", opened)
    for name in (*ORDER, *ORDER):
        made.load(name)
        assert [subject.name for subject in made.subjects.values() if subject.is_loaded] == [name]
    assert opened == [*ORDER, *ORDER]
    # What is known of a model stays, and who asks for both says so.
    assert [made.known(name).tokenizer for name in ORDER] == list(ORDER)
    assert [made.known(name).parameters for name in ORDER] == [2] * len(ORDER)
    made.load("teacher", beside=["student"])
    assert [subject.name for subject in made.subjects.values() if subject.is_loaded] == ["teacher", "student"]
    assert opened == [*ORDER, *ORDER, "teacher"]
    # Of several that are done one after the other, those in memory come first.
    assert made.in_turn(["shrunk", "baseline", "student"]) == ["student", "shrunk", "baseline"]
