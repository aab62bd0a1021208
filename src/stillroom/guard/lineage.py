"""Lineage from weights, exact: are the suspect's units in the order of the owner's?

The null hypothesis: the suspect was made independently of the owner's training run. A training run is equivariant to the
order of hidden units (their initial weights are exchangeable, and SGD, Adam, Muon and the like treat units alike), so that,
given the suspect, the owner's order is a uniform permutation. Let a(i) be the owner's unit that is nearest to the suspect's
unit i, for m of the suspect's units, among the owner's n.

1. Fixed points: k of the m units have a(i) = i. By a union over k-subsets, P <= C(m, k) (n - k)! / n!; with m = n, 1 / k!.
2. Increasing run: the longest strictly increasing subsequence of a has length k. P <= C(m, k) / k!. It finds pruned widths.

Both hold for any map a that ignores the owner's order (a need not be injective), for any architecture and data of the
suspect, and have no Monte Carlo minimum. Bonferroni over all pairs of layers that are tested, times the two statistics. Which
pairs are tested is chosen by the mean similarity of nearest units, which no order of units changes.

Method: facts in Zhu et al. 2025, arXiv 2502.12292 (the permutation null); the counting bounds are ours.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stillroom.guard.lineage_weights import Block, Floats, StoredUnits, open_units, unit_features

SCAN_UNITS = 256
"""Units of each suspect layer by which its candidates among the owner's layers are chosen."""
MOST_UNITS = 4096
"""Units of a suspect layer that are compared at most; more add cost and hardly any certainty."""
CANDIDATES = 3
"""Owner layers that each suspect layer is tested against."""
CHUNK = 2048
"""Rows of a similarity matrix in memory at once."""


@dataclass(frozen=True)
class OrderTest:
    """What the exact test on the order of units came to.

    Attributes:
        log10_p: Decimal logarithm of the p-value, after Bonferroni; at most 0. None where no layers could be compared.
        statistic: ``fixed points`` or ``increasing run``: the one that decided.
        k: Its value.
        compared: m, units of the suspect's layer that were compared.
        units: n, units of the owner's layer.
        pairs: Pairs of layers that were tested.
        layers: For each suspect block, the owner's block that its units are nearest to, and k of the better statistic.
        reason: Why nothing could be compared; empty otherwise.
    """

    log10_p: float | None
    statistic: str = ""
    k: int = 0
    compared: int = 0
    units: int = 0
    pairs: int = 0
    layers: tuple[tuple[int, int, int], ...] = ()
    reason: str = ""


def log10_factorial(n: int) -> float:
    """log10(n!)."""
    return math.lgamma(n + 1) / math.log(10)


def log10_choose(n: int, k: int) -> float:
    """log10 of the binomial coefficient C(n, k)."""
    return log10_factorial(n) - log10_factorial(k) - log10_factorial(n - k)


def fixed_points_bound(k: int, compared: int, units: int) -> float:
    """log10 of the bound on P(at least k of ``compared`` units map to themselves among ``units``)."""
    if k > min(compared, units):
        raise ValueError("more fixed points than units")
    return min(0.0, log10_choose(compared, k) + log10_factorial(units - k) - log10_factorial(units))


def increasing_run_bound(k: int, compared: int) -> float:
    """log10 of the bound on P(a strictly increasing subsequence of length k among ``compared`` units)."""
    return min(0.0, log10_choose(compared, k) - log10_factorial(k))


def longest_increasing(values: npt.NDArray[np.int64]) -> int:
    """Length of the longest strictly increasing subsequence (patience sorting, O(n log n))."""
    tails: list[int] = []
    for value in values.tolist():
        place = bisect.bisect_left(tails, value)
        if place == len(tails):
            tails.append(value)
        else:
            tails[place] = value
    return len(tails)


