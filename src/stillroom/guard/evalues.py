"""E-values of clusters against a benign baseline, and what may be claimed from them.

**One e-value per cluster and month.** A cluster's statistic S is at least 0 and grows with its worst day so far. With the
statistics S_1 … S_m of benign clusters of the same stratum,

    e = (m + 1) · S / (S + S_1 + … + S_m)

has a mean of at most 1 for a benign cluster that is exchangeable with them (the m + 1 ratios add up to m + 1). Because S
only grows within the month, e is at any day at most what it will be at the month's end: looking every day costs nothing.

**False alarms.** With n benign clusters in a month, an alarm at e ≥ n / B happens on average at most B times a month, by
Markov's inequality, however the clusters depend on one another. Every month begins anew (restart), so that nothing accumulates.

Multiplying daily e-values of one cluster would need its days to be independent of its past. They are not: an odd but honest
customer is odd every day, and a product over days accuses it for certain. So the customer, not the day, is the unit here.

**e-BH** (Wang and Ramdas 2022, arXiv 2009.02824) names a set of clusters in which the expected share of benign ones is at
most alpha, also under any dependence.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stillroom.core.errors import UsageError

Values = npt.NDArray[np.float64]


def conformal_e(statistics: Values, benign: Values) -> Values:
    """The e-values of statistics against those of m benign clusters; at most m + 1.

    Args:
        statistics: Logarithms of S, ``[n]``; ``-inf`` for S = 0.
        benign: Logarithms of the benign S, ``[m]``.
    """
    logs = np.asarray(statistics, np.float64)
    pool = np.asarray(benign, np.float64)
    pool = pool[np.isfinite(pool)]
    top = pool.max() if len(pool) else 0.0
    # In units of the largest benign statistic, so that nothing overflows.
    rest = float(np.exp(pool - top).sum())
    own = np.exp(np.clip(logs - top, -700, 700))
    own = np.where(np.isneginf(logs), 0.0, own)
    whole = own + rest
    return np.asarray(np.divide((len(benign) + 1) * own, whole, out=np.zeros_like(own), where=whole > 0))


def log_threshold(benign: Values, e: float) -> float:
    """The logarithm of S from which on :func:`conformal_e` is at least ``e``; infinite where no S reaches it."""
    count = len(benign) + 1
    if e >= count:
        return float("inf")
    pool = np.asarray(benign, np.float64)
    pool = pool[np.isfinite(pool)]
    if not len(pool):
        return float("-inf")
    top = pool.max()
    return float(top + np.log(np.exp(pool - top).sum()) + np.log(e) - np.log(count - e))


def e_bh(values: Values, alpha: float) -> npt.NDArray[np.bool_]:
    """Which hypotheses e-BH rejects: the k largest, for the largest k with e_(k) ≥ n / (k · alpha).

    Args:
        values: E-values, ``[n]``.
        alpha: Bound of the false discovery rate.

    Raises:
        UsageError: ``alpha`` is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise UsageError(f"alpha {alpha} is not between 0 and 1.", "0.1 is usual.")
    count = len(values)
    order = np.argsort(-values, kind="stable")
    enough = values[order] * np.arange(1, count + 1) * alpha >= count
    rejected = np.zeros(count, bool)
    if enough.any():
        rejected[order[: int(np.flatnonzero(enough)[-1]) + 1]] = True
    return rejected
