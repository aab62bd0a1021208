"""How good a student becomes by what it is taught from: dense signals, threshold samples, top-k, 50 draws, and text alone.

    .venv/bin/python -m benchmarks.quality [--quick] [--json FILE] [--work FILE]

The same student (8 layers of SmolLM2-135M-Instruct's 30, its vocabulary cut to the text) from the same start on the same
tokens in the same order; three seeds of order and sampling. Every signal is taken from the teacher's distribution over
the student's ids. The measure is the dense KL to the teacher on held-out text, in nats a token. `--work` names a file that
keeps finished trainings, so that an interrupted benchmark goes on. `--quick` takes one seed and the three signals that
matter most.

A second part (`--only coarse` runs it alone) is of what an endpoint lists: the same number of layers, repaired in closed form,
learns on 122,000 tokens from the 20 or 5 most probable ids and the mass of all others (``coarse20``, ``coarse5``), or from
those ids alone, normalised to one (``coarse20_renormalised``, ``coarse5_renormalised``), beside the dense signal. A folder
beside the file of `--work` keeps the teacher's hidden states on that text, which cost as much as a training.
"""

from __future__ import annotations

import argparse
import copy
import functools
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from benchmarks import material, report
from stillroom.core import files
from stillroom.corpus.sequences import Sequences
from stillroom.models.families.registry import family_of
from stillroom.recipe.training import DistillConfig
from stillroom.signals.batches import BatchSource
from stillroom.signals.cache.hidden import OutputLayer
from stillroom.signals.cache.observed import Observed
from stillroom.signals.cache.threshold import Entries, Threshold
from stillroom.signals.cache.top_k import TopK
from stillroom.signals.signal import CoarseSignal, DenseSignal, Signal, SparseSignal
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.students.embeddings import keep_rows
from stillroom.students.importance import Sample
from stillroom.students.measured import Measured
from stillroom.students.shape import Anatomy, Shape
from stillroom.students.shrink import shrink
from stillroom.students.trim import trim
from stillroom.teachers.local import LocalTeacher
from stillroom.training.losses.fused import FusedLoss
from stillroom.training.losses.registry import make_objective
from stillroom.training.network import LossNetwork
from stillroom.training.optimizer import OBSERVED_SHARE, clip_gradients, make_optimizer, set_rate
from stillroom.training.schedule import batch_order, learning_rate

LAYERS, LENGTH, BATCH = 8, 256, 4
TRAIN_TOKENS, HELDOUT_TOKENS = 24_576, 4096
SEEDS = (0, 1, 2)
RATE = 1e-3
CONFIG = DistillConfig(learning_rate=RATE)
IDENTITY = {
    "length": LENGTH,
    "batch": BATCH,
    "train_tokens": TRAIN_TOKENS,
    "heldout_tokens": HELDOUT_TOKENS,
    "rate": RATE,
}
"""What every training of a work file has in common."""
DRAWS = 50
TAUS = {"threshold": 1 / 36, "threshold_24": 1 / 24, "threshold_16": 1 / 16}
METHODS = ("dense", "threshold", "top_k", "cross_entropy", "top_k_rest", "draws_50", "threshold_16", "threshold_24")
COARSE_TOKENS, QUICK_COARSE_TOKENS, REPAIR_TOKENS = 122_000, 8192, 8192
COARSE = {"coarse20": 20, "coarse5": 5}
"""Ids that are listed."""
STORED = 20
"""Sequences whose hidden states are in one file."""
RENORMALISED = "_renormalised"
COARSE_METHODS = ("dense", *COARSE, *(f"{name}{RENORMALISED}" for name in COARSE))

Lazy = Callable[[], Signal]
"""Makes a signal that is too large to be kept."""