def nearest(suspect: Floats, owner: Floats) -> tuple[npt.NDArray[np.int64], float]:
    """For each of the suspect's unit vectors [m, d]: the index of the nearest of the owner's [n, d]; and the mean cosine."""
    found = np.empty(len(suspect), np.int64)
    total = 0.0
    for start in range(0, len(suspect), CHUNK):
        cosine = suspect[start : start + CHUNK] @ owner.T
        best = cosine.argmax(axis=1)
        found[start : start + CHUNK] = best
        total += float(np.take_along_axis(cosine, best[:, None], axis=1).sum())
    return found, total / max(1, len(suspect))


def unit_order(suspect: StoredUnits | Path, owner: StoredUnits | Path, candidates: int = CANDIDATES) -> OrderTest:
    """Test whether the suspect's units are in the owner's order, by weights alone.

    Args:
        suspect: The model under suspicion.
        owner: The owner's model.
        candidates: Owner layers that each suspect layer is tested against, chosen by a similarity that ignores order.

    Raises:
        UsageError: A model cannot be read.
    """
    suspect = open_units(suspect) if isinstance(suspect, Path) else suspect
    owner = open_units(owner) if isinstance(owner, Path) else owner
    widths = {block.width for block in suspect.blocks} & {block.width for block in owner.blocks}
    if not widths:
        return OrderTest(
            None,
            reason=f"the residual streams have different widths ({suspect.blocks[0].width} and {owner.blocks[0].width}): "
            "weights cannot be compared entry by entry",
        )
    tested: list[tuple[float, str, int, int, int, int, int]] = []
    for place, chosen in _candidates(suspect, owner, candidates).items():
        block = suspect.blocks[place]
        step = max(1, -(-block.units // MOST_UNITS))
        indices = np.arange(0, block.units, step)
        features: dict[tuple[str, ...], Floats] = {}
        for other in chosen:
            target = owner.blocks[other]
            parts = _shared(block, target)
            if parts not in features:
                features[parts] = unit_features(block, parts, step)
            found, _ = nearest(features[parts], unit_features(target, parts))
            fixed = int((found == indices).sum())
            run = longest_increasing(found)
            m, n = len(indices), target.units
            if fixed:
                tested.append((fixed_points_bound(fixed, m, n), "fixed points", fixed, m, n, place, other))
            tested.append((increasing_run_bound(run, m), "increasing run", run, m, n, place, other))
    pairs = len({entry[5:] for entry in tested})
    raw, statistic, k, m, n, _, _ = min(tested)
    best: dict[int, tuple[float, int, int]] = {}
    for bound, _, count, _, _, place, other in tested:
        best[place] = min(best.get(place, (1.0, 0, 0)), (bound, other, count))
    return OrderTest(
        log10_p=min(0.0, raw + math.log10(2 * pairs)),
        statistic=statistic,
        k=k,
        compared=m,
        units=n,
        pairs=pairs,
        layers=tuple((place, other, count) for place, (_, other, count) in sorted(best.items())),
    )


def _shared(one: Block, other: Block) -> tuple[str, ...]:
    return tuple(part for part in one.shared if part in other.shared)


def _candidates(suspect: StoredUnits, owner: StoredUnits, count: int) -> dict[int, list[int]]:
    """For each suspect block the owner's blocks whose units are nearest to its own on average: no order enters here."""
    samples: dict[int, tuple[Block, Floats]] = {}
    for place, block in enumerate(suspect.blocks):
        step = max(1, -(-block.units // SCAN_UNITS))
        samples[place] = (block, unit_features(block, ("up",), step))
    scores: dict[int, list[tuple[float, int]]] = {place: [] for place in samples}
    for other, target in enumerate(owner.blocks):
        features = unit_features(target, ("up",))
        for place, (block, sample) in samples.items():
            if block.width == target.width:
                scores[place].append((-nearest(sample, features)[1], other))
    return {place: [other for _, other in sorted(found)[:count]] for place, found in scores.items() if found}
