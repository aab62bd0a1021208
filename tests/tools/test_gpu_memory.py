"""Memory on a card: what is counted and what the plan computes agree, stage by stage; and for 8B to 4B all fits 80 GB."""

import json

import pytest

from tools.gpu import memory


@pytest.fixture(scope="module")
def small() -> memory.Case:
    return memory.small()


@pytest.mark.parametrize("stage", memory.STAGES)
def test_counted_and_planned_agree(stage: str, small: memory.Case) -> None:
    assert memory.planned(small)[stage] == pytest.approx(memory.counted(small, [stage])[stage], rel=0.1)


def test_eight_to_four_fits() -> None:
    """What is kept of the long count; the arithmetic is made now."""
    kept = json.loads(memory.KEPT.read_text(encoding="utf-8"))
    planned = memory.planned(memory.eight_to_four())
    assert set(kept["counted"]) == set(planned) == set(memory.STAGES)
    for stage, counted in kept["counted"].items():
        assert counted < 76e9
        assert planned[stage] < 76e9
        assert planned[stage] == pytest.approx(counted, rel=0.1)
