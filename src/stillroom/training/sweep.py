"""The learning rate of a run: given by the recipe, measured by a short sweep, or from a table.

A trial is the whole run in small: the run's first batches, its warm-up and its fall, compressed into a few steps, and then the
validation split. That the rate falls to its end in every trial matters: at a constant rate the noise of large rates hides what
they are worth after the fall. With the fall, the best rate of a few steps is within a factor of about two of the whole run's
for pruned students; for those from random weights it is about ten times too large, and is corrected (:func:`for_whole_run`).

The search walks from the table's rate by factors of three to where it gets worse on both sides, then takes the lowest point of
the parabola through the three trials around the best, over the logarithm of the rate.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stillroom.core import files

SWEEP = "sweep.json"
"""The file that keeps how ``learning_rate: auto`` was chosen."""
LARGEST_SHARE = 0.05
"""The sweep's cost at most, as a share of the cost of the run's steps."""
TRIALS = 5
"""Trials at most; three are enough where the table's rate is the best of them."""
FACTOR = 3.0
"""Between the rates of neighbouring trials."""
SHORTEST, LONGEST = 5, 128
"""Steps of a trial at least and at most."""
VALIDATION_SHARE = 0.25
"""Cost of a trial's validation at most, as a share of its steps'."""
FORWARD_WORK = 1 / 3
"""Cost of a forward pass, as a share of a training step's, per token."""
LOWEST, HIGHEST = 1e-6, 0.1
"""Rates outside of these are not tried."""

TABLE = ((0.3, 1e-4, 1.0), (3.0, 2e-4, 1.0), (math.inf, 2e-3, 0.5))
"""Largest KL to the teacher at the start, nats per token; the rate at a hidden size of 576; and with which power of 1/width it
goes.

Sources: SmolLM2-135M students that keep most of the teacher did best at 1e-4 (docs/shrink.md); pruned ones of half the
layers or half the parameters at 2e-4 over 8,192, 24,576 and 81,920 tokens. The best rate falls with one over the width (Yang et
al. 2022, arXiv 2203.03466, for Adam); of random weights less was seen here: the best of whole runs were 4e-3 at a width of 192,
4e-3 to 8e-3 at 48 and 1.6e-2 at 32, where 4e-3 is 2 % worse (`benchmarks.learning_rate --quick`).
"""
TABLE_WIDTH = 576
"""The hidden size that the table is for."""
LONGER = 1.4
"""Best rate of a run over that of a trial, for students that begin near their teacher.

Measured on one trained tiny teacher with one seed, rates a factor of two apart: the best rate of 160 steps over that of 10 was
1.4 to 2 with one of four layers gone, with two gone, and for cross-entropy. With two teachers, three seeds and trials of 5 of
640 steps, the rates that this gave were within 1 % of the best KL of a full sweep (`benchmarks.learning_rate --quick`).
"""
FROM_RANDOM = 0.1
"""The same for students that begin far from their teacher: in a few steps from random weights, larger moves are always better.

Trials of 5 of 640 steps were best at 0.04 and more, where 0.004 to 0.016 was best for the run (two tiny teachers, three seeds).
"""
BOUND = 2.0
"""Such a rate stays within this factor of the table's."""

Origin = Literal["given", "sweep", "table"]


@dataclass
class Chosen:
    """A run's learning rate and where it is from.

    Attributes:
        rate: The peak.
        origin: ``given`` by the recipe, measured by a ``sweep``, or from the ``table``.
        points: The sweep's trials in order: the rate, and the validation KL (of the baseline: cross-entropy) after it in nats
            per token; None for a trial that diverged.
        steps: Steps of each trial.
        cost_share: The sweep's cost over that of the run's steps.
    """

    rate: float
    origin: Origin
    points: list[tuple[float, float | None]] = field(default_factory=list)
    steps: int = 0
    cost_share: float = 0.0

    @property
    def open(self) -> bool:
        """Whether the best of the trials is the one with the largest rate, so that where it gets worse was not seen."""
        worth = [(math.inf if value is None else value, rate) for rate, value in self.points]
        return bool(worth) and min(worth)[1] == max(rate for _, rate in worth)

    def record(self) -> dict[str, Any]:
        """What notes and events say of it."""
        return {
            "learning_rate": self.rate,
            "learning_rate_from": self.origin,
            "sweep": [{"learning_rate": rate, "value": value} for rate, value in self.points],
            "sweep_steps": self.steps,
            "sweep_open": self.open,
            "sweep_cost_share": self.cost_share,
        }


