"""Sums that evaluation keeps while text streams past: by group of documents, and by source, position and token class.

Their size depends on neither the text's length nor the vocabulary. Intervals are over documents, not tokens; where there are
more than ``GROUPS`` of them, whole documents are put together into that many groups, which then count as documents.

Legend: G groups, K bins of an axis, B bins of confidence, P positions of one chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stillroom.evaluation.intervals import ENOUGH, Array, Estimate, effective_number, ratio

GROUPS = 1024
COLUMNS = ("kl", "top1", "top5", "compared", "nats", "tokens", "text_bytes")
CONFIDENCE_BINS = 15
Index = NDArray[np.int64]
Places = dict[str, Index]
"""For each axis the bin of each position, [P]; ``group`` holds the group."""

MEASURES: dict[str, tuple[str, str, float]] = {
    "kl_to_teacher": ("kl", "compared", 1.0),
    "top1_agreement": ("top1", "compared", 1.0),
    "top5_agreement": ("top5", "compared", 1.0),
    "cross_entropy": ("nats", "tokens", 1.0),
    "bits_per_byte": ("nats", "text_bytes", 1 / math.log(2)),
}
"""Each measure is Σ column · factor / Σ column: nats a compared position, shares, nats per token, bits per byte."""
MORE_IS_BETTER = {"top1_agreement", "top5_agreement"}


@dataclass
class Tally:
    """Sums of one model.

    Attributes:
        axes: Bins of each axis, K.
        tables: For each axis and column, [G, K].
        reliability: Positions, summed confidence and right answers by confidence, [G, B, 3].
    """

    axes: dict[str, int]
    groups: int
    tables: dict[str, dict[str, Array]] = field(init=False)
    reliability: Array = field(init=False)

    def __post_init__(self) -> None:
        self.tables = {
            axis: {column: np.zeros((self.groups, bins)) for column in COLUMNS} for axis, bins in self.axes.items()
        }
        self.reliability = np.zeros((self.groups, CONFIDENCE_BINS, 3))

    def add(self, places: Places, **columns: ArrayLike) -> None:
        """Add values [P] of columns (a number stands for as many of it) at the bins of their positions."""
        count = len(places["group"])
        for column, values in columns.items():
            filled = np.broadcast_to(np.asarray(values, dtype=np.float64), (count,))
            for axis in self.axes:
                np.add.at(self.tables[axis][column], (places["group"], places[axis]), filled)

    def add_reliability(self, groups: Index, confidence: Array, right: Array) -> None:
        """Add positions: the probability of the likeliest token, and whether it was the text's."""
        bins = np.minimum((confidence * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)
        for column, values in enumerate((np.ones(len(bins)), confidence, right)):
            np.add.at(self.reliability[..., column], (groups, bins), values)

    def of(self, column: str) -> Array:
        """A column's sum over each group, [G]."""
        total: Array = self.tables["all"][column][:, 0]
        return total

    def as_dict(self) -> dict[str, list[float]]:
        """Sums by group, for paired comparisons later."""
        return {column: self.of(column).tolist() for column in COLUMNS}


@dataclass(frozen=True)
class Drawing:
    """How intervals are made.

    Attributes:
        samples: Resamplings for the calibration error, whose interval alone is a bootstrap's.
        confidence: Share of the truth that intervals should cover.
        seed: Of the resampling.
    """

    samples: int
    confidence: float
    seed: int

    def estimate(self, values: Array, weights: Array) -> Estimate:
        """Σ values / Σ weights with its interval."""
        return ratio(values, weights, self.confidence)


def headline(tally: Tally, drawing: Drawing, axis: str = "all", index: int = 0) -> dict[str, Any]:
    """Every measure of one bin, with its interval."""
    table = {column: values[:, index] for column, values in tally.tables[axis].items()}
    return from_columns(table, drawing)


def from_columns(table: dict[str, Array], drawing: Drawing) -> dict[str, Any]:
    """Every measure of columns [G], with its interval (None of fewer than two documents) and the documents behind it."""
    result: dict[str, Any] = {}
    for name, (value, weight, factor) in MEASURES.items():
        estimate = drawing.estimate(table[value] * factor, table[weight])
        # Of no text there is no number.
        result[name] = estimate.value if estimate.documents else None
        bounds = estimate.interval
        if bounds is not None:
            # None of them can be below zero, and no share above one; the value itself stays inside.
            low = min(estimate.value, max(0.0, bounds[0]))
            high = max(estimate.value, min(1.0, bounds[1])) if name.endswith("agreement") else bounds[1]
            bounds = [low, high]
        result[f"{name}_interval"] = bounds
    return result | behind(table["tokens"])


def behind(weights: Array) -> dict[str, Any]:
    """How much text is behind a number: ``documents``, ``effective_documents``, and whether they are ``enough``."""
    effective = effective_number(weights)
    return {
        "documents": int((weights > 0).sum()),
        "effective_documents": round(effective, 2),
        "enough": effective >= ENOUGH,
    }


def sliced(tally: Tally, axis: str, labels: list[str], drawing: Drawing) -> list[dict[str, Any]]:
    """The measures of each bin of an axis that has text, with positions and groups of documents behind it."""
    found = []
    for index, label in enumerate(labels):
        compared = tally.tables[axis]["compared"][:, index]
        if compared.sum() and tally.tables[axis]["text_bytes"][:, index].sum():
            entry = {"label": label, "positions": int(compared.sum()), "groups": int((compared > 0).sum())}
            found.append(entry | headline(tally, drawing, axis, index))
    return found


def calibration(tally: Tally, drawing: Drawing) -> dict[str, Any]:
    """Expected calibration error and the points of a reliability plot.

    The error is Σ_b n_b / n · |accuracy_b − confidence_b| over bins of equal width (Naeini, Cooper & Hauskrecht 2015). Its
    interval is the percentile one over groups of documents; the error of few positions is biased upwards, and so is it.
    """
    table = tally.reliability
    total = table.sum(0)
    count = total[:, 0].sum()
    if not count:
        return {"ece": None, "ece_interval": None, "bins": []}
    generator = np.random.default_rng(drawing.seed)
    used = table[table[..., 0].sum(1) > 0].reshape(-1, CONFIDENCE_BINS * 3)
    value = float(_ece(total[None])[0])
    bins = [
        {"confidence": float(c / n), "accuracy": float(r / n), "share": float(n / count)} for n, c, r in total if n > 0
    ]
    if len(used) < 2:
        return {"ece": value, "ece_interval": None, "bins": bins}
    drawn = []
    for _ in range(0, drawing.samples, 128):
        weights = generator.multinomial(len(used), np.full(len(used), 1 / len(used)), size=128).astype(np.float64)
        drawn.append(_ece((weights @ used).reshape(-1, CONFIDENCE_BINS, 3)))
    tail = (1 - drawing.confidence) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    return {"ece": value, "ece_interval": [min(value, float(low)), max(value, float(high))], "bins": bins}


def _ece(tables: Array) -> Array:
    """[R, B, 3] to [R]."""
    result: Array = np.abs(tables[..., 1] - tables[..., 2]).sum(1) / tables[..., 0].sum(1)
    return result
