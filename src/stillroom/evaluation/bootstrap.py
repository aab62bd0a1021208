"""Intervals and paired comparisons by resampling documents.

Tokens of one document depend on each other, so documents, not tokens, are drawn again (Efron & Tibshirani 1993). Every
measure is a ratio of sums over documents: Σ value / Σ weight.

Legend: D documents, R resamplings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
CHUNK = 256
FEW = 6
"""Fewer documents than this say too little about their own spread to be resampled: Student's interval takes its place."""


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

    The interval is the bootstrap-t of the ratio: each resampling is studentized with its own standard error. The error that
    the pivots are scaled by is the careful one, so that the coverage holds where documents are few and of unequal length
    (benchmarks/evaluation.py measures it).

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
    error = _careful_error(values, weights, value) if len(values) > 1 else 0.0
    if error == 0:
        return Estimate(value, value, value)
    tail = (1 - confidence) / 2
    if len(values) < FEW:
        half = float(student_t(1 - tail, len(values) - 1) * error)
        return Estimate(value, value - half, value + half)
    generator = np.random.default_rng(seed)
    pivots = []
    for start in range(0, samples, CHUNK):
        drawn = generator.integers(len(values), size=(min(CHUNK, samples - start), len(values)))
        v, w = values[drawn], weights[drawn]
        centre = v.sum(1) / w.sum(1)
        spread = _standard_error(v, w, centre)
        # Draws of one document over and over have no spread but rounding's.
        pivots.append((centre - value) / np.where(spread > 1e-9 * error, spread, np.inf))
    low, high = np.quantile(np.concatenate(pivots), [tail, 1 - tail])
    return Estimate(value, min(value, float(value - high * error)), max(value, float(value - low * error)))


def difference(first: Array, second: Array, weights: Array, samples: int, confidence: float, seed: int) -> Estimate:
    """Interval of a paired difference (Σ first − Σ second) / Σ weights over the same documents."""
    return ratio(first - second, weights, samples, confidence, seed)


def student_t(probability: float, degrees: int) -> float:
    """Quantile of Student's distribution, for a probability above one half.

    With t = √ν · tan θ the density of θ is proportional to cos^(ν−1) θ, which is integrated on a grid.
    """
    angles = np.linspace(0, math.pi / 2, 200_001)
    density = np.cos(angles) ** (degrees - 1)
    cumulative = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = float(np.interp(2 * probability - 1, cumulative / cumulative[-1], angles))
    return math.sqrt(degrees) * math.tan(angle)


def _careful_error(values: Array, weights: Array, value: float) -> float:
    """Standard error of a ratio of sums, each document's residual divided by one minus its share of the weight.

    A long document pulls the ratio towards itself, so that its residual looks too small (HC3 of MacKinnon & White 1985).
    """
    total = weights.sum()
    residual = (values - value * weights) / np.maximum(1 - weights / total, 1e-9)
    return float(np.sqrt((residual**2).sum()) / total)


def _standard_error(values: Array, weights: Array, centre: Array) -> Array:
    """Standard error of a ratio of sums by linearization, for each row of [R, D]."""
    count = values.shape[1]
    residual = values - centre[:, None] * weights
    total = weights.sum(1)
    result: Array = np.sqrt((residual**2).sum(1) * count / max(1, count - 1)) / total
    return result
