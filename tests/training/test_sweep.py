"""The search for a learning rate: it finds the lowest point, keeps to its budget, and survives what diverges."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.training.sweep import (
    FACTOR,
    LARGEST_SHARE,
    TRIALS,
    Budget,
    Chosen,
    Kept,
    for_whole_run,
    search,
    table_rate,
)


def valley(best: float, wall: float = math.inf):
    """Values with their least at a rate, which diverge above another one."""
    return lambda rate: None if rate > wall else 1 + math.log(rate / best) ** 2


@given(st.floats(math.log(1e-4), math.log(1e-2)))
def test_the_lowest_point_is_found(log_best):
    best = math.exp(log_best)
    rate, points = search(valley(best), 1e-3)
    assert len(points) <= TRIALS
    # Beyond the last trial it cannot see.
    reached = 1e-3 * FACTOR ** (TRIALS - 3)
    if 1e-3 / reached * 1e-3 * FACTOR < best < reached:
        assert rate == pytest.approx(best, rel=1e-6)


@given(st.floats(1e-5, 1e-2), st.floats(1e-6, 1e-2))
def test_rates_that_diverge_are_never_chosen(best, wall):
    rate, points = search(valley(best, wall), 1e-3)
    assert len(points) <= TRIALS
    if any(value is not None for _, value in points):
        assert rate <= wall * FACTOR**0.5
        finite = [tried for tried, value in points if value is not None]
        assert min(finite) / FACTOR <= rate <= max(finite) * FACTOR
    else:
        assert rate == min(tried for tried, _ in points)


def test_equal_values_take_the_smaller_rate():
    assert search(lambda _: 1.0, 1e-3)[0] < 1e-3


def test_a_search_goes_on_from_what_was_tried():
    _, points = search(valley(3e-3), 1e-3)
    asked = []

    def trial(rate):
        asked.append(rate)
        return valley(3e-3)(rate)

    assert search(trial, 1e-3, points[:2]) == search(valley(3e-3), 1e-3)
    assert asked == [rate for rate, _ in points[2:]]


@given(st.integers(1, 5000), st.integers(1, 32), st.integers(1, 200))
def test_the_budget_is_kept_whatever_the_run(steps, per_step, validation):
    budget = Budget.of([per_step] * steps, per_step * steps, validation)
    if budget is not None:
        assert TRIALS * budget.trial_share <= LARGEST_SHARE
        assert 1 <= budget.validation_rows <= validation
    else:
        assert steps < 1000


def test_the_table_goes_by_width_and_distance():
    assert table_rate(576, 0.9) == pytest.approx(2e-4)
    assert table_rate(576, 0.1) < table_rate(576, 0.9) < table_rate(576, 6.0)
    assert table_rate(4096, 0.9) == pytest.approx(2e-4 * 576 / 4096)
    assert table_rate(192, 6.0) == pytest.approx(2e-3 * 3**0.5)
    assert for_whole_run(1e-4, 0.9, 2e-4) > 1e-4
    # From random weights a few steps favour rates that are far too large for a run.
    assert for_whole_run(0.03, 6.0, 4e-3) == pytest.approx(3e-3)
    assert for_whole_run(0.09, 6.0, 4e-3) == pytest.approx(8e-3)
    assert for_whole_run(0.003, 6.0, 4e-3) == pytest.approx(2e-3)


def test_what_was_chosen_is_kept(tmp_path):
    kept = Kept(tmp_path / "sweep.json")
    assert kept.load() == (None, [])
    kept.tried([(1e-3, 0.5), (3e-3, None)])
    assert kept.load() == (None, [(1e-3, 0.5), (3e-3, None)])
    chosen = Chosen(2e-3, "sweep", [(1e-3, 0.5), (3e-3, None)], 8, 0.04)
    kept.chosen(chosen)
    assert kept.load()[0] == chosen
