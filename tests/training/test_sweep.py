"""The search for a learning rate: it finds the lowest point, keeps to its budget, and survives what diverges."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.training.sweep import (
    FACTOR,
    HIGHEST,
    LARGEST_SHARE,
    LOWEST,
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


def after(rate, *trials):
    """What trials chose: of each a rate and a value."""
    return Chosen(rate, "sweep", list(trials), 8, 0.04)


def test_a_run_is_longer_than_its_trials():
    seen = (1e-4, 1.0), (3e-4, 1.1), (3.3e-5, 1.2)
    assert for_whole_run(after(1e-4, *seen), 0.9, 2e-4) == pytest.approx(1.4e-4)
    # From random weights a few steps favour rates that are far too large for a run.
    assert for_whole_run(after(0.03), 6.0, 4e-3) == pytest.approx(3e-3)
    assert for_whole_run(after(0.09), 6.0, 4e-3) == pytest.approx(8e-3)
    assert for_whole_run(after(0.003), 6.0, 4e-3) == pytest.approx(2e-3)


def test_trials_that_only_got_better_are_those_of_a_long_way():
    """Of a baseline near its teacher and far from the text: four rates up to the largest, each better than the last."""
    rates = [0.0036, 0.0108, 0.0324, 0.0972]
    rate, points = search(lambda rate: 7.1 - 10 * rate, rates[0])
    assert [rate for rate, _ in points] == pytest.approx(rates)
    chosen = Chosen(rate, "sweep", points)
    assert chosen.open
    assert chosen.record()["sweep_open"] is True
    assert 0.0018 <= for_whole_run(chosen, 0.5, 0.0036) <= 0.0072


def test_where_it_diverged_the_edge_was_seen():
    seen = (1e-3, 2.0), (3e-3, None), (3.3e-4, 2.5)
    assert not after(1e-3, *seen).open
    assert not after(1e-3).open


@given(st.floats(LOWEST, HIGHEST), st.floats(0, 12), st.floats(LOWEST, HIGHEST / FACTOR))
def test_no_rate_is_above_the_largest(rate, distance, table):
    assert for_whole_run(after(rate), distance, table) <= HIGHEST


def test_what_was_chosen_is_kept(tmp_path):
    kept = Kept(tmp_path / "sweep.json")
    assert kept.load() == (None, [])
    kept.tried([(1e-3, 0.5), (3e-3, None)])
    assert kept.load() == (None, [(1e-3, 0.5), (3e-3, None)])
    chosen = Chosen(2e-3, "sweep", [(1e-3, 0.5), (3e-3, None)], 8, 0.04)
    kept.chosen(chosen)
    assert kept.load()[0] == chosen
