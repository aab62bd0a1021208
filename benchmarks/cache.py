"""What a position of the teacher cache costs and how well it keeps the teacher's distribution, against other layouts.

    .venv/bin/python -m benchmarks.cache [--quick] [--json FILE] [--plot FILE]        (a plot needs the extra `bench`)

SmolLM2-135M-Instruct on Python's own documentation. Bytes are those of the first shard, with its index and the codec's
model; errors are measured on some of its positions. Others' layouts are written again from their descriptions:
Megatron-LM (128 ids and values, 5 bytes an entry), DistillKit (packed ids; a polynomial of the logarithm stands for the
values, here of degree 8 in 16-bit numbers after a few exact ones), top-k with 32-bit ids and bfloat16 values, and 50 draws with
replacement (ids in 3 bytes with their number, arXiv 2503.16870). The output layer's gradient is that of forward KL for a
student that is the teacher without two of its layers.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks import material, report
from stillroom.core import files
from stillroom.corpus.sequences import Sequences
from stillroom.models.families.registry import family_of
from stillroom.models.forward import hidden_states
from stillroom.recipe.capture import Codec, ThresholdCodec, TopKCodec
from stillroom.signals.cache.identity import CacheIdentity
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.threshold import Threshold
from stillroom.signals.cache.writer import CacheWriter
from stillroom.signals.signal import SparseSignal
from stillroom.teachers.local import LocalTeacher

if TYPE_CHECKING:
    from stillroom.models.load import LoadedTeacher

LENGTH = 512
RECOMMENDED = 1 / 36
CPU = torch.device("cpu")
DRAWS = 50
BIAS_POSITIONS, ENCODINGS = 64, 400
PACKED_ID_BITS = 16
"""Of DistillKit's ids at this vocabulary: the bits of 49,151."""


def codecs(quick: bool) -> dict[str, Codec]:
    """Our codecs and settings by name."""
    some: dict[str, Codec] = {
        "threshold 1/36": ThresholdCodec(tau=RECOMMENDED),
        "threshold 1/20": ThresholdCodec(tau=1 / 20),
        "top-k 6": TopKCodec(k=6),
    }
    if not quick:
        some |= {
            "threshold 1/16": ThresholdCodec(tau=1 / 16),
            "threshold 1/24": ThresholdCodec(tau=1 / 24),
            "threshold 1/64": ThresholdCodec(tau=1 / 64),
            "threshold 1/128": ThresholdCodec(tau=1 / 128),
            "threshold 1/36, head 4": ThresholdCodec(tau=RECOMMENDED, head=4),
            "threshold 1/20, 2 draws": ThresholdCodec(tau=1 / 20, draws=2),
            "top-k 16": TopKCodec(k=16),
            "top-k 50": TopKCodec(k=50),
        }
    return some


def top(probabilities: torch.Tensor, k: int) -> SparseSignal:
    """The k most probable ids."""
    best, ids = probabilities.topk(k, dim=1)
    return SparseSignal(ids, best, False)


def megatron(probabilities: torch.Tensor) -> SparseSignal:
    """128 log-probabilities in bfloat16."""
    signal = top(probabilities, 128)
    return SparseSignal(signal.ids, signal.weights.log().bfloat16().float().exp(), False)


def distillkit(probabilities: torch.Tensor, k: int, exact: int, degree: int) -> SparseSignal:
    """Some log-probabilities exactly, the others by a polynomial of their rank."""
    signal = top(probabilities, k)
    logs = signal.weights.double().log()
    rank = torch.linspace(-1, 1, k - exact, dtype=torch.float64)
    basis = torch.stack([rank**power for power in range(degree + 1)], dim=1)
    solved = torch.linalg.lstsq(basis, logs[:, exact:].T).solution
    fitted = (basis @ solved.half().double()).T
    kept = torch.cat([logs[:, :exact].half().double(), fitted], dim=1)
    return SparseSignal(signal.ids, kept.exp().float(), False)


def fifty_draws(probabilities: torch.Tensor) -> SparseSignal:
    """50 draws with replacement."""
    ids = torch.multinomial(probabilities, DRAWS, replacement=True)
    return SparseSignal(ids, torch.full(ids.shape, 1 / DRAWS))