class Signals:
    """Signals in memory, with the interface of a cache."""

    def __init__(self, by_digest: dict[str, Signal | Lazy]) -> None:
        self._signals = by_digest

    def read(self, digests: list[str]) -> tuple[Signal, list[int]]:
        """See :meth:`TeacherCache.read`."""
        found = [signal() if callable(signal) else signal for signal in map(self._signals.__getitem__, digests)]
        counts = [len(signal) for signal in found]
        dense = [signal for signal in found if isinstance(signal, DenseSignal)]
        if dense:
            return DenseSignal(torch.cat([signal.logprobs for signal in dense])), counts
        coarse = [signal for signal in found if isinstance(signal, CoarseSignal)]
        if coarse:
            columns = zip(*((signal.ids, signal.logprobs, signal.rest) for signal in coarse), strict=True)
            return CoarseSignal(*map(torch.cat, columns)), counts
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
    signals: Callable[[int], list[Signal] | list[Lazy]] | None,
    seed: int,
    epochs: int = 1,
    dtype: torch.dtype | None = None,
    order: list[list[int]] | None = None,
    output_share: float = 1.0,
) -> Any:
    """A student trained from the start; returns it.

    Args:
        start: The student to copy.
        text: Training sequences in its ids.
        vocabulary: The identity.
        signals: The signals of every sequence in an epoch; None trains on the text alone.
        seed: Order of the sequences.
        epochs: Passes over the text.
        dtype: Number format of the network, if not the fastest of this processor.
        order: Sequences of each step, if not so many passes in the order of the seed.
        output_share: Share of the learning rate that the output layer takes.
    """
    model = copy.deepcopy(start)
    source = BatchSource(text, vocabulary, None)
    objective = None if signals is None else make_objective("forward_kl")
    loss = FusedLoss(objective, 0.0 if objective else 1.0, 1.0, vocabulary.student_used, biased=True)
    network = LossNetwork(model, dtype or material.fastest())
    optimizer = make_optimizer(model, CONFIG, output_share)
    order = order or batch_order(len(text), BATCH, epochs, seed)
    for step, indices in enumerate(order):
        if signals is not None and step % (len(order) // epochs) == 0:
            now = signals(step * epochs // len(order))
            cache: Any = Signals(dict(zip(text.digests, now, strict=True)))
            source.cache = cache
        set_rate(optimizer, learning_rate(CONFIG, step, len(order), RATE))
        batch = source.batch(indices)
        network(batch, loss, float(len(batch.targets))).value.backward()
        network.collect()
        clip_gradients(model, CONFIG.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        network.refresh()
    return network


def repaired_start(loaded: Any, layers: int, *texts: Sequences) -> tuple[Any, VocabularyMap]:
    """As :func:`benchmarks.material.student`, with the layers chosen and repaired as the stage `shrink` does it."""
    teacher = material.as_dtype(copy.deepcopy(loaded.model), torch.float32)
    family = family_of(teacher)
    measured = Measured.of(teacher, family, Sample.of(texts[0], REPAIR_TOKENS))
    whole = Anatomy.of(teacher, family).teacher
    shape = Shape(layers, whole.channels, whole.groups, whole.hidden, whole.vocabulary)
    model = copy.deepcopy(shrink(teacher, family, shape, measured, True).model)
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update(text.ids[text.segments >= 0].tolist())
    trimmed = trim(loaded.tokenizer, counts, None, teacher.get_output_embeddings().weight.shape[0], 64)
    keep_rows(model, trimmed.kept, trimmed.vocabulary.student_size)
    made = material.as_dtype(model, torch.float32).requires_grad_(requires_grad=True).train()
    return made, trimmed.vocabulary


def hidden_of(loaded: Any, text: Sequences, folder: Path | None) -> list[torch.Tensor]:
    """The teacher's last hidden states, sequence by sequence, [N, H]: dense signals of so much text fill the memory.

    Args:
        loaded: The teacher.
        text: The sequences.
        folder: Keeps them, some sequences a file; a file that is there is not made again.
    """
    found: list[torch.Tensor] = []
    for begin in range(0, len(text), STORED):
        rows = list(range(begin, min(begin + STORED, len(text))))
        # The name says of which sequences it is.
        path = folder / f"{files.digest_json([text.digests[row] for row in rows])}.safetensors" if folder else None
        if path is not None and path.is_file():
            stored = load_file(path)
            found += [stored[str(row)] for row in rows]
            continue
        made = [
            hidden.clone()
            for start in range(0, len(rows), BATCH)
            for _, hidden in LocalTeacher(loaded).hidden(text, rows[start : start + BATCH])
        ]
        if path is not None:
            files.write_bytes(path, save({str(row): hidden for row, hidden in zip(rows, made, strict=True)}))
        found += made
    return found


def dense_of(layer: OutputLayer, vocabulary: VocabularyMap, hidden: torch.Tensor) -> DenseSignal:
    """The teacher's distribution over the student's ids, of hidden states [N, H]."""
    parts = [vocabulary.project_dense(part.log_softmax(1)) for part in layer.logits(hidden)]
    return DenseSignal(torch.cat(parts).clone())


def listed(method: str, dense: DenseSignal) -> Signal:
    """What an endpoint lists of a distribution, as a method takes it."""
    count = COARSE[method.removesuffix(RENORMALISED)]
    codec = Observed(count, dense.logprobs.shape[1])
    signal = codec.observe(codec.sample([dense.logprobs.exp()], np.random.default_rng(0)))
    if not method.endswith(RENORMALISED):
        return signal
    mass = signal.logprobs.exp()
    return SparseSignal(signal.ids, mass / mass.sum(1, keepdim=True), False)


def always(signals: Any) -> Callable[[int], Any]:
    """The same signals in every epoch."""
    return lambda _: signals


def coarse_part(
    loaded: Any,
    tokens: int,
    layers: int,
    seeds: tuple[int, ...],
    kept: report.Kept,
    until: float,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures and details of learning from what an endpoint lists.

    Args:
        loaded: The teacher.
        tokens: To train on.
        layers: Of the student.
        seeds: Of the order.
        kept: Finished trainings; a folder beside its file keeps the teacher's hidden states.
        until: No training is begun after this time of the monotonic clock, in seconds.
    """
    results = kept.cells
    states_folder = None if kept.path is None else kept.path.with_name(f"{kept.path.stem}-states")
    original = material.corpus(loaded, LENGTH, tokens, HELDOUT_TOKENS if tokens >= HELDOUT_TOKENS else LENGTH)
    prefix = f"repaired-{layers}-{tokens}-{str(material.fastest()).removeprefix('torch.')}-{OBSERVED_SHARE}"
    names = [f"{prefix}/{method}/{seed}" for seed in seeds for method in COARSE_METHODS]
    if any(name not in results for name in [*names, f"{prefix}/start"]):
        start, to_student = repaired_start(loaded, layers, *original)
        vocabulary = VocabularyMap.identity(to_student.student_size)
        train_text, heldout = (material.renumbered(text, to_student) for text in original)
        layer = OutputLayer(LocalTeacher(loaded).output_layer)
        lazily = [
            functools.partial(dense_of, layer, to_student, states)
            for states in hidden_of(loaded, original[0], states_folder)
        ]
        dense_heldout = dense_signals(loaded, original[1], to_student)
        kl = heldout_kl(LossNetwork(copy.deepcopy(start), material.fastest()), heldout, vocabulary, dense_heldout)
        kept.add(f"{prefix}/start", {"kl": kl})
        for name in names:
            if name in results:
                continue
            if time.monotonic() > until:
                done = sum(other in results for other in names)
                raise SystemExit(
                    f"{done} of {len(names)} trainings are finished; with --work, the same command goes on."
                )
            _, method, seed = name.split("/")
            taught: Any = lazily if method == "dense" else [listed(method, make()) for make in lazily]
            begun = time.monotonic()
            share = 1.0 if method == "dense" else OBSERVED_SHARE  # as a run takes it
            network = train(start, train_text, vocabulary, always(taught), int(seed), output_share=share)
            kl = heldout_kl(network, heldout, vocabulary, dense_heldout)
            kept.add(name, {"kl": kl})
            sys.stderr.write(f"{name}: {kl:.4f} nats, {time.monotonic() - begun:.0f} s\n")
    table: dict[str, Any] = {}
    for method in COARSE_METHODS:
        kls = [results[f"{prefix}/{method}/{seed}"]["kl"] for seed in seeds]
        ratios = [kl / results[f"{prefix}/dense/{seed}"]["kl"] for kl, seed in zip(kls, seeds, strict=True)]
        table[method] = {
            "kl": statistics.mean(kls),
            "kls": kls,
            "over_dense": statistics.mean(ratios),
            "over_dense_interval": report.interval(ratios),
        }
    figures = {f"{method}_over_dense": table[method]["over_dense"] for method in COARSE_METHODS[1:]}
    settings = {
        "layers": layers,
        "train_tokens": original[0].tokens,
        "heldout_tokens": original[1].tokens,
        "seeds": list(seeds),
        "start_kl": results[f"{prefix}/start"]["kl"],
    }
    return figures, {"methods": table, "settings": settings}


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
    parser.add_argument("--only", choices=("sampled", "coarse"), help="one part alone")
    parser.add_argument("--tokens", type=int, help="to train on in the part `coarse`")
    parser.add_argument("--layers", type=int, default=LAYERS, help="of the student in the part `coarse`")
    arguments = parser.parse_args()
    begun = time.monotonic()
    kept = report.Kept(arguments.work, IDENTITY | {"dtype": str(material.fastest())})
    loaded = material.teacher()
    seeds = SEEDS[:1] if arguments.quick else SEEDS
    figures: dict[str, float] = {}
    details: dict[str, Any] = {}
    if arguments.only != "coarse":
        figures, details = sampled_part(loaded, seeds, arguments, kept, begun)
    # Beyond the minutes nothing of this part is begun: a part of its methods would say nothing.
    if arguments.only != "sampled" and time.monotonic() - begun <= 60 * arguments.minutes:
        tokens = arguments.tokens or (QUICK_COARSE_TOKENS if arguments.quick else COARSE_TOKENS)
        found, details["coarse"] = coarse_part(
            loaded, tokens, arguments.layers, seeds, kept, begun + 60 * arguments.minutes
        )
        figures |= found
    report.write(figures, details, arguments.json)


def sampled_part(
    loaded: Any, seeds: tuple[int, ...], arguments: argparse.Namespace, kept: report.Kept, begun: float
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures and details of learning from what is kept of whole distributions."""
    original = material.corpus(loaded, LENGTH, TRAIN_TOKENS, HELDOUT_TOKENS)
    start, to_student = material.student(loaded, LAYERS, *original)
    vocabulary = VocabularyMap.identity(to_student.student_size)
    train_text, heldout = (material.renumbered(text, to_student) for text in original)
    dense, dense_heldout = (dense_signals(loaded, text, to_student) for text in original)
    # What matters most for every seed first, so that an interrupted benchmark has it.
    plan = [(method, seed) for seed in seeds for method in METHODS[:4]]
    plan += [] if arguments.quick else [(method, seed) for seed in seeds for method in METHODS[4:]]
    for method, seed in plan:
        name = f"{method}/{seed}"
        if name in kept.cells or time.monotonic() - begun > 60 * arguments.minutes:
            continue
        signals, size = (None, 0.0) if method == "cross_entropy" else signals_of(method, dense, seed)
        taught = None if signals is None else (lambda _, signals=signals: signals)
        network = train(start, train_text, vocabulary, taught, seed)
        kl = heldout_kl(network, heldout, vocabulary, dense_heldout)
        kept.add(name, {"kl": kl, "bytes_per_position": size})
        sys.stderr.write(f"{name}: {kl:.4f} nats, {time.monotonic() - begun:.0f} s\n")
    table = summary(kept.cells)
    figures = {
        f"kl_{short}_over_dense": table[method]["over_dense"]
        for short, method in (("threshold", "threshold"), ("topk", "top_k"), ("cross_entropy", "cross_entropy"))
        if method in table
    }
    settings = {
        "layers": LAYERS,
        "train_tokens": train_text.tokens,
        "heldout_tokens": heldout.tokens,
        "seeds": list(seeds),
        "batch": BATCH * LENGTH,
    }
    return figures, {"methods": table, "settings": settings}


if __name__ == "__main__":
    main()
