"""What a recipe takes on many machines: nodes, hours, dollars, bytes, objects and traffic, each with an interval.

Capture has no coupling, and training divides its step: hours of all workers together are those of one, over the share that the
workers are kept busy. Everything here is arithmetic. With ``this machine`` as a worker the rates are the pilot's; with a card
they are a share of its measured peak, and say what is to be expected, not what was measured: `docs/concepts/scale.md` says
where each number comes from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from stillroom.core import sizes
from stillroom.core.progress import clock, say

if TYPE_CHECKING:
    from stillroom.recipe.recipe import Recipe
    from stillroom.runs.costs import Counts

Worker = Literal["this", "h100"]

BUSY = (0.8, 0.9, 0.97)
"""Share of the time that a worker works: the rest goes to starts, lost units, and waiting for the others. Lowest, expected,
highest."""
PILOT = (0.8, 1.0, 1.2)
"""What a pilot's rate turned out to be: planned over happened times of eight recipes were 0.81 to 1.20 (`docs/shrink.md`)."""
PEAK = {"h100": 798e12}
"""Products of a card in bfloat16, operations per second, as measured once on a card of this kind."""
CAPTURE_SHARE, TRAIN_SHARE = (0.35, 0.5, 0.65), (0.3, 0.4, 0.5)
"""Share of the peak that the teacher's forward pass and a training step reach; expected, not measured with this program."""
WORKERS_PER_NODE = 8
COUNTS = (8, 64, 512)
"""Workers that are shown where no one says how many."""
GB = 1e9
STORE_MONTH, PUT, GET, EGRESS = 0.023, 0.005 / 1000, 0.0004 / 1000, 0.09
"""Dollars of an object store: a GB and month, a put, a get, a GB that leaves the region."""
RANGE_BYTES = 8 << 20
"""Bytes that are asked for at a time where a cache is read once from end to end."""
PRICE = 2.5
"""Dollars per hour of a card where no one says."""


@dataclass(frozen=True)
class Model:
    """What a forward pass multiplies.

    Attributes:
        parameters: Of all matrices that a token goes through, the output layer among them.
        layers: Layers.
        attention: Width of all heads of a layer together.
    """

    parameters: float
    layers: int
    attention: int

    def forward(self, context: int) -> float:
        """Operations per token, with half of the context in sight."""
        return 2 * self.parameters + 2 * self.layers * self.attention * context


@dataclass(frozen=True)
class Rates:
    """Tokens per second of one worker: lowest, expected, highest."""

    capture: tuple[float, float, float]
    train: tuple[float, float, float]

    @classmethod
    def of_card(cls, card: str, teacher: Model, student: Model, context: int = 2048) -> Rates:
        """By arithmetic: a training step is three forward passes."""
        peak = PEAK[card]
        low, mid, high = (share * peak / teacher.forward(context) for share in CAPTURE_SHARE)
        first, second, third = (share * peak / (3 * student.forward(context)) for share in TRAIN_SHARE)
        return cls((low, mid, high), (first, second, third))

    @classmethod
    def of_pilot(cls, capture: float, train: float) -> Rates:
        """From a machine's own rates."""
        low, mid, high = PILOT
        return cls((capture * low, capture * mid, capture * high), (train * low, train * mid, train * high))


@dataclass(frozen=True)
class Job:
    """A distillation.

    Attributes:
        captured: Tokens that the teacher sees.
        trained: Tokens that the student is trained on, over all epochs.
        bytes_per_position: Of the cache.
        unit_tokens: Tokens of a unit.
    """

    captured: float
    trained: float
    bytes_per_position: float
    unit_tokens: int


def estimate(job: Job, rates: Rates, workers: int, price: float, *, egress_price: float = EGRESS) -> dict[str, Any]:
    """What a job takes on so many workers.

    Args:
        job: The distillation.
        rates: Of one worker.
        workers: Workers.
        price: Dollars of a worker's hour.
        egress_price: Dollars of a GB that leaves the store's region; training reads the cache once an epoch.

    Returns:
        ``capture_hours`` and ``train_hours`` of all workers together, ``hours`` of wall time and ``dollars``, each as
        [lowest, expected, highest]; ``nodes``; ``cache_bytes``, ``objects``, and in dollars ``store_month``, ``puts``, ``gets``
        and ``egress`` of one pass from another region.
    """
    units = math.ceil(job.captured / job.unit_tokens)
    # A worker has one unit at a time: more workers than units do nothing.
    capturing = min(workers, units)
    hours = [
        (job.captured / rates.capture[i] / 3600 / BUSY[i], job.trained / rates.train[i] / 3600 / BUSY[i])
        for i in (2, 1, 0)
    ]
    size = job.captured * job.bytes_per_position
    passes = max(1.0, job.trained / job.captured)
    return {
        "workers": workers,
        "nodes": math.ceil(workers / WORKERS_PER_NODE),
        "capture_hours": [capture for capture, _ in hours],
        "train_hours": [train for _, train in hours],
        "hours": [capture / capturing + train / workers for capture, train in hours],
        "dollars": [price * (capture + train) for capture, train in hours],
        "cache_bytes": size,
        "units": units,
        "objects": 2 * units + 3,
        "store_month_dollars": STORE_MONTH * size / GB,
        "put_dollars": PUT * (2 * units + 3),
        "get_dollars": GET * passes * math.ceil(size / RANGE_BYTES),
        "egress_bytes": passes * size,
        "egress_dollars": egress_price * passes * size / GB,
    }


