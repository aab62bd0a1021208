"""Shares of items and paired comparisons of answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any


def share(successes: int, items: int, confidence: float = 0.95) -> dict[str, Any]:
    """A share of independent items with its Wilson interval (Wilson 1927), which stays honest at 0 and at 1.

    Returns:
        ``value`` and ``interval`` (None without items), ``items``.
    """
    if items == 0:
        return {"value": None, "interval": None, "items": 0}
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / items
    centre = (p + z * z / (2 * items)) / (1 + z * z / items)
    half = z * math.sqrt(p * (1 - p) / items + z * z / (4 * items * items)) / (1 + z * z / items)
    return {"value": p, "interval": [max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))], "items": items}


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> dict[str, Any]:
    """McNemar's test of two models on the same items: only items that one of them gets right speak.

    The two-sided mid-p value of the binomial test: the exact one rejects a true null far less often than it says
    (Fagerland, Lydersen & Laake 2013, doi:10.1186/1471-2288-13-91).

    Returns:
        ``only_first`` and ``only_second`` (items that one alone gets right), ``difference`` of the shares, ``p_value``.
    """
    if len(first) != len(second):
        raise ValueError("paired answers must be of the same items")
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    discordant = only_first + only_second
    if discordant == 0:
        p_value = 1.0
    else:
        least = min(only_first, only_second)
        logs = [
            math.lgamma(discordant + 1)
            - math.lgamma(k + 1)
            - math.lgamma(discordant - k + 1)
            - discordant * math.log(2)
            for k in range(least + 1)
        ]
        tail = sum(math.exp(value) for value in logs)
        p_value = min(1.0, 2 * (tail - 0.5 * math.exp(logs[-1])))
    return {
        "only_first": only_first,
        "only_second": only_second,
        "difference": (only_first - only_second) / len(first) if first else 0.0,
        "p_value": p_value,
    }


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
