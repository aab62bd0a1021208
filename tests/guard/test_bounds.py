"""The bounds are never below the true probability, and near it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, rankdata

from stillroom.guard.marks_bounds import binomial_tail, hoeffding_bound, sign_flip_bound, signed_ranks

VALUES = st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=9)


@given(VALUES)
def test_no_sum_of_signs_is_more_probable_than_its_bound(values: list[float]) -> None:
    weights = np.abs(values)
    sums = [float(np.dot(signs, weights)) for signs in itertools.product((-1, 1), repeat=len(weights))]
    share = np.mean([value >= sum(values) - 1e-9 for value in sums])
    assert math.log10(share) <= sign_flip_bound(np.array(values)) + 1e-6


def test_the_bound_is_near_where_all_signs_agree() -> None:
    assert sign_flip_bound(np.ones(40)) == pytest.approx(-40 * math.log10(2), abs=0.01)
    assert sign_flip_bound(-np.ones(40)) == 0.0
    # Eight standard deviations: the normal tail is 10^-15.2, and the bound within the factor that it is known to lose.
    values = np.concatenate([np.ones(5400), -np.ones(4600)])
    assert -16 < sign_flip_bound(values) < -13


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_binomial_tail_is_scipy_s(case: tuple[int, int]) -> None:
    hits, trials = case
    assert binomial_tail(hits, trials) == pytest.approx(binom.logsf(hits - 1, trials, 0.5) / math.log(10), abs=1e-6)


def test_hoeffding_holds_over_random_keys() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=60)
    drawn = rng.integers(0, 2, (20_000, 60))
    p = np.array([hoeffding_bound(float(np.dot(weights, g - 0.5)), weights) for g in drawn])
    for level in (0.5, 0.1, 0.01):
        assert np.mean(p <= math.log10(level)) <= level


@given(st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=30))
def test_signed_ranks_are_scipy_s(values: list[float]) -> None:
    found = signed_ranks(np.array(values))
    assert found == pytest.approx(np.sign(values) * rankdata(np.abs(values)))
