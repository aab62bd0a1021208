"""Bounds on tail probabilities that hold exactly, for any sample size: what grade A prints.

All are about sums whose signs or choices the owner drew himself: given everything else, they are independent fair coins (or
independent values with a known mean), whatever the suspect is.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]


def sign_flip_bound(values: Doubles) -> float:
    """log10 of a bound on P(sum of e_i |v_i| >= sum of v_i) for independent fair signs e_i.

    Chernoff: the least over l > 0 of exp(-l t) prod cosh(l |v_i|). It is above the true probability by about the factor
    z sqrt(2 pi), z being the number of standard deviations.

    Args:
        values: Real numbers whose signs are fair coins under the null hypothesis. Zeros say nothing.
    """
    weights = np.abs(np.asarray(values, np.float64))
    total = float(np.sum(values))
    if total <= 0 or not len(weights) or weights.max() == 0:
        return 0.0
    # No order but the signs' matters, and neither does scale.
    scale = float(weights.max())
    weights, total = weights / scale, total / scale

    def log_bound(rate: float) -> float:
        # log cosh x = |x| + log1p(exp(-2|x|)) - log 2, which does not overflow.
        scaled = rate * weights
        return float(np.sum(scaled + np.log1p(np.exp(-2 * scaled)) - math.log(2)) - rate * total)

    # Convex in the rate: a golden-section search. At total == sum of weights the bound falls to 2^-n as the rate grows.
    low, high = 0.0, 1.0
    while log_bound(high * 2) < log_bound(high) and high < 1e6:
        high *= 2
    high *= 2
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(200):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if log_bound(left) < log_bound(right):
            high = right
        else:
            low = left
    return min(0.0, log_bound((low + high) / 2) / math.log(10))


def binomial_tail(hits: int, trials: int) -> float:
    """log10 P(at least ``hits`` heads of ``trials`` fair coins), exactly."""
    if hits <= 0:
        return 0.0
    if not hits <= trials:
        raise ValueError("more hits than trials")
    logs = [math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in range(hits, trials + 1)]
    most = max(logs)
    total = most + math.log(sum(math.exp(value - most) for value in logs)) - trials * math.log(2)
    return min(0.0, total / math.log(10))


def hoeffding_bound(statistic: float, weights: Doubles) -> float:
    """log10 of Hoeffding's bound on P(sum of w_i (g_i - E g_i) >= statistic) for independent g_i in [0, 1].

    Args:
        statistic: The sum.
        weights: w, of either sign; independent of the g.
    """
    squares = float(np.sum(np.asarray(weights, np.float64) ** 2))
    if statistic <= 0 or squares == 0:
        return 0.0
    return -2 * statistic**2 / squares / math.log(10)


def signed_ranks(differences: Doubles) -> Doubles:
    """Wilcoxon's signed ranks: ranks of absolute values (ties share their mean rank) with the signs of the differences."""
    magnitudes = np.abs(differences)
    order = np.argsort(magnitudes, kind="stable")
    _, inverse, counts = np.unique(magnitudes[order], return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    mean_rank = ends - (counts - 1) / 2
    ranks = np.empty(len(differences))
    ranks[order] = mean_rank[inverse]
    signed: Doubles = np.sign(differences) * ranks
    return signed
