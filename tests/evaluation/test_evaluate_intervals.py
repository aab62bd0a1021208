"""Intervals and paired tests on data whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.evaluation import coverage, coverage_by_length, rejection
from stillroom.evaluation.intervals import difference, ratio, student_t
from stillroom.evaluation.paired import (
    mcnemar,
    paired_difference,
    paired_quotient,
    paired_share,
    share,
    share_difference,
    sign_test,
)

answers = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def test_intervals_cover_the_truth() -> None:
    # The benchmark does 1,000 repetitions and holds them to 93 to 97 %; 150 can only show a gross mistake.
    for kind, share_ in coverage(150, seed=3).items():
        assert 0.89 <= share_ <= 0.995, kind


def test_intervals_cover_on_real_lengths() -> None:
    for setting, found in coverage_by_length(300, seed=5).items():
        for kind in ("value", "difference", "quotient"):
            assert 0.90 <= found[kind] <= 0.99, (setting, kind)


def test_paired_tests_keep_a_true_null() -> None:
    for kind, share_ in rejection(150, seed=4).items():
        assert share_ <= 0.11, kind


def test_a_difference_is_found_where_there_is_one() -> None:
    generator = np.random.default_rng(0)
    weights = np.full(40, 50.0)
    shared = generator.normal(2, 1, 40)
    found = difference((shared + 0.2) * weights, (shared + generator.normal(0, 0.1, 40)) * weights, weights, 0.95)
    assert 0 < found.low < found.value < found.high
    # Unpaired, the same difference drowns in what the documents have in common.
    alone = ratio((shared + 0.2) * weights, weights, 0.95)
    assert alone.high - alone.low > 4 * (found.high - found.low)


def test_effective_documents_are_fewer_where_one_is_long() -> None:
    weights = np.asarray([6311.0, *[300.0] * 18])
    found = ratio(weights * 1.3, weights, 0.95)
    assert found.documents == 19
    # (Σ w)² / Σ w²: 11,711² / (6,311² + 18 · 300²).
    assert found.effective == pytest.approx(11711**2 / (6311**2 + 18 * 300**2))
    assert not found.enough
    assert ratio(np.ones(10), np.ones(10), 0.95).enough
    assert not ratio(np.ones(9), np.ones(9), 0.95).enough


def test_one_document_has_no_interval_and_none_has_no_value() -> None:
    one = ratio(np.asarray([3.0]), np.asarray([2.0]), 0.95)
    assert (one.value, one.low, one.high, one.documents, one.effective) == (1.5, None, None, 1, 1.0)
    none = ratio(np.asarray([3.0]), np.asarray([0.0]), 0.95)
    assert math.isnan(none.value)
    assert none.interval is None
    assert share(1, 1) == {"value": 1.0, "interval": None, "items": 1, "enough": False}


def test_a_long_document_does_not_outvote_the_others() -> None:
    """The first is better on 18 short documents and worse on the one that holds most of the text."""
    generator = np.random.default_rng(0)
    weights = np.asarray([6311.0, *generator.integers(100, 500, 18)])
    second = weights * 1.4
    first = second - weights * np.asarray([-0.1, *generator.normal(0.4, 0.05, 18)])
    found = paired_difference(first, second, weights, 0.95, less=True)
    assert (found["wins"], found["losses"], found["n"]) == (18, 1, 19)
    assert found["effective_n"] < 10
    assert not found["enough"]
    assert found["sign_test_p"] == pytest.approx(2 * 20 / 2**19)
    assert found["mean"]["high"] < 0
    assert found["low"] < 0 < found["high"]
    assert found["conclusion"] == "better in most documents; by token too few to tell"
    # Where more is better, the same numbers are 18 losses.
    assert paired_difference(first, second, weights, 0.95, less=False)["losses"] == 18


def test_conclusions_follow_the_interval() -> None:
    generator = np.random.default_rng(1)
    weights = np.full(30, 200.0)
    noise = generator.normal(0, 0.05, 30) * weights
    better = paired_difference(weights * 1.0 + noise, weights * 1.2, weights, 0.95, less=True)
    assert better["conclusion"] == "better"
    assert paired_difference(weights * 1.4 + noise, weights * 1.2, weights, 0.95, less=True)["conclusion"] == "worse"
    chance = paired_difference(weights + noise - noise.mean(), weights, weights, 0.95, less=True)
    assert chance["conclusion"] == "may be chance"
    ratio_ = paired_quotient(weights * 1.42 + noise, weights, 0.95, less=True)
    assert ratio_["low"] < 1.42 < ratio_["high"]
    assert ratio_["conclusion"] == "worse"
    assert paired_quotient(np.ones(1), np.ones(1), 0.95, less=True)["conclusion"] == "too few to tell"


def test_the_sign_test_is_the_binomial_one() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(19, 0) == pytest.approx(2 * 0.5**19)
    assert sign_test(5, 14) == sign_test(14, 5) == pytest.approx(0.0636, abs=1e-4)


def test_the_difference_of_shares_is_newcombes() -> None:
    # Newcombe 1998, table II, case (a): 56/70 − 48/80, 0.0524 to 0.3339.
    found = share_difference(56, 70, 48, 80)
    assert found["value"] == pytest.approx(0.2)
    assert found["interval"] == pytest.approx([0.0524, 0.3339], abs=1e-4)
    assert share_difference(0, 0, 1, 3)["value"] is None


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.1, 100)), min_size=1, max_size=30), st.integers(0, 9))
@settings(max_examples=40)
def test_an_interval_holds_its_value_and_ignores_empty_documents(rows: list[tuple[float, float]], seed: int) -> None:
    weights = np.asarray([weight for _, weight in rows])
    values = np.asarray([rate for rate, _ in rows]) * weights
    found = ratio(values, weights, 0.95)
    if len(rows) == 1:
        assert found.interval is None
    else:
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.value <= found.high
    assert found.documents == len(rows)
    assert 1 <= found.effective <= len(rows) + 1e-6
    assert math.isclose(found.value, values.sum() / weights.sum())
    more = ratio(np.append(values, 5.0), np.append(weights, 0.0), 0.95)
    assert more == found


def test_two_documents_that_differ_do_not_look_certain() -> None:
    found = ratio(np.asarray([1.0, 3.0]), np.asarray([1.0, 1.0]), 0.95)
    assert found.low < -5
    assert found.high > 9


@pytest.mark.parametrize(("degrees", "expected"), [(1, 12.706), (2, 4.303), (4, 2.776), (30, 2.042)])
def test_students_quantiles_are_the_table_s(degrees: int, expected: float) -> None:
    assert student_t(0.975, degrees) == pytest.approx(expected, abs=1e-3)


def test_shares_stay_honest_at_the_ends() -> None:
    # Wilson 1927: 0 of 10 is compatible with 28 %.
    assert share(0, 10)["interval"] == pytest.approx([0.0, 0.2775], abs=1e-3)
    assert share(10, 10)["interval"][1] == 1.0
    assert share(0, 0)["value"] is None


@given(answers)
def test_mcnemar_is_symmetric_and_a_probability(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    one, other = mcnemar(first, second), mcnemar(second, first)
    assert 0 <= one["p_value"] <= 1
    assert one["p_value"] == pytest.approx(other["p_value"])
    assert one["difference"] == pytest.approx(-other["difference"])
    low, high = paired_share(first, second)
    assert -1 <= low <= one["difference"] <= high <= 1 or not pairs


def test_mcnemar_s_mid_p() -> None:
    first, second = [True] * 9 + [False], [False] * 9 + [True]
    # Binomial(10, 1/2): P(0) + P(1) = 11/1024; mid-p takes half of P(1) away; two sides.
    assert mcnemar(first, second)["p_value"] == pytest.approx(2 * (11 - 5) / 1024)
    with pytest.raises(ValueError, match="same items"):
        mcnemar([True], [])
