"""How good a student becomes by what it is taught from: dense signals, threshold samples, top-k, 50 draws, and text alone.

    .venv/bin/python -m benchmarks.quality [--quick] [--json FILE] [--work FILE]

The same student (8 layers of SmolLM2-135M-Instruct's 30, its vocabulary cut to the text) from the same start on the same
tokens in the same order; three seeds of order and sampling. Every signal is taken from the teacher's distribution over
the student's ids. The measure is the dense KL to the teacher on held-out text, in nats a token. `--work` names a file that
keeps finished trainings, so that an interrupted benchmark goes on. `--quick` takes one seed and the three signals that
matter most.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import material, report
from stillroom.core import files
from stillroom.corpus.sequences import Sequences
from stillroom.recipe.training import DistillConfig
from stillroom.signals.batches import BatchSource
from stillroom.signals.cache.threshold import Entries, Threshold
from stillroom.signals.cache.top_k import TopK
from stillroom.signals.signal import DenseSignal, Signal, SparseSignal
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.teachers.local import LocalTeacher
from stillroom.training.losses.fused import FusedLoss
from stillroom.training.losses.registry import make_objective
from stillroom.training.network import LossNetwork
from stillroom.training.optimizer import clip_gradients, make_optimizer
from stillroom.training.schedule import batch_order, learning_rate

LAYERS, LENGTH, BATCH = 8, 256, 4
TRAIN_TOKENS, HELDOUT_TOKENS = 24_576, 4096
SEEDS = (0, 1, 2)
RATE = 1e-3
CONFIG = DistillConfig(learning_rate=RATE)
DRAWS = 50
TAUS = {"threshold": 1 / 36, "threshold_24": 1 / 24, "threshold_16": 1 / 16}
METHODS = ("dense", "threshold", "top_k", "cross_entropy", "top_k_rest", "draws_50", "threshold_16", "threshold_24")


class Signals:
    """Signals in memory, with the interface of a cache."""

    def __init__(self, by_digest: dict[str, Signal]) -> None:
        self._signals = by_digest

    def read(self, digests: list[str]) -> tuple[Signal, list[int]]:
        """See :meth:`TeacherCache.read`."""
        found = [self._signals[digest] for digest in digests]
        counts = [len(signal) for signal in found]
        dense = [signal for signal in found if isinstance(signal, DenseSignal)]
        if dense:
            return DenseSignal(torch.cat([signal.logprobs for signal in dense])), counts
        sparse = [signal for signal in found if isinstance(signal, SparseSignal)]
        wide = max(signal.ids.shape[1] for signal in sparse)
        pad = torch.nn.functional.pad
        ids = torch.cat([pad(signal.ids, (0, wide - signal.ids.shape[1])) for signal in sparse])
        weights = torch.cat([pad(signal.weights, (0, wide - signal.weights.shape[1])) for signal in sparse])
        return SparseSignal(ids, weights, sparse[0].unbiased), counts

    def entropy(self, digest: str) -> float:  # noqa: ARG002
        """Not needed here."""
        return 0.0


def dense_signals(loaded: Any, text: Sequences, vocabulary: VocabularyMap) -> list[torch.Tensor]:
    """The teacher's log-probabilities over the student's ids, sequence by sequence, [N, V]."""
    found = []
    for start in range(0, len(text), 4):
        indices = list(range(start, min(start + 4, len(text))))
        for _, scores in LocalTeacher(loaded).score(text, indices):
            found.append(torch.cat([vocabulary.project_dense(chunk.log_softmax(1)) for chunk in scores]))
    return found


def sampled(dense: list[torch.Tensor], tau: float, seed: int, draws: int = 1) -> tuple[list[SparseSignal], float]:
    """Threshold samples of every sequence, and their bytes a position."""
    codec = Threshold(tau, dense[0].shape[1], draws)
    samples: list[Entries] = []
    for number, logprobs in enumerate(dense):
        chunks = (chunk.exp() for chunk in logprobs.split(64))  # type: ignore[no-untyped-call]
        samples.append(codec.sample(chunks, np.random.default_rng((seed, number))))
    model = codec.learn(samples)
    records = [codec.pack(sample) for sample in samples]
    counts = [len(logprobs) for logprobs in dense]
    signals = [codec.decode([record], [count]) for record, count in zip(records, counts, strict=True)]
    return signals, (len(model) + sum(map(len, records))) / sum(counts)


def best_k(dense: list[torch.Tensor], budget: float) -> tuple[list[SparseSignal], float, int]:
    """Top-k signals of the least k that takes at least ``budget`` bytes a position."""
    for k in range(1, 64):
        codec = TopK(k, dense[0].shape[1])
        records = [codec.sample([part.exp()], np.random.default_rng(0)) for part in dense]
        size = sum(map(len, records)) / sum(map(len, dense))
        if size >= budget:
            return [codec.decode([r], [len(p)]) for r, p in zip(records, dense, strict=True)], size, k
    raise ValueError("no k takes so many bytes")


def drawn(dense: list[torch.Tensor], seed: int) -> list[SparseSignal]:
    """50 draws with replacement, each worth 1/50."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for logprobs in dense:
        ids = torch.multinomial(logprobs.exp(), DRAWS, replacement=True, generator=generator)
        found.append(SparseSignal(ids, torch.full(ids.shape, 1 / DRAWS)))
    return found


