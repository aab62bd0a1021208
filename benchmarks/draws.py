"""Several epochs on one draw of the teacher's signal: is its noise learned?

    .venv/bin/python -m benchmarks.draws [--quick | --tiny] [--json FILE] [--work FILE] [--minutes M]

Threshold sampling draws every position once, and every epoch reads the same draw. One pass cannot learn its noise; eight passes
could. The same student (8 layers of SmolLM2-135M-Instruct's 30, its vocabulary cut to the text) from the same start takes the
same number of steps, eight passes over the same text in the same order, taught from

- ``dense``: the teacher's whole distributions;
- ``one_draw``: one draw at the default threshold, as a run does;
- ``four_draws``: four draws, averaged (``draws: 4``): four times the bytes and a quarter of the variance;
- ``fresh_draws``: another draw in every epoch, which no cache can give;
- ``one_draw_8`` and ``fresh_draws_8``: the same two at a threshold of 1/8, where the noise is far larger;
- ``one_draw_128``: one draw at a threshold of 1/128: about twice the bytes and a fifth of the variance.

The measure is the dense KL to the teacher on held-out text, in nats per token, over the dense student's of the same seed.
``train_kl`` is the same on the training text. Three seeds of order and sampling; ``--quick`` takes one and half of the text.
``--tiny`` takes a tiny random teacher and runs in seconds: it shows that the benchmark works, and measures nothing.
``--work`` names a file that keeps finished trainings, so that an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import material, report
from benchmarks.quality import LAYERS, LENGTH, SEEDS, dense_signals, heldout_kl, sampled, train
from stillroom.corpus.sequences import Sequences
from stillroom.recipe.capture import ThresholdCodec
from stillroom.signals.signal import DenseSignal, Signal
from stillroom.signals.vocabulary_map import VocabularyMap

EPOCHS = 8
TRAIN_TOKENS, HELDOUT_TOKENS = 12_288, 4096
TAU = ThresholdCodec().tau
METHODS = ("dense", "one_draw", "fresh_draws", "four_draws", "one_draw_8", "fresh_draws_8", "one_draw_128")


@dataclass(frozen=True)
class World:
    """What all trainings share.

    Attributes:
        start: The student before training.
        train: Training text in its ids.
        heldout: Held-out text in its ids.
        vocabulary: The identity.
        dense: The teacher's log-probabilities of the training text, by sequence.
        dense_heldout: Of the held-out text.
    """

    start: Any
    train: Sequences
    heldout: Sequences
    vocabulary: VocabularyMap
    dense: list[torch.Tensor]
    dense_heldout: list[torch.Tensor]


def make_world(loaded: Any, layers: int, length: int, train_tokens: int, heldout_tokens: int) -> World:
    """Text, signals and the student's start."""
    original = material.corpus(loaded, length, train_tokens, heldout_tokens)
    start, to_student = material.student(loaded, layers, *original)
    train_text, heldout = (material.renumbered(text, to_student) for text in original)
    dense, dense_heldout = (dense_signals(loaded, text, to_student) for text in original)
    return World(start, train_text, heldout, VocabularyMap.identity(to_student.student_size), dense, dense_heldout)


def tiny_world(folder: Path) -> World:
    """The same with a tiny random teacher."""
    from stillroom.models.load import load_teacher
    from stillroom.recipe.teacher import HuggingFaceTeacher
    from tests.tiny_models import tiny_model

    teacher = HuggingFaceTeacher(name=str(tiny_model("llama", folder / "teacher", layers=4)))
    return make_world(load_teacher(teacher, "cpu", torch.float32), 2, 64, 1024, 512)


def signals_of(method: str, dense: list[torch.Tensor], seed: int) -> tuple[Callable[[int], list[Signal]], float]:
    """What a method teaches from in each epoch, and its bytes a position."""
    if method == "dense":
        whole: list[Signal] = [DenseSignal(logprobs) for logprobs in dense]
        return lambda _: whole, 4.0 * dense[0].shape[1]
    tau = 1 / int(method.rpartition("_")[2]) if method[-1].isdigit() else TAU
    first, size = sampled(dense, tau, seed, 4 if method == "four_draws" else 1)
    same: list[Signal] = list(first)
    if not method.startswith("fresh"):
        return lambda _: same, size

    def draw(epoch: int) -> list[Signal]:
        return list(sampled(dense, tau, seed + 1000 * epoch)[0])

    return draw, size


def measured(world: World, method: str, seed: int) -> dict[str, float]:
    """One training: its KLs in nats per token, and the bytes of a position."""
    signals, size = signals_of(method, world.dense, seed)
    network = train(world.start, world.train, world.vocabulary, signals, seed, EPOCHS)
    return {
        "kl": heldout_kl(network, world.heldout, world.vocabulary, world.dense_heldout),
        "train_kl": heldout_kl(network, world.train, world.vocabulary, world.dense),
        "bytes_per_position": size,
    }


def summary(results: dict[str, Any], seeds: tuple[int, ...]) -> dict[str, Any]:
    """By method: held-out and training KL, and the ratio to the dense student's, paired by seed."""
    table: dict[str, Any] = {}
    for method in METHODS:
        runs = {seed: results[f"{method}/{seed}"] for seed in seeds if f"{method}/{seed}" in results}
        paired = {seed: run for seed, run in runs.items() if f"dense/{seed}" in results}
        if not paired:
            continue
        ratios = [run["kl"] / results[f"dense/{seed}"]["kl"] for seed, run in paired.items()]
        table[method] = {
            "bytes_per_position": next(iter(paired.values()))["bytes_per_position"],
            "kl": [run["kl"] for run in paired.values()],
            "train_kl": [run["train_kl"] for run in paired.values()],
            "over_dense": statistics.mean(ratios),
            "over_dense_interval": report.interval(ratios),
        }
    return table


def main() -> None:
    """Train what is not trained yet, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true")
    size.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no training after so many minutes")
    options = parser.parse_args()
    begun = time.monotonic()
    # Results of another size are not taken for these.
    asked = {"size": "tiny" if options.tiny else "quick" if options.quick else "full", "epochs": EPOCHS, "tau": TAU}
    kept = report.Kept(options.work, asked)
    seeds = SEEDS[:1] if options.quick or options.tiny else SEEDS
    if options.tiny:
        with tempfile.TemporaryDirectory() as folder:
            world = tiny_world(Path(folder))
    else:
        tokens = TRAIN_TOKENS // 2 if options.quick else TRAIN_TOKENS
        world = make_world(material.teacher(), LAYERS, LENGTH, tokens, HELDOUT_TOKENS)
    for seed in seeds:
        for method in METHODS:
            name = f"{method}/{seed}"
            if name in kept.cells or time.monotonic() - begun > 60 * options.minutes:
                continue
            kept.add(name, measured(world, method, seed))
            sys.stderr.write(f"{name}: {kept.cells[name]['kl']:.4f} nats, {time.monotonic() - begun:.0f} s\n")
    table = summary(kept.cells, seeds)
    # What was not trained for want of minutes is null.
    figures = {f"{method}_over_dense": table.get(method, {}).get("over_dense") for method in METHODS[1:]}
    settings = asked | {
        "seeds": list(seeds),
        "train_tokens": world.train.tokens,
        "heldout_tokens": world.heldout.tokens,
    }
    report.write(figures, {"methods": table, "settings": settings}, options.json)


if __name__ == "__main__":
    main()
