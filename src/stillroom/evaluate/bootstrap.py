"""Intervals and paired comparisons by resampling documents. Knows nothing of models.

Tokens of one document depend on each other, so documents, not tokens, are drawn again (Efron & Tibshirani 1993). Every
measure is a ratio of sums over documents: Σ value / Σ weight.

Legend: D documents, R resamplings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
CHUNK = 256


@dataclass(frozen=True)
class Estimate:
    """A value and its interval.

    Attributes:
        value: Σ value / Σ weight over all documents.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def ratio(values: Array, weights: Array, samples: int, confidence: float, seed: int) -> Estimate:
    """Interval of Σ values / Σ weights.

    The interval is the bootstrap-t of the ratio: each resampling is studentized with its own standard error, which keeps
    the coverage where documents are few and of unequal length.

    Args:
        values: Sum of the measure over each document, [D].
        weights: What it is divided by, [D]; documents of weight 0 are left out.
        samples: Resamplings, R.
        confidence: Share of the truth that intervals should cover, such as 0.95.
        seed: Seed of the resampling.
    """
    chosen = weights > 0
    values, weights = values[chosen], weights[chosen]
    if len(values) == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    value = float(values.sum() / weights.sum())
    error = _standard_error(values[None], weights[None], np.asarray([value]))[0]
    if len(values) < 2 or error == 0:
        return Estimate(value, value, value)
    generator = np.random.default_rng(seed)
    pivots = []
    for start in range(0, samples, CHUNK):
        drawn = generator.integers(len(values), size=(min(CHUNK, samples - start), len(values)))
        v, w = values[drawn], weights[drawn]
        centre = v.sum(1) / w.sum(1)
        spread = _standard_error(v, w, centre)
        pivots.append((centre - value) / np.where(spread > 0, spread, np.inf))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(pivots), [tail, 1 - tail])
    return Estimate(value, float(value - high * error), float(value - low * error))


def difference(first: Array, second: Array, weights: Array, samples: int, confidence: float, seed: int) -> Estimate:
    """Interval of a paired difference (Σ first − Σ second) / Σ weights over the same documents."""
    return ratio(first - second, weights, samples, confidence, seed)


def _standard_error(values: Array, weights: Array, centre: Array) -> Array:
    """Standard error of a ratio of sums by linearization, for each row of [R, D]."""
    count = values.shape[1]
    residual = values - centre[:, None] * weights
    total = weights.sum(1)
    result: Array = np.sqrt((residual**2).sum(1) * count / max(1, count - 1)) / total
    return result