def cluster_plan(
    recipe: Recipe,
    counts: Counts,
    plan: dict[str, Any],
    worker: Worker,
    workers: int | None,
    price: float | None,
    egress_price: float,
) -> dict[str, Any]:
    """The part of a plan about many machines.

    Args:
        recipe: The recipe.
        counts: Its sizes.
        plan: The plan of this machine.
        worker: What a worker is.
        workers: How many; None shows a few numbers.
        price: Dollars of a worker's hour; None takes 2.50 for a card, and 0 for a machine like this one.
        egress_price: Dollars of a GB.
    """
    captured = counts.train_tokens + counts.validation_tokens
    trained = counts.train_tokens * recipe.distill.epochs
    if worker == "this":
        seconds = [max(1e-9, plan["stages"][name]["seconds"]) for name in ("capture", "distill")]
        rates = Rates.of_pilot(captured / seconds[0], trained / seconds[1])
    else:
        context = min(2048, counts.sequence_length)
        rates = Rates.of_card(
            worker,
            Model(counts.teacher_parameters, counts.teacher_shape.layers, counts.teacher_shape.hidden),
            Model(counts.student_parameters, counts.student_layers, _width(counts)),
            context,
        )
    price = (0.0 if worker == "this" else PRICE) if price is None else price
    job = Job(captured, trained, plan["bytes_per_position"], recipe.capture.unit_tokens)
    return {
        "worker": worker,
        "price_per_hour": price,
        "tokens_per_second": {"capture": list(rates.capture), "train": list(rates.train)},
        "captured_tokens": captured,
        "trained_tokens": trained,
        "sizes": [
            estimate(job, rates, count, price, egress_price=egress_price)
            for count in (COUNTS if workers is None else (workers,))
        ],
    }


def _width(counts: Counts) -> int:
    shape = counts.student_shape if counts.student_shape is not None else counts.teacher_shape
    return shape.hidden


def show_cluster(found: dict[str, Any]) -> None:
    """The part of a plan about many machines, on stderr."""
    what = "like this machine, by its pilot" if found["worker"] == "this" else f"{found['worker']} cards, by arithmetic"
    say(f"  cluster   workers {what}; {found['price_per_hour']:g} dollars per hour each")
    for size in found["sizes"]:
        low, hours, high = size["hours"]
        cheap, dollars, dear = size["dollars"]
        say(
            f"    {size['workers']:>4} on {size['nodes']} node{'s' * (size['nodes'] != 1)}: {clock(hours * 3600)} "
            f"({clock(low * 3600)} to {clock(high * 3600)}), {dollars:,.2f} dollars ({cheap:,.2f} to {dear:,.2f})"
        )
    size = found["sizes"][0]
    say(
        f"    cache     {size['cache_bytes'] / GB:,.2f} GB in {size['objects']:,} objects: "
        f"{size['store_month_dollars']:,.2f} dollars a month, puts {size['put_dollars']:,.2f}; "
        f"out of its region {size['egress_bytes'] / GB:,.2f} GB, {size['egress_dollars']:,.2f} dollars"
    )


TEACHER_8B = Model(7.57e9, 36, 4096)
STUDENT_4B = Model(4.02e9, 36, 4096)
PAPER = (("100 million", 1e8), ("2.5 billion", 2.5e9), ("94 billion", 94e9), ("1 trillion", 1e12))
PIECE_TOKENS = 4096


def paper_job(tokens: float) -> Job:
    """One pass over so many tokens, with the default codec's 20.7 bytes per position and units of 2^20 tokens."""
    return Job(tokens, tokens, 20.7, 2**20)


def paper_table() -> str:
    """From 8 billion to 4 billion parameters on H100 cards at 2.50 dollars, as Markdown."""
    rates = Rates.of_card("h100", TEACHER_8B, STUDENT_4B)
    lines = [
        "| tokens | capture, card-hours | training, card-hours | dollars | 64 cards | 512 cards | cache | objects | a month "
        "| egress |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for words, tokens in PAPER:
        few, many = (estimate(paper_job(tokens), rates, count, PRICE) for count in (64, 512))
        lines.append(
            f"| {words} | {_range(few['capture_hours'])} | {_range(few['train_hours'])} | {_range(few['dollars'])} "
            f"| {_days(few['hours'])} | {_days(many['hours'])} | {sizes.in_words(few['cache_bytes'])} | {few['objects']:,} "
            f"| {sizes.short(few['store_month_dollars'])} $ | {sizes.short(few['egress_dollars'])} $ |"
        )
    return "\n".join(lines)


def structures_table() -> str:
    """What each structure takes for so many tokens in pieces of 4,096, as Markdown."""
    lines = ["| structure | what it takes | 100 million | 1 trillion |", "|---|---|---|---|"]
    for name, words, per_token in (
        ("corpus, format 2", "6 bytes per token and 57 per piece, mapped", 6 + 57 / PIECE_TOKENS),
        ("cache", "20.7 bytes per position, read shard by shard", 20.7),
        ("index of the cache", "48 bytes per piece, mapped", 48 / PIECE_TOKENS),
        ("manifest", "about 300 bytes per unit, read whole", 300 / 2**20),
        ("order of an epoch", "about 36 bytes per row, in memory of each process", 36 / PIECE_TOKENS),
        (
            "addresses, while units are formed",
            "about 120 bytes per piece, in memory of each process",
            120 / PIECE_TOKENS,
        ),
    ):
        lines.append(f"| {name} | {words} | {sizes.in_words(1e8 * per_token)} | {sizes.in_words(1e12 * per_token)} |")
    return "\n".join(lines)


def _range(values: list[float]) -> str:
    return f"{sizes.short(values[1])} ({sizes.short(values[0])}–{sizes.short(values[2])})"


def _days(hours: list[float]) -> str:
    unit, words = (24.0, "d") if hours[1] >= 48 else (1.0, "h") if hours[1] >= 1 else (1 / 60, "min")
    return _range([value / unit for value in hours]) + f" {words}"
