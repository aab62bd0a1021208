"""The benign baseline: what honest clusters look like, learned from months in which the owner knows of no campaign.

A third of the clusters, drawn by digest, fits the score; the others are the pool that e-values compare with. No example of
an attack is in either. A stream's score is the sum, over features, of how far it is in the upper tail of benign streams of
its stratum,

    u_f(x) = -log10 P(feature of a benign stream ≥ x),

empirical up to the 95th percentile and exponential beyond it, at most :data:`MOST` each. A cluster's statistic is S = 10^(λ
· score) of its highest stream.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.core import files
from stillroom.core.errors import UsageError
from stillroom.guard.campaign import (
    FEATURES,
    STRATA,
    Data,
    Day,
    Floats,
    Integers,
    days_of,
    load_month,
    months_of,
    stratum,
)
from stillroom.guard.evalues import conformal_e, log_threshold
from stillroom.guard.log_store import Store

SCHEMA = "stillroom.guard.baseline/1"
BUDGET = (0.25, 0.25, 0.5)
"""How the false alarms that are allowed a month are divided between the strata."""
LEVELS = np.r_[np.arange(0, 95), 95.0]
MOST = 4.0
LAMBDA = 0.3
FIT_SHARE = 1 / 3


@dataclass(frozen=True)
class Scorer:
    """Tails of the features of benign streams, by stratum.

    Attributes:
        grids: Percentiles 0 to 95, ``[strata, features, 96]``.
        scales: Mean excess over the 95th percentile, ``[strata, features]``.
    """

    grids: Floats
    scales: Floats

    def parts(self, values: Floats, strata: Integers) -> Floats:
        """Surprisals of every feature, ``[streams, features]``."""
        found = np.zeros_like(values)
        tail = 1 - LEVELS / 100
        for kind in range(len(STRATA)):
            chosen = strata == kind
            for feature in range(values.shape[1]):
                x = values[chosen, feature]
                grid = self.grids[kind, feature]
                # The smallest share of benign streams that may be at least x: at a tie, the whole tie counts.
                place = np.searchsorted(grid, x, "left") - 1
                inside = -np.log10(tail[np.clip(place, 0, len(grid) - 1)]) * (place >= 0)
                beyond = (x - grid[-1]) / (self.scales[kind, feature] * np.log(10))
                found[chosen, feature] = np.minimum(np.where(x > grid[-1], -np.log10(0.05) + beyond, inside), MOST)
        return found

    def scores(self, values: Floats, strata: Integers) -> Floats:
        """Scores of streams."""
        return np.asarray(self.parts(values, strata).sum(axis=1))


def fit(values: Floats, strata: Integers) -> Scorer:
    """Learn the tails from benign streams."""
    count = values.shape[1]
    grids = np.zeros((len(STRATA), count, len(LEVELS)))
    scales = np.ones((len(STRATA), count))
    for kind in range(len(STRATA)):
        chosen = values[strata == kind]
        if len(chosen) < 40:
            # Too few of this stratum to know its tails: those of all streams are taken.
            chosen = values
        grids[kind] = np.percentile(chosen, LEVELS, axis=0).T
        for feature in range(count):
            column, top = chosen[:, feature], grids[kind, feature, -1]
            above = column[column > top] - top
            spread = top - np.median(column)
            scales[kind, feature] = max(float(above.mean()) if len(above) else 0.0, 0.1 * float(spread), 0.02)
    return Scorer(grids, scales)


@dataclass(frozen=True)
class Worst:
    """The highest score of each cluster and stratum in a month; parallel arrays.

    Attributes:
        cluster: Index of the cluster at the month's end.
        root: Account that names it at the month's end.
        strata: Stratum in which it had the score.
        score: The score.
        day: When it was reached.
        template: Index of the template of that stream.
        size: Accounts on that day.
        values: Features of that stream.
        first: First day on which the score was at least ``limits[stratum]``; -1 without limits or where it never was.
    """

    cluster: Integers
    root: Integers
    strata: Integers
    score: Floats
    day: Integers
    template: Integers
    size: Integers
    values: Floats
    first: Integers


def worst_of(days: list[Day], scorer: Scorer, limits: Floats | None = None) -> Worst:
    """The highest score of each cluster and stratum, over the days of a month.

    A day's cluster belongs to the cluster that its first account is in at the month's end.
    """
    last = days[-1].clusters.labels
    day = np.concatenate([np.full(len(found.root), found.day) for found in days])
    root = np.concatenate([found.root for found in days])
    size = np.concatenate([found.size for found in days])
    template = np.concatenate([found.template for found in days])
    values = np.concatenate([found.values for found in days])
    strata = stratum(size)
    score = scorer.scores(values, strata)
    group = last[root] * len(STRATA) + strata
    order = np.lexsort((-day, score, group))
    ends = np.flatnonzero(np.r_[group[order][1:] != group[order][:-1], True]) if len(order) else order
    best = order[ends]
    first = np.full(len(best), -1)
    if limits is not None:
        over = score >= limits[strata]
        earliest = np.full(int(group.max()) + 1 if len(group) else 1, 10_000)
        np.minimum.at(earliest, group[over], day[over])
        first = np.where(earliest[group[best]] < 10_000, earliest[group[best]], -1)
    final_root = np.full(int(last.max()) + 1, -1)
    everyone = np.flatnonzero(last >= 0)
    # Reversed, so that the smallest index of a cluster's first accounts is the one that stays.
    final_root[last[everyone[::-1]]] = everyone[::-1]
    for found in days:
        final_root[last[found.root]] = found.root
    return Worst(
        last[root[best]], final_root[last[root[best]]], strata[best], score[best], day[best], template[best], size[best],
        values[best], first,
    )  # fmt: skip


@dataclass(frozen=True)
class Baseline:
    """A frozen baseline.

    Attributes:
        scorer: How streams are scored.
        pools: By stratum: natural logarithms of S of benign clusters.
        per_month: By stratum: benign clusters a month.
        false_alarms: The bound: expected false alarms a month.
        months: Months that it was made from.
        sources: Digests of the stores.
    """

    scorer: Scorer
    pools: tuple[Floats, ...]
    per_month: tuple[float, ...]
    false_alarms: float
    months: int
    sources: tuple[str, ...]

    def needed(self, kind: int, now: float = 0.0) -> float:
        """The e-value at which a cluster of a stratum is reported, with so many clusters of it this month."""
        return max(self.per_month[kind], now, 1.0) / (self.false_alarms * BUDGET[kind])

    def limit(self, kind: int, now: float = 0.0) -> float:
        """The score at which a cluster of a stratum is reported; infinite where the baseline is too small for the bound."""
        return log_threshold(self.pools[kind], self.needed(kind, now)) / (LAMBDA * math.log(10))

    def e_values(self, score: Floats, kind: int) -> Floats:
        """E-values of scores."""
        return conformal_e(score * LAMBDA * np.log(10), self.pools[kind])

    def least_bound(self) -> float:
        """The smallest bound at which an alarm is possible in every stratum that has benign clusters."""
        ratios = [
            rate / (share * (len(pool) + 1))
            for pool, rate, share in zip(self.pools, self.per_month, BUDGET, strict=True)
            if len(pool)
        ]
        return max(ratios, default=float("inf"))

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "schema": SCHEMA,
            "features": list(FEATURES),
            "strata": list(STRATA),
            "grids": np.round(self.scorer.grids, 6).tolist(),
            "scales": np.round(self.scorer.scales, 6).tolist(),
            "pools": [np.round(pool, 4).tolist() for pool in self.pools],
            "per_month": list(self.per_month),
            "false_alarms_per_month": self.false_alarms,
            "months": self.months,
            "sources": list(self.sources),
        }


def read_baseline(path: Path) -> Baseline:
    """Read a baseline.

    Raises:
        UsageError: It is none, or of another version.
    """
    try:
        record = files.read_json(path)
        if record["schema"] != SCHEMA or record["features"] != list(FEATURES) or record["strata"] != list(STRATA):
            raise ValueError
        found = Baseline(
            Scorer(np.array(record["grids"], float), np.array(record["scales"], float)),
            tuple(np.array(pool, float) for pool in record["pools"]),
            tuple(float(rate) for rate in record["per_month"]),
            float(record["false_alarms_per_month"]),
            int(record["months"]),
            tuple(map(str, record["sources"])),
        )
        shape = (len(STRATA), len(FEATURES))
        if (
            found.scorer.grids.shape != (*shape, len(LEVELS))
            or found.scorer.scales.shape != shape
            or len(found.pools) != 3
        ):
            raise ValueError
        if not (np.isfinite(found.scorer.grids).all() and (found.scorer.scales > 0).all() and found.false_alarms > 0):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise UsageError(
            f"{path} is not a baseline of this version.", "Make one: stillroom guard calibrate STORE..."
        ) from None
    return found


def benign_days(stores: list[Store], months: list[str] | None) -> Iterator[tuple[Data, list[Day]]]:
    """Every month of some stores, with its days."""
    for store in stores:
        have = months_of(store)
        for month in have:
            if months is None or month in months:
                data = load_month(store, month)
                yield data, list(days_of(data))


def in_fit(digest: int, month: str) -> bool:
    """Whether a cluster's month fits the score (or else is in the pool)."""
    data = hashlib.sha256(f"{digest:016x} {month}".encode()).digest()
    return int.from_bytes(data[:4], "big") < FIT_SHARE * 2**32


