"""The teacher against itself is perfect; each fault is caught by the measure meant for it and by no other."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.evaluation import kl_difference
from benchmarks.faults import FAULTS, alarms, faulty, measured, with_student


def test_the_teacher_against_itself_is_perfect(world: Any) -> None:
    bench, _ = world
    results = measured(bench)
    assert alarms(results) == set()
    student = results["fidelity"]["models"]["student"]
    assert abs(student["kl_to_teacher"]) < 1e-6
    assert student["top1_agreement"] == student["top5_agreement"] == 1
    assert student["bits_per_byte"] == pytest.approx(
        results["fidelity"]["models"]["teacher"]["bits_per_byte"], rel=1e-6
    )
    for rows in results["fidelity"]["slices"].values():
        assert all(entry["top1_agreement"] == 1 for entry in rows["student"])
    for entry in results["languages"]["languages"].values():
        assert entry["retention"]["student"]["value"] == pytest.approx(1, abs=1e-6)
        assert entry["models"]["student"]["top1_agreement"] == 1
    for test in results["safeguards"]["compared"]["student_minus_teacher"].values():
        assert test["p_value"] == 1
    assert results["safeguards"]["models"]["teacher"]["refusal"]["value"] == 1
    assert results["safeguards"]["models"]["teacher"]["over_refusal"]["value"] == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught_by_its_measure_alone(fault: str, world: Any) -> None:
    bench, teacher = world
    student = faulty(fault, teacher)
    made = with_student(bench, teacher, student, fault)
    assert alarms(measured(made)) == {FAULTS[fault]}
    if fault == "shuffled weights":
        assert kl_difference(made, student) < 1e-6
