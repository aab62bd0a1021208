"""The headline holds for the numbers: its rating, its words, and what it tells to do next."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.reporting.headline import Headline, against_baseline, make_headline, unequal

FALLING = {"steps": 100, "best_step": 100, "validations": [{"kl": 1.0}, {"kl": 0.8}, {"kl": 0.7}]}
LEVEL = {"steps": 100, "best_step": 100, "validations": [{"kl": 0.701}, {"kl": 0.7}, {"kl": 0.6999}]}
OVERFIT = {"steps": 100, "best_step": 40, "validations": [{"kl": 1.0}, {"kl": 0.7}, {"kl": 0.8}, {"kl": 0.9}]}
SURE, UNSURE, WORSE = (0.8, 0.7, 0.9), (0.98, 0.9, 1.1), (1.2, 1.1, 1.3)


def summary(
    agreement: float = 0.8, divergence: float = 0.3, documents: float = 40, repeats: int = 1, **more: Any
) -> dict[str, Any]:
    """A summary of a run with twenty prompts, of which the teacher repeats itself in one."""

    def answers(count: int, length: float) -> dict[str, Any]:
        return {"degenerate": {"count": count}, "median_tokens": length}

    return {
        "heldout_documents": 60,
        "effective_documents": documents,
        "student": {
            "top1_agreement": agreement,
            "top1_agreement_interval": [agreement - 0.01, agreement + 0.01],
            "kl_to_teacher": divergence,
            "kl_to_teacher_interval": [divergence - 0.01, divergence + 0.01],
        },
        "baseline": {"kl_to_teacher": 1.0},
        "compared": {"student_minus_baseline": {"kl_to_teacher": -0.2, "kl_to_teacher_interval": [-0.3, -0.1]}},
        "bounds": [],
        "measures": {
            "samples": {"prompts": 20, "models": {"teacher": answers(1, 60.0), "student": answers(repeats, 50.0)}}
        },
    } | more


def gate(met: bool) -> dict[str, Any]:
    return {"name": "fidelity.top1_agreement", "kind": "floor", "bound": 0.6, "value": 0.5 + met * 0.2, "met": met}


def told(found: Headline) -> str:
    return " ".join(f"{step.why} {step.what} {' '.join(step.codes)}" for step in found.steps)


@pytest.mark.parametrize(
    ("settings", "ratio", "level"),
    [
        ({}, SURE, "good"),
        ({"agreement": 0.6}, SURE, "fair"),
        ({"divergence": 0.7}, SURE, "fair"),
        ({"agreement": 0.4}, SURE, "poor"),
        ({"divergence": 1.4}, SURE, "poor"),
        ({}, UNSURE, "fair"),
        ({}, WORSE, "poor"),
        ({"repeats": 5}, SURE, "fair"),
        ({"repeats": 9}, SURE, "poor"),
        ({"documents": 9.4}, SURE, "unknown"),
        # Gates of the recipe decide where there are any.
        ({"agreement": 0.4, "bounds": [gate(True)]}, SURE, "good"),
        ({"bounds": [gate(True), gate(False)]}, SURE, "poor"),
        ({"documents": 3, "bounds": [gate(True)]}, SURE, "fair"),
    ],
)
def test_the_worst_number_rates_the_student(settings: dict[str, Any], ratio: Any, level: str) -> None:
    found = make_headline(summary(**settings), ratio, LEVEL)
    assert found.level == level
    assert all(check.symbol for check in found.checks)


@given(
    st.floats(0, 1), st.floats(0, 5), st.floats(1, 100), st.integers(0, 20),
    st.sampled_from([SURE, UNSURE, WORSE, None]), st.sampled_from([FALLING, LEVEL, OVERFIT, {}]),
)  # fmt: skip
def test_a_headline_never_says_more_than_its_numbers(
    agreement: float, divergence: float, documents: float, repeats: int, ratio: Any, record: dict[str, Any]
) -> None:
    found = make_headline(summary(agreement, divergence, documents, repeats), ratio, record)
    if documents < 10:
        assert found.level == "unknown"
        assert "oo few to tell" in found.title
        assert "corpus.heldout_share" in told(found)
    else:
        levels = {check.level for check in found.checks}
        assert found.level == next(level for level in ("poor", "fair", "good") if level in levels)
    # There is always something to do next.
    assert found.steps


def test_what_to_do_next_is_about_what_was_found() -> None:
    assert "distill.learning_rate" in told(make_headline(summary(), WORSE, LEVEL))
    assert "distill.learning_rate" not in told(make_headline(summary(), SURE, LEVEL))
    overfit = told(make_headline(summary(agreement=0.6), SURE, OVERFIT))
    assert "step 40 of 100" in overfit
    assert "distill.epochs" in overfit
    ruined = {"steps": 110, "best_step": 0, "validations": [{"kl": 0.7}, {"kl": 1.3}, {"kl": 1.1}, {"kl": 1.1}]}
    lost = told(make_headline(summary(agreement=0.6), SURE, ruined))
    assert "Not one of the 110 steps" in lost
    assert "distill.learning_rate" in lost
    assert "overfits" not in lost
    assert "still improving" in told(make_headline(summary(agreement=0.6), SURE, FALLING))
    assert "levelled off" in told(make_headline(summary(agreement=0.4), SURE, LEVEL))
    assert "circles" in told(make_headline(summary(repeats=9), SURE, LEVEL))
    good = make_headline(summary(), SURE, LEVEL)
    assert [code for step in good.steps for code in step.codes] == ["stillroom chat RUN", "stillroom package RUN"]
    missed = told(make_headline(summary(bounds=[gate(False)]), SURE, LEVEL))
    assert "fidelity.top1_agreement is 0.5; the recipe's minimum is 0.6" in missed


def test_no_ratio_is_claimed_to_a_baseline_that_got_less() -> None:
    reason = "the baseline had 900 tokens, the student 1,000"
    run = summary(baseline_comparison={"claimed": False, "reason": reason})
    assert unequal(run) == reason
    assert against_baseline(run) is None
    found = make_headline(run, None, LEVEL)
    shown = next(check for check in found.checks if "baseline" in check.name)
    assert (shown.value, shown.level) == ("not compared", "unknown")
    assert reason in shown.why
    assert "equal budget" in told(found)
    assert any("rm -r RUN/distill RUN/baseline" in step.codes for step in found.steps)
    fair = summary(baseline_comparison={"claimed": True, "reason": None})
    assert unequal(fair) == ""
    assert against_baseline(fair) is not None


def test_near_duplicates_are_told() -> None:
    run = summary(near_duplicates={"heldout": {"documents": 3, "of": 60}})
    assert "3 of 60 held-out documents are near-duplicates" in told(make_headline(run, SURE, LEVEL))
    assert "near-duplicates" not in told(make_headline(summary(near_duplicates=None), SURE, LEVEL))


def test_summaries_of_the_first_release_are_read() -> None:
    old = summary()
    del old["effective_documents"], old["measures"]["samples"]
    assert make_headline(old, SURE, LEVEL).level == "good"
    assert against_baseline(old) == (-0.2, -0.3, -0.1)
    # What was paired more carefully later is preferred.
    new = old | {"paired": {"kl": {"student_minus_baseline": {"value": -0.1, "low": -0.2, "high": 0.1}}}}
    assert against_baseline(new) == (-0.1, -0.2, 0.1)