def calibrate(
    stores: list[Store],
    false_alarms: float = 1.0,
    months: list[str] | None = None,
    permitted: frozenset[int] = frozenset(),
) -> Baseline:
    """Make a baseline from benign months.

    Args:
        stores: Stores of benign traffic.
        false_alarms: The bound: expected false alarms a month.
        months: Of the stores; None takes all.
        permitted: Digests of accounts that may do what a campaign does; their clusters are left out, here and in a watch.

    Raises:
        UsageError: The months hold too little for any bound, or for this one.
    """
    if not 0 < false_alarms <= 1000:
        raise UsageError(
            f"{false_alarms} false alarms a month is not a bound.", "One a month is usual: --false-alarms 1."
        )
    if len({store.digest() for store in stores}) < len(stores):
        raise UsageError("A store is given twice: its months would count twice.", "Give each store once.")
    kept: list[tuple[Data, list[Day]]] = list(benign_days(stores, months))
    if not kept:
        raise UsageError("The stores have none of these months.", "Name months that they have, or leave --benign out.")
    fit_values, fit_strata = [], []
    for data, days in kept:
        last = days[-1]
        fits = np.array([in_fit(int(data.accounts[root]), data.month) for root in last.root], bool)
        fits &= ~all_permitted(data, days, permitted)[last.clusters.labels[last.root]]
        fit_values.append(last.values[fits])
        fit_strata.append(stratum(last.size[fits]))
    values = np.concatenate(fit_values)
    if len(values) < 100:
        raise UsageError(
            f"The benign months hold {len(values)} streams of 30 requests for the score; 100 are the least.",
            "Add months, or logs with text.",
        )
    scorer = fit(values, np.concatenate(fit_strata))
    pools: list[list[Floats]] = [[] for _ in STRATA]
    counts = np.zeros(len(STRATA))
    for data, days in kept:
        worst = worst_of(days, scorer)
        allowed = ~all_permitted(data, days, permitted)[worst.cluster]
        pool = ~np.array([in_fit(int(data.accounts[root]), data.month) for root in worst.root], bool)
        for kind in range(len(STRATA)):
            counts[kind] += int((allowed & (worst.strata == kind)).sum())
            pools[kind].append(worst.score[allowed & pool & (worst.strata == kind)] * LAMBDA * np.log(10))
    made = Baseline(
        scorer,
        tuple(np.sort(np.concatenate(pool)) for pool in pools),
        tuple(float(rate) for rate in counts / len(kept)),
        false_alarms,
        len(kept),
        tuple(store.digest() for store in stores),
    )
    if not any(np.isfinite(made.limit(kind)) for kind in range(len(STRATA)) if len(made.pools[kind])):
        raise UsageError(
            f"{len(kept)} benign months are too few for {false_alarms:g} false alarms a month:"
            " no e-value could be large enough.",
            f"Allow --false-alarms {np.ceil(made.least_bound() * 10) / 10 + 0.1:g}, or add benign months.",
        )
    return made


def all_permitted(data: Data, days: list[Day], permitted: frozenset[int]) -> Any:
    """By cluster at the month's end: whether all of its accounts are permitted."""
    labels = days[-1].clusters.labels
    seen = labels >= 0
    allowed = np.array([int(account) in permitted for account in data.accounts], bool)
    size = np.bincount(labels[seen])
    return (size > 0) & (np.bincount(labels[seen], allowed[seen], len(size)) == size)
