"""E-values: their mean under the null hypothesis, the bound of false alarms, and e-BH."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.core.errors import UsageError
from stillroom.guard.evalues import conformal_e, e_bh, log_threshold

logs = st.lists(st.floats(-50, 50), min_size=1, max_size=30)


@given(logs)
def test_the_ratios_of_exchangeable_statistics_add_up_to_their_number(values: list[float]) -> None:
    """Whichever of m + 1 statistics is the new one: the mean of its e-values is 1, which is why an e-value is one."""
    array = np.array(values)
    found = [conformal_e(array[place : place + 1], np.delete(array, place))[0] for place in range(len(array))]
    assert np.mean(found) == pytest.approx(1.0)


@given(logs, st.floats(0.1, 40))
def test_the_threshold_is_where_the_e_value_is_reached(values: list[float], e: float) -> None:
    """And none exists where e is more than m + 1 can give."""
    pool = np.array(values)
    limit = log_threshold(pool, e)
    if e >= len(pool) + 1:
        assert limit == float("inf")
    else:
        assert conformal_e(np.array([limit]), pool)[0] == pytest.approx(e, rel=1e-6)


def test_e_values_grow_with_the_statistic_and_a_missing_one_has_none() -> None:
    """So that the highest of a month bounds every day before it."""
    pool = np.random.default_rng(0).normal(size=100)
    found = conformal_e(np.linspace(-5, 200, 50), pool)
    assert (np.diff(found) >= -1e-9).all()
    assert found[-1] == pytest.approx(101)
    assert conformal_e(np.array([-np.inf]), pool)[0] == 0


def test_false_alarms_of_a_heavy_tail_stay_under_the_bound() -> None:
    """Months of 200 clusters whose statistics are Cauchy in the logarithm, all of one month shifted together by chance."""
    rng = np.random.default_rng(1)
    bound, clusters, alarms = 1.0, 200, []
    for _ in range(300):
        months = rng.standard_cauchy((7, clusters)) * 3
        alarms.append(int((months[0] >= log_threshold(months[1:].ravel(), clusters / bound)).sum()))
    assert np.mean(alarms) - 2 * np.std(alarms) / np.sqrt(len(alarms)) <= bound


def test_e_bh_follows_its_definition() -> None:
    """The k largest for the largest k with e_(k) at least n / (k alpha)."""
    values = np.array([50.0, 0.1, 21.0, 0.5, 19.0, 1.0, 0, 0, 0, 0])
    assert e_bh(values, 0.2).tolist() == [True, False, True, False, True, False, False, False, False, False]
    assert not e_bh(np.ones(5), 0.1).any()
    with pytest.raises(UsageError, match="not between"):
        e_bh(values, 1.5)
