"""Intervals and paired tests on data whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.evaluation import coverage, rejection
from stillroom.evaluation.intervals import difference, ratio, student_t
from stillroom.evaluation.paired import mcnemar, paired_share, share

answers = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def test_intervals_cover_the_truth() -> None:
    # The benchmark does 1,000 repetitions and holds them to 93 to 97 %; 150 can only show a gross mistake.
    for kind, share_ in coverage(150, seed=3).items():
        assert 0.89 <= share_ <= 0.995, kind


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


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.1, 100)), min_size=1, max_size=30), st.integers(0, 9))
@settings(max_examples=40)
def test_an_interval_holds_its_value_and_ignores_empty_documents(rows: list[tuple[float, float]], seed: int) -> None:
    weights = np.asarray([weight for _, weight in rows])
    values = np.asarray([rate for rate, _ in rows]) * weights
    found = ratio(values, weights, 0.95)
    assert found.low <= found.value <= found.high
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