@dataclass(frozen=True)
class Budget:
    """What the sweep may spend.

    Attributes:
        steps: Steps of a trial.
        validation_rows: Sequences of the validation split that a trial is measured on.
        trial_share: Cost of one trial, as a share of the cost of the run's steps.
    """

    steps: int
    validation_rows: int
    trial_share: float

    @classmethod
    def of(cls, first: list[int], total: int, validation_rows: int) -> Budget | None:
        """The longest trials that fit, or None where they would be too short to tell anything.

        Args:
            first: Sequences of each of the run's first steps, at least ``LONGEST`` of them where the run has so many.
            total: Sequences of all steps; all have the same length.
            validation_rows: Sequences of the validation split.
        """
        best = None
        rows = 0
        for steps, count in enumerate(first[:LONGEST], start=1):
            rows += count
            held = min(validation_rows, max(1, int(VALIDATION_SHARE * rows / FORWARD_WORK)))
            share = (rows + held * FORWARD_WORK) / total
            if TRIALS * share > LARGEST_SHARE:
                break
            if steps >= SHORTEST:
                best = cls(steps, held, share)
        return best


def table_rate(width: int, distance: float) -> float:
    """The rate for a student of this hidden size that begins at this KL to its teacher, nats per token."""
    _, base, power = next((row for row in TABLE if distance <= row[0]), TABLE[-1])
    return min(max(base * math.pow(TABLE_WIDTH / width, power), LOWEST), HIGHEST / FACTOR)


def for_whole_run(chosen: Chosen, distance: float, table: float) -> float:
    """The rate for the whole run, from the best rate of its trials; never above :data:`HIGHEST`.

    A student is taken as one that begins far from its end where its KL to the teacher is large, and also where the trials were
    still getting better at the largest rate: the text can be far away (for the baseline it is all that counts) while the
    teacher is near.

    Args:
        chosen: The best rate of trials of about a hundredth of the run, with the trials.
        distance: KL to the teacher at the start, nats per token.
        table: What :func:`table_rate` says.
    """
    if distance <= TABLE[-2][0] and not chosen.open:
        return min(chosen.rate * LONGER, HIGHEST)
    return min(max(chosen.rate * FROM_RANDOM, table / BOUND), table * BOUND, HIGHEST)


def search(
    trial: Callable[[float], float | None], centre: float, known: list[tuple[float, float | None]] | None = None
) -> tuple[float, list[tuple[float, float | None]]]:
    """The best rate, and the trials in their order.

    Args:
        trial: The value after a trial of a rate, lower is better; None where it diverged.
        centre: The rate to begin with.
        known: Trials of an interrupted search, which are not made again.
    """
    done = dict(known or ())
    points: list[tuple[float, float | None]] = []
    values: dict[int, float] = {}

    def measure(exponent: int) -> None:
        rate = centre * FACTOR**exponent
        if exponent in values or len(points) == TRIALS or not LOWEST <= rate <= HIGHEST:
            return
        value = done[rate] if rate in done else trial(rate)
        points.append((rate, value))
        values[exponent] = math.inf if value is None or not math.isfinite(value) else value

    measure(0)
    while True:
        # Equal ones: the smaller rate.
        best = min(values, key=lambda exponent: (values[exponent], exponent))
        before = len(points)
        # A rate that is too small is the cheaper mistake, so the larger one is looked at first only where nothing diverged.
        for side in (1, -1) if math.isfinite(values[best]) else (-1,):
            measure(best + side)
            if len(points) > before:
                break
        if len(points) == before:
            break
    rate = centre * FACTOR**best
    around = [values.get(best + side, math.inf) for side in (-1, 0, 1)]
    if all(map(math.isfinite, around)):
        rate *= FACTOR ** _lowest(*around)
    return rate, points


def _lowest(left: float, middle: float, right: float) -> float:
    """Where the parabola through three values at -1, 0 and 1 is lowest; the middle is the least of them, so within ±0.5."""
    bend = left - 2 * middle + right
    return 0.5 * (left - right) / bend if bend > 0 else 0.0


class Kept:
    """The file that keeps a search: what was tried, then what was chosen. An interrupted search goes on from it.

    Args:
        path: The file.
        writes: Whether this process writes it; of a group only the first one does.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self._writes = writes

    def load(self) -> tuple[Chosen | None, list[tuple[float, float | None]]]:
        """What was chosen, if it was, and what was tried."""
        if not self.path.is_file():
            return None, []
        found = json.loads(self.path.read_text(encoding="utf-8"))
        points = [(float(rate), value) for rate, value in found["points"]]
        if "rate" not in found:
            return None, points
        return Chosen(found["rate"], found["origin"], points, found["steps"], found["cost_share"]), points

    def tried(self, points: list[tuple[float, float | None]]) -> None:
        """Keep the trials so far."""
        if self._writes:
            files.write_json(self.path, {"points": points})

    def chosen(self, chosen: Chosen) -> None:
        """Keep the choice."""
        if self._writes:
            files.write_json(self.path, vars(chosen))