def signals_of(method: str, dense: list[torch.Tensor], seed: int) -> tuple[list[Signal], float | None]:
    """What a method teaches from, and its bytes a position."""
    if method == "dense":
        return [DenseSignal(logprobs) for logprobs in dense], 4.0 * dense[0].shape[1]
    if method in TAUS:
        found, size = sampled(dense, TAUS[method], seed)
        return list(found), size
    if method == "draws_50":
        return list(drawn(dense, seed)), None
    budget = sampled(dense, TAUS["threshold"], seed)[1]
    top, size, _ = best_k(dense, budget)
    if method == "top_k":
        return [SparseSignal(s.ids, s.weights / s.weights.sum(1, keepdim=True), False) for s in top], size
    return list(top), size


def train(
    start: Any,
    text: Sequences,
    vocabulary: VocabularyMap,
    signals: Callable[[int], list[Signal]] | None,
    seed: int,
    epochs: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> Any:
    """A student trained from the start; returns it.

    Args:
        start: The student to copy.
        text: Training sequences in its ids.
        vocabulary: The identity.
        signals: The signals of every sequence in an epoch; None trains on the text alone.
        seed: Order of the sequences.
        epochs: Passes over the text.
        dtype: Number format of the network.
    """
    model = copy.deepcopy(start)
    source = BatchSource(text, vocabulary, None)
    objective = None if signals is None else make_objective("forward_kl")
    loss = FusedLoss(objective, 0.0 if objective else 1.0, 1.0, vocabulary.student_used, biased=True)
    network = LossNetwork(model, dtype)
    optimizer = make_optimizer(model, CONFIG)
    order = batch_order(len(text), BATCH, epochs, seed)
    for step, indices in enumerate(order):
        if signals is not None and step % (len(order) // epochs) == 0:
            now = signals(step * epochs // len(order))
            cache: Any = Signals(dict(zip(text.digests, now, strict=True)))
            source.cache = cache
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(CONFIG, step, len(order), RATE)
        batch = source.batch(indices)
        network(batch, loss, float(len(batch.targets))).value.backward()
        network.collect()
        clip_gradients(model, CONFIG.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        network.refresh()
    return network


@torch.no_grad()
def heldout_kl(network: LossNetwork, text: Sequences, vocabulary: VocabularyMap, dense: list[torch.Tensor]) -> float:
    """Mean KL(teacher ‖ student) over the held-out positions, in nats a token."""
    source = BatchSource(text, vocabulary, None)
    measure = FusedLoss(make_objective("forward_kl"), used=vocabulary.student_used)
    total, positions = 0.0, 0
    for index in range(len(text)):
        batch = source.batch([index])
        spoken = type(batch)(batch.ids, batch.positions, batch.rows, batch.targets, DenseSignal(dense[index]))
        total += float(network(spoken, measure, 1.0).distances.sum())
        positions += len(dense[index])
    return total / positions


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """Means with 95 % intervals (Student's t over seeds), and paired ratios to dense."""
    table: dict[str, Any] = {}
    for method in METHODS:
        runs = {seed: results[f"{method}/{seed}"] for seed in SEEDS if f"{method}/{seed}" in results}
        if not runs:
            continue
        kls = [run["kl"] for run in runs.values()]
        ratios = [run["kl"] / results[f"dense/{seed}"]["kl"] for seed, run in runs.items()]
        table[method] = {
            "bytes_per_position": next(iter(runs.values()))["bytes_per_position"],
            "kl": statistics.mean(kls),
            "kls": kls,
            "over_dense": statistics.mean(ratios),
            "over_dense_interval": report.interval(ratios),
        }
    return table


def main() -> None:
    """Train what is not trained yet, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no training after so many minutes")
    arguments = parser.parse_args()
    begun = time.monotonic()
    results: dict[str, Any] = files.read_json(arguments.work) if arguments.work and arguments.work.is_file() else {}
    loaded = material.teacher()
    original = material.corpus(loaded, LENGTH, TRAIN_TOKENS, HELDOUT_TOKENS)
    start, to_student = material.student(loaded, LAYERS, *original)
    vocabulary = VocabularyMap.identity(to_student.student_size)
    train_text, heldout = (material.renumbered(text, to_student) for text in original)
    dense, dense_heldout = (dense_signals(loaded, text, to_student) for text in original)
    seeds = SEEDS[:1] if arguments.quick else SEEDS
    # What matters most for every seed first, so that an interrupted benchmark has it.
    plan = [(method, seed) for seed in seeds for method in METHODS[:4]]
    plan += [] if arguments.quick else [(method, seed) for seed in seeds for method in METHODS[4:]]
    for method, seed in plan:
        name = f"{method}/{seed}"
        if name in results or time.monotonic() - begun > 60 * arguments.minutes:
            continue
        signals, size = (None, 0.0) if method == "cross_entropy" else signals_of(method, dense, seed)
        taught = None if signals is None else (lambda _, signals=signals: signals)
        network = train(start, train_text, vocabulary, taught, seed)
        kl = heldout_kl(network, heldout, vocabulary, dense_heldout)
        results[name] = {"kl": kl, "bytes_per_position": size}
        sys.stderr.write(f"{name}: {kl:.4f} nats, {time.monotonic() - begun:.0f} s\n")
        if arguments.work:
            files.write_json(arguments.work, results)
    table = summary(results)
    figures = {
        f"kl_{short}_over_dense": table[method]["over_dense"]
        for short, method in (("threshold", "threshold"), ("topk", "top_k"), ("cross_entropy", "cross_entropy"))
        if method in table
    }
    settings = {
        "layers": LAYERS,
        "train_tokens": TRAIN_TOKENS,
        "heldout_tokens": HELDOUT_TOKENS,
        "batch": BATCH * LENGTH,
    }
    report.write(figures, {"methods": table, "settings": settings}, arguments.json)


if __name__ == "__main__":
    main()