def others() -> dict[str, tuple[Callable[[torch.Tensor], SparseSignal], Callable[[SparseSignal], float]]]:
    """Others' layouts: what they keep, and their bytes a position."""

    def polynomial(k: int, exact: int, degree: int) -> float:
        return k * PACKED_ID_BITS / 8 + 2 * exact + 2 * (degree + 1)

    def distinct(signal: SparseSignal) -> float:
        ordered = signal.ids.sort(dim=1).values
        return 3.0 * float(1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1).double().mean())

    return {
        "Megatron-LM, k = 128": (megatron, lambda _: 5.0 * 128),
        "DistillKit, k = 128": (lambda p: distillkit(p, 128, 16, 8), lambda _: polynomial(128, 16, 8)),
        "DistillKit, k = 50": (lambda p: distillkit(p, 50, 1, 4), lambda _: polynomial(50, 1, 4)),
        "top-32, bfloat16": (lambda p: top(p, 32), lambda _: 6.0 * 32),
        "50 draws": (fifty_draws, distinct),
    }


def dense_of(signal: SparseSignal, size: int) -> torch.Tensor:
    """The estimate as a whole distribution, [N, V]."""
    return torch.zeros(len(signal), size).scatter_add_(1, signal.ids, signal.weights)


class Judge:
    """Errors of estimates of some positions' distributions."""

    def __init__(self, model: Any, text: Sequences, probabilities: torch.Tensor, sequences: int) -> None:
        self.truth = probabilities
        cut = copy.deepcopy(model)
        adapter = family_of(cut)
        count = len(adapter.layers(cut))
        adapter.keep_layers(cut, [index for index in range(count) if index not in (count // 3, 2 * count // 3)])
        rows = (text.targets[:sequences] >= 0).flatten()
        with torch.inference_mode():
            hidden = hidden_states(cut, text.ids[:sequences], text.positions[:sequences])
            self.hidden = hidden.flatten(0, 1)[rows].float()
            matrix = model.get_output_embeddings().weight.float()
            self.student = torch.softmax(self.hidden @ matrix.T, dim=1)
        self.gradient = (self.student - self.truth).T @ self.hidden

    def errors(self, signal: SparseSignal) -> dict[str, float]:
        """Mean squared error a position, mean mass that is missing, and the relative error of the output layer's gradient."""
        estimate = dense_of(signal, self.truth.shape[1])
        mass = estimate.sum(1, keepdim=True)
        gradient = (mass * self.student - estimate).T @ self.hidden
        return {
            "mean_squared_error": float((estimate - self.truth).square().sum(1).mean()),
            "missing_mass": float(1 - mass.mean()),
            "gradient_error": float((gradient - self.gradient).norm() / self.gradient.norm()),
        }


def measure(
    name: str, codec: Codec, loaded: Any, text: Sequences, scores: list[torch.Tensor], judge: Judge
) -> dict[str, Any]:
    """One of our codecs over a whole shard: bytes, errors on the judged positions, and speeds."""
    identity = CacheIdentity(
        teacher_digest=loaded.digest,
        tokenizer_digest=loaded.tokenizer_digest,
        vocabulary_size=scores[0].shape[1],
        temperature=1.0,
        codec=codec,
        seed=0,
        dtype="bfloat16",
    )
    with tempfile.TemporaryDirectory() as folder:
        writer = CacheWriter.open(Path(folder), identity)
        begun = time.perf_counter()
        for digest, part in zip(text.digests, scores, strict=True):
            writer.add(digest, part.float())
        writer.flush()
        encoding = time.perf_counter() - begun
        cache = TeacherCache.open(folder)
        decoding = []
        for _ in range(3):
            begun = time.perf_counter()
            for start in range(0, len(text), 4):
                cache.read(text.digests[start : start + 4])
            decoding.append(time.perf_counter() - begun)
        judged = sum(len(part) for part in scores[: judge_sequences(judge, scores)])
        signal = cache.read(text.digests[: judge_sequences(judge, scores)])[0]
        assert isinstance(signal, SparseSignal)
        sys.stderr.write(f"{name}: {cache.bytes_per_position:.2f} bytes\n")
        return {
            "bytes_per_position": cache.bytes_per_position,
            "entries": float((signal.weights > 0).sum() / judged),
            **judge.errors(signal),
            "encode_positions_per_second": cache.positions / encoding,
            "decode_positions_per_second": cache.positions / min(decoding),
        }


def judge_sequences(judge: Judge, scores: list[torch.Tensor]) -> int:
    """Sequences whose positions are judged."""
    left, count = len(judge.truth), 0
    while left > 0:
        left -= len(scores[count])
        count += 1
    return count


def bias_p_value(probabilities: torch.Tensor, estimates: Callable[[int], torch.Tensor]) -> float:
    """A bound on the p-value of "the mean estimate is the teacher's distribution", over independent encodings.

    An estimate over its unit (tau for a rarer id; tau / 2, above a multiple of it, for another) lies in [0, 1] with mean q, so
    that a mean m of n of them has a chance of at most 2 exp(−n KL(m ‖ q)) (Hoeffding 1963, theorem 1). The least bound of
    all ids of all positions, times their number (Bonferroni), is returned.

    Args:
        probabilities: [N, V].
        estimates: Gives the estimate [N, V] of a seed.
    """
    truth = probabilities.double()
    mean = torch.zeros_like(truth)
    for seed in range(ENCODINGS):
        mean += estimates(seed)
    mean /= ENCODINGS
    rare = truth < RECOMMENDED
    unit = torch.where(rare, RECOMMENDED, RECOMMENDED / 2)
    base = torch.where(rare, 0.0, (truth / unit + 1e-9).floor() * unit)
    expected = ((truth - base) / unit).clamp(1e-9, 1 - 1e-9)
    found = ((mean - base) / unit).clamp(0, 1)
    divergence = torch.xlogy(found, found / expected) + torch.xlogy(1 - found, (1 - found) / (1 - expected))
    return min(1.0, 2 * truth.numel() * math.exp(-ENCODINGS * float(divergence.max())))


def bias(probabilities: torch.Tensor) -> dict[str, float]:
    """p-values for the recommended threshold, and for top-k."""
    size = probabilities.shape[1]
    codec = Threshold(RECOMMENDED, size)

    def sampled(seed: int) -> torch.Tensor:
        entries = codec.sample([probabilities.clone()], np.random.default_rng(seed))
        row = np.repeat(np.arange(len(entries.counts)), entries.counts)
        estimate = torch.zeros(len(entries.counts), size)
        estimate[row, entries.ids] = torch.from_numpy(entries.levels * (RECOMMENDED / 2)).float()
        return estimate

    kept = dense_of(top(probabilities, 16), size)
    renormalised = kept / kept.sum(1, keepdim=True)
    return {
        "threshold": bias_p_value(probabilities, sampled),
        "top_k": bias_p_value(probabilities, lambda _: renormalised),
    }


def capture_ratio(loaded: Any, text: Sequences, rounds: int) -> list[float]:
    """Tokens a second of capture over those of the bare forward pass, in interleaved rounds of four sequences."""
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        identity = CacheIdentity(
            teacher_digest=loaded.digest,
            tokenizer_digest=loaded.tokenizer_digest,
            vocabulary_size=loaded.model.config.vocab_size,
            temperature=1.0,
            codec=ThresholdCodec(tau=RECOMMENDED),
            seed=0,
            dtype=LocalTeacher(loaded).dtype,
        )
        writer = CacheWriter.open(Path(folder), identity)
        for number in range(rounds + 1):
            indices = [(4 * number + row) % len(text) for row in range(4)]
            begun = time.perf_counter()
            with torch.inference_mode():
                logits = loaded.model(input_ids=text.ids[indices], position_ids=text.positions[indices]).logits
            bare = time.perf_counter() - begun
            del logits
            begun = time.perf_counter()
            for index, chunks in LocalTeacher(loaded).score(text, indices):
                writer.add(text.digests[index], chunks)
            writer.flush()
            if number:
                ratios.append(bare / (time.perf_counter() - begun))
    return ratios


def plot(table: dict[str, dict[str, float]], path: Path) -> None:
    """Bytes against both errors, all logarithmic, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams |= {"svg.hashsalt": "stillroom", "svg.fonttype": "none", "font.size": 10}
    figure, panels = plt.subplots(1, 2, figsize=(12, 5))
    families = (
        ("threshold", "o", "#0b6e4f", "threshold sampling (unbiased)"),
        ("50 draws", "D", "#3b5bdb", "draws with replacement (unbiased)"),
        ("top-k", "s", "#8a4f00", "top-k in our container (biased)"),
        ("", "^", "#444444", "others' layouts (biased)"),
    )
    measures = (
        ("mean_squared_error", "mean squared error of the distribution"),
        ("gradient_error", "relative error of the output layer's gradient"),
    )
    for axes, (measure, label) in zip(panels, measures, strict=True):
        left = dict(table)
        for prefix, marker, colour, family in families:
            names = [name for name in list(left) if name.startswith(prefix)]
            found = [(left.pop(name)["bytes_per_position"], table[name][measure]) for name in names]
            axes.plot(*zip(*found, strict=True), marker=marker, color=colour, linestyle="none", label=family)
            for name, place in zip(names, found, strict=True):
                # Where the place above on the right is a neighbour's, or outside.
                below, middle = "head" in name or name.startswith("DistillKit"), name.startswith("Megatron")
                axes.annotate(
                    name.removeprefix("threshold "),
                    place,
                    xytext=(0, -14) if below else (0, 6) if middle else (5, 5),
                    textcoords="offset points",
                    ha="center" if below or middle else "left",
                    fontsize=8,
                )
        axes.set(xscale="log", yscale="log", xlabel="bytes a position", ylabel=label)
        axes.grid(visible=True, which="both", linewidth=0.3)
        axes.margins(0.18)
    panels[0].legend(frameon=False, loc="lower left", fontsize=9)
    figure.tight_layout()
    with files.replacing(path) as beside:
        figure.savefig(beside, format="svg", metadata={"Date": None})


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--step", type=Path, help="what benchmarks.step wrote: decoding as a share of its step")
    arguments = parser.parse_args()
    step = files.read_json(arguments.step)["figures"]["decode_share_of_step"] if arguments.step else None
    loaded = material.teacher(torch.bfloat16)
    text, _ = material.corpus(loaded, LENGTH, (16 if arguments.quick else 32) * LENGTH, LENGTH)
    # As a run captures here: where bfloat16 is emulated, the forward pass would hide what the rest of a capture takes.
    fastest = loaded if material.fastest() == torch.bfloat16 else material.teacher()
    ratios = capture_ratio(fastest, text, 2 if arguments.quick else 5)
    capture_dtype = LocalTeacher(fastest).dtype
    del fastest
    scores = []
    for start in range(0, len(text), 4):
        indices = list(range(start, min(start + 4, len(text))))
        for _, chunks in LocalTeacher(loaded).score(text, indices):
            scores.append(torch.cat([chunk.half() for chunk in chunks]))
    judged = 2 if arguments.quick else 4
    probabilities = torch.cat([part.float().softmax(1) for part in scores[:judged]])
    judge = Judge(loaded.model, text, probabilities, judged)
    table = {name: measure(name, codec, loaded, text, scores, judge) for name, codec in codecs(arguments.quick).items()}
    for name, (make, size) in others().items():
        torch.manual_seed(0)
        signal = make(probabilities)
        table[name] = {"bytes_per_position": size(signal), **judge.errors(signal)}
    p_values = bias(probabilities[:: len(probabilities) // BIAS_POSITIONS][:BIAS_POSITIONS])
    ours = table["threshold 1/36"]
    figures = {
        "bytes_per_position": ours["bytes_per_position"],
        "mean_squared_error": ours["mean_squared_error"],
        "mean_squared_error_50_draws": table["50 draws"]["mean_squared_error"],
        "bias_p_value": p_values["threshold"],
        "bias_p_value_topk": p_values["top_k"],
        "capture_over_forward": statistics.median(ratios),
    }
    tokens = 4 * LENGTH
    figures["decode_share_of_step"] = step if step is not None else decode_share(tokens, ours, loaded)
    details = {"layouts": table, "capture_over_forward": ratios, "capture_dtype": capture_dtype}
    report.write(figures, details | {"positions": len(probabilities)}, arguments.json)
    if arguments.plot:
        plot(table, arguments.plot)


def decode_share(tokens: int, ours: dict[str, Any], loaded: LoadedTeacher) -> float:
    """Decoding over a bound from below on the step that consumes it: the products of a 16-layer student at full rate."""
    from benchmarks.step import LAYERS, matrix_rate

    weights = sum(parameter.numel() for parameter in loaded.model.base_model.layers[:LAYERS].parameters())
    return tokens / float(ours["decode_positions_per_second"]) / (6 * weights * tokens / matrix_rate())


if __name__ == "__main__":
    main()
