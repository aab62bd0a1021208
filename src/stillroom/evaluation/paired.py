"""Shares of items, and comparisons of models on the same documents or items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

from stillroom.evaluation.intervals import ENOUGH, TOO_FEW, Array, difference, ratio

SIGNIFICANT = 0.05


def share(successes: int, items: int, confidence: float = 0.95) -> dict[str, Any]:
    """A share of independent items with its Wilson interval (Wilson 1927), which stays honest at 0 and at 1.

    Returns:
        ``value`` (None without items), ``interval`` (None of fewer than two items), ``items``, and whether they are
        ``enough`` to tell.
    """
    if items < 2:
        return {"value": successes / items if items else None, "interval": None, "items": items, "enough": False}
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / items
    centre = (p + z * z / (2 * items)) / (1 + z * z / items)
    half = z * math.sqrt(p * (1 - p) / items + z * z / (4 * items * items)) / (1 + z * z / items)
    return {
        "value": p,
        "interval": [max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))],
        "items": items,
        "enough": items >= ENOUGH,
    }


def share_difference(
    first: int, of_first: int, second: int, of_second: int, confidence: float = 0.95
) -> dict[str, Any]:
    """Difference of two shares of independent items, with Newcombe's interval from the two Wilson ones.

    Newcombe 1998 (doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I), method 10.

    Returns:
        ``value`` (None where one has no items), ``interval`` (None where one has fewer than two), ``enough``.
    """
    mine, theirs = share(first, of_first, confidence), share(second, of_second, confidence)
    if mine["value"] is None or theirs["value"] is None:
        return {"value": None, "interval": None, "enough": False}
    value, bounds = mine["value"] - theirs["value"], None
    if mine["interval"] is not None and theirs["interval"] is not None:
        (low, high), (other_low, other_high) = mine["interval"], theirs["interval"]
        below = math.hypot(mine["value"] - low, other_high - theirs["value"])
        above = math.hypot(high - mine["value"], theirs["value"] - other_low)
        bounds = [value - below, value + above]
    return {"value": value, "interval": bounds, "enough": mine["enough"] and theirs["enough"]}


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> dict[str, Any]:
    """McNemar's test of two models on the same items: only items that one of them gets right count.

    The two-sided mid-p value of the binomial test: the exact one rejects a true null far less often than it says
    (Fagerland, Lydersen & Laake 2013, doi:10.1186/1471-2288-13-91).

    Returns:
        ``only_first`` and ``only_second`` (items that one alone gets right), ``difference`` of the shares, ``p_value``,
        ``items`` and whether they are ``enough`` to tell.
    """
    if len(first) != len(second):
        raise ValueError("paired answers must be of the same items")
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    discordant = only_first + only_second
    if discordant == 0:
        p_value = 1.0
    else:
        chances = _coin(min(only_first, only_second), discordant)
        p_value = min(1.0, 2 * (sum(chances) - 0.5 * chances[-1]))
    return {
        "only_first": only_first,
        "only_second": only_second,
        "difference": (only_first - only_second) / len(first) if first else 0.0,
        "p_value": p_value,
        "items": len(first),
        "enough": len(first) >= ENOUGH,
    }


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided p-value of the sign test: wins and losses are equally likely under the null; ties say nothing."""
    return min(1.0, 2 * sum(_coin(min(wins, losses), wins + losses)))


def _coin(most: int, tosses: int) -> list[float]:
    """Chances of 0, 1, … ``most`` heads in so many tosses of a fair coin."""
    return [
        math.exp(math.lgamma(tosses + 1) - math.lgamma(k + 1) - math.lgamma(tosses - k + 1) - tosses * math.log(2))
        for k in range(most + 1)
    ]


def paired_difference(first: Array, second: Array, weights: Array, confidence: float, *, less: bool) -> dict[str, Any]:
    """Two models on the same documents: (Σ first − Σ second) / Σ weights, and document by document.

    The weighted difference is what a token of this text can expect, and one long document may decide it; the mean over
    documents and the sign test give each document one vote. They answer different questions, so both are told.

    Args:
        first: Sums of the first model over each document, [D].
        second: Sums of the second, [D].
        weights: What both are divided by, [D]; documents of weight 0 are left out.
        confidence: Share of the truth that intervals should cover.
        less: Whether less is better.

    Returns:
        ``value``, ``low``, ``high`` of the weighted difference (None of fewer than two documents), ``n``,
        ``effective_n``, ``enough``; ``mean`` with the same three of the unweighted mean over documents; ``wins`` and
        ``losses`` of the first model over documents, ``sign_test_p``; ``conclusion`` in words.
    """
    chosen = weights > 0
    first, second, weights = first[chosen], second[chosen], weights[chosen]
    by_document = (first - second) / weights
    better = -by_document if less else by_document
    return _paired(
        difference(first, second, weights, confidence).as_dict(),
        ratio(by_document, weights * 0 + 1, confidence).as_dict(),
        better,
        zero=0.0,
        less=less,
    )


def paired_quotient(first: Array, second: Array, confidence: float, *, less: bool) -> dict[str, Any]:
    """Σ first / Σ second of two models on the same documents; as :func:`paired_difference`, with quotients."""
    chosen = second > 0
    first, second = first[chosen], second[chosen]
    by_document = first / second
    return _paired(
        ratio(first, second, confidence).as_dict(),
        ratio(by_document, second * 0 + 1, confidence).as_dict(),
        1 - by_document if less else by_document - 1,
        zero=1.0,
        less=less,
    )


def _paired(
    weighted: dict[str, Any], mean: dict[str, Any], better: Array, *, zero: float, less: bool
) -> dict[str, Any]:
    wins, losses = int((better > 0).sum()), int((better < 0).sum())
    found = weighted | {
        "mean": {key: mean[key] for key in ("value", "low", "high")},
        "wins": wins,
        "losses": losses,
        "sign_test_p": sign_test(wins, losses),
    }
    return found | {"conclusion": _conclusion(found, zero, less)}


def _conclusion(found: dict[str, Any], zero: float, less: bool) -> str:
    """``better``, ``worse``, ``may be chance`` or ``too few to tell`` by the weighted interval; what most documents say
    where it does not tell and they do.
    """
    weighted = TOO_FEW
    if found["enough"] and found["low"] is not None:
        below, above = found["high"] < zero, found["low"] > zero
        if below or above:
            return "better" if below == less else "worse"
        weighted = "may be chance"
    if found["n"] >= ENOUGH and found["sign_test_p"] < SIGNIFICANT:
        word = "better" if found["wins"] > found["losses"] else "worse"
        return f"{word} in most documents; by token {weighted}"
    return weighted


def paired_share(first: Sequence[bool], second: Sequence[bool], confidence: float = 0.95) -> list[float]:
    """Interval of the difference of two shares on the same items.

    Agresti & Min (2005, doi:10.1002/sim.1781): Wald's interval after half an item was added to each cell.
    """
    count = len(first) + 2
    only_first = sum(a and not b for a, b in zip(first, second, strict=True)) + 0.5
    only_second = sum(b and not a for a, b in zip(first, second, strict=True)) + 0.5
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (only_first - only_second) / count
    half = z * math.sqrt(max(0.0, only_first + only_second - (only_first - only_second) ** 2 / count)) / count
    return [max(-1.0, centre - half), min(1.0, centre + half)]
