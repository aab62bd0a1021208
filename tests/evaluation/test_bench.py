"""How many models an evaluation holds at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stillroom.core.progress import Progress
from stillroom.evaluation.bench import ORDER, STUDENTS_AT_ONCE, Bench, Subject


def bench(device: str, opened: list[str]) -> Bench:
    def opener(name: str) -> Any:
        def open_it() -> Any:
            opened.append(name)
            return name

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


def test_a_processor_holds_all() -> None:
    opened: list[str] = []
    made = bench("cpu", opened)
    for name in (*ORDER, *ORDER):
        made.load(name)
    assert opened == list(ORDER)
