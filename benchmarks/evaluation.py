"""Is evaluation itself right? Intervals, paired tests, agreement with others' numbers, injected faults, memory.

    .venv/bin/python -m benchmarks.evaluation [--quick] [--json FILE]

- ``interval_coverage``: how often 95 % intervals hold the truth in 4,000 simulated repetitions; of all kinds of interval
  the one furthest from 0.95.
- ``interval_coverage_19_independent``, ``…_19_correlated``, ``…_100_independent``, ``…_100_correlated``: the same for 19 and
  100 documents of real lengths (the quickstart's of 0.1.0, each with at most 1,024 learned tokens, as held-out text has
  them), where a document's difficulty does not depend on its length and where long ones are easier (length^-0.15).
- ``paired_test_rejection``: how often paired tests reject a true null at 5 %; the one furthest from 0.05.
- ``lm_eval_difference``: the largest difference to lm-evaluation-harness's own model class, in nats a continuation and in
  bits a byte of whole texts. It needs an environment with ``lm_eval`` (LM_EVAL_PYTHON, or ``.venvs/lm-eval``); null without.
- ``kl_difference``: the largest difference of KL to a direct computation in float64.
- ``injected_faults_caught``, ``injected_faults``, ``false_alarms``: see :mod:`benchmarks.faults`.
- ``codec_self_kl``: the validation KL of a teacher as its own student, in standard errors: of every codec the one furthest
  from 0 (each with its value and standard error is in the details).
- ``heldout_memory_growth``: bytes by which ten times the held-out text raises a process's peak memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.budget import own_peak_bytes
from benchmarks.report import write
from stillroom.evaluation.intervals import Estimate, difference, ratio
from stillroom.evaluation.paired import mcnemar, paired_share, share, sign_test

ROOT = Path(__file__).resolve().parent.parent
REPETITIONS = 4000
LENGTHS = ROOT / "benchmarks" / "document_lengths.json"
CAP = 1024
"""Learned tokens that one document has in held-out text at most."""
SPREAD = 0.35
"""Standard deviation of the logarithm of documents' difficulty."""
EASIER = -0.15
"""Power of its length by which a long document is easier."""
WINDOW = 256
SHORT, LONG = 24, 240
"""Sequences of held-out text whose memory is compared."""


def coverage(repetitions: int = REPETITIONS, seed: int = 0) -> dict[str, float]:
    """Share of repetitions whose interval holds the truth, by kind."""
    generator = np.random.default_rng(seed)
    hits = dict.fromkeys(("documents", "few_documents", "difference", "share", "paired_share"), 0)
    for _ in range(repetitions):
        for kind, count in (("documents", 30), ("few_documents", 5)):
            # Documents of unequal length with an effect of their own: Σ v / Σ w tends to E[v] / E[w] = 2.
            weights = np.ceil(generator.lognormal(4, 0.7, count))
            values = weights * generator.gamma(8, 2 / 8, count)
            hits[kind] += holds(ratio(values, weights, 0.95), 2)
        weights = np.ceil(generator.lognormal(4, 0.7, 30))
        shared = generator.gamma(8, 2 / 8, 30)
        first, second = (shared + generator.normal(gain, 0.3, 30) for gain in (0.1, 0.0))
        hits["difference"] += holds(difference(first * weights, second * weights, weights, 0.95), 0.1)
        # The true share is drawn anew, so that no one share's lattice decides.
        truth = generator.uniform(0.05, 0.95)
        low, high = share(int(generator.binomial(100, truth)), 100)["interval"]
        hits["share"] += low <= truth <= high
        mine, theirs, truth = _answers(generator, 200, generator.uniform(-0.1, 0.1))
        low, high = paired_share(mine, theirs)
        hits["paired_share"] += low <= truth <= high
    return {kind: count / repetitions for kind, count in hits.items()}


def holds(estimate: Estimate, truth: float) -> bool:
    """Whether an interval holds the truth; none holds nothing."""
    return estimate.low is not None and estimate.high is not None and estimate.low <= truth <= estimate.high


def coverage_by_length(
    repetitions: int = REPETITIONS, seed: int = 2, cap: int | None = CAP
) -> dict[str, dict[str, float]]:
    """Coverage on real lengths, for 19 and 100 documents, length and difficulty independent and correlated.

    Returns:
        For each setting the share of repetitions whose interval holds the truth, of the ratio of sums (``value``), of
        the paired difference of two models and of their quotient; and the interval's median width as a share of the value
        and the median of effective documents.
    """
    pool = np.asarray(json.loads(LENGTHS.read_text(encoding="utf-8"))["lengths"], dtype=np.float64)
    pool = np.minimum(pool, cap) if cap else pool
    generator = np.random.default_rng(seed)
    found = {}
    for count in (19, 100):
        for setting, power in (("independent", 0.0), ("correlated", EASIER)):
            # The mean of exp(N(0, s)) is exp(s² / 2); Σ length · difficulty / Σ length over the population is the truth.
            truth = math.exp(SPREAD**2 / 2) * float((pool * (pool / 200) ** power).sum() / pool.sum())
            hits = dict.fromkeys(("value", "difference", "quotient"), 0)
            widths, effective = [], []
            for _ in range(repetitions):
                weights = generator.choice(pool, count)
                second = weights * (weights / 200) ** power * np.exp(generator.normal(0, SPREAD, count))
                # The first model is 30 % worse, more or less by document.
                first = second * (1.3 + generator.normal(0, 0.1, count))
                estimate = ratio(second, weights, 0.95)
                hits["value"] += holds(estimate, truth)
                hits["difference"] += holds(difference(first, second, weights, 0.95), 0.3 * truth)
                hits["quotient"] += holds(ratio(first, second, 0.95), 1.3)
                if estimate.interval is not None:
                    widths.append((estimate.interval[1] - estimate.interval[0]) / estimate.value)
                effective.append(estimate.effective)
            found[f"{count}_{setting}"] = {name: hit / repetitions for name, hit in hits.items()} | {
                "median_width": float(np.median(widths)),
                "effective_documents": float(np.median(effective)),
            }
    return found


def rejection(repetitions: int = REPETITIONS, seed: int = 1) -> dict[str, float]:
    """Share of repetitions in which a true null is rejected at 5 %, by test."""
    generator = np.random.default_rng(seed)
    hits = {"difference": 0, "sign_test": 0, "mcnemar": 0}
    for _ in range(repetitions):
        weights = np.ceil(generator.lognormal(4, 0.7, 30))
        shared = generator.gamma(8, 2 / 8, 30)
        first, second = (shared + generator.normal(0, 0.3, 30) for _ in range(2))
        hits["difference"] += not holds(difference(first * weights, second * weights, weights, 0.95), 0)
        hits["sign_test"] += sign_test(int((first > second).sum()), int((first < second).sum())) < 0.05
        mine, theirs, _ = _answers(generator, 200, 0.0)
        hits["mcnemar"] += mcnemar(mine, theirs)["p_value"] < 0.05
    return {kind: count / repetitions for kind, count in hits.items()}


def _answers(generator: Any, count: int, gap: float) -> tuple[list[bool], list[bool], float]:
    """Right and wrong answers of two models to the same items, and the true difference of their shares."""
    apart = 0.3
    drawn = generator.random(count)
    only_first = drawn < (apart + gap) / 2
    only_second = (drawn >= (apart + gap) / 2) & (drawn < apart)
    both = drawn > 0.6
    return list(only_first | both), list(only_second | both), gap


def harness_python() -> Path | None:
    """The Python of an environment with lm-evaluation-harness."""
    named = os.environ.get("LM_EVAL_PYTHON")
    path = Path(named) if named else ROOT / ".venvs" / "lm-eval" / "bin" / "python"
    # An installation that was cut off leaves a Python without it.
    asked = [str(path), "-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('lm_eval') is None)"]
    return path if path.is_file() and subprocess.run(asked, capture_output=True).returncode == 0 else None


def lm_eval_difference(python: Path, folder: Path) -> dict[str, float]:
    """Our log-likelihoods and bits a byte against the harness's, on the same model and items."""
    from stillroom.corpus.udhr import samples
    from stillroom.evaluation.answers import Speaker
    from stillroom.evaluation.bench import Loaded
    from stillroom.models.load import load_student
    from stillroom.signals.vocabulary_map import VocabularyMap
    from tests.tiny_models import tiny_model

    tiny_model("llama", folder / "model", layers=3, seed=3)
    model, tokenizer = load_student(folder / "model", torch.float32)
    speaker = Speaker(Loaded(model.eval(), tokenizer, VocabularyMap.identity(len(tokenizer)), 0), WINDOW)
    texts = [text[:size] for (_, text), size in zip(samples().values(), range(150, 1500, 130), strict=False)]
    pairs = [(text[:60], text[60:90]) for text in texts] + [
        ("Q: 2 + 2 = ", "4"),
        ("", "Hello"),
        ("A list is ", " a thing"),
    ]
    pairs += [(text[:1200], text[1200:1230]) for text in texts if len(text) > 1230]
    (folder / "asked.json").write_text(json.dumps({"window": WINDOW, "pairs": pairs, "texts": texts}), encoding="utf-8")
    subprocess.run(
        [
            str(python),
            str(ROOT / "benchmarks" / "harness_side.py"),
            *(str(folder / name) for name in ("model", "asked.json", "said.json")),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    said = json.loads((folder / "said.json").read_text(encoding="utf-8"))
    ours = speaker.log_likelihoods(pairs)
    if [greedy for _, greedy in ours] != [greedy for _, greedy in said["pairs"]]:
        raise ArithmeticError("the greedy answers differ")
    nats = max(abs(mine - theirs) for (mine, _), (theirs, _) in zip(ours, said["pairs"], strict=True))
    bits = max(
        abs(speaker.rolling(text) - theirs) / math.log(2) / len(text.encode())
        for text, theirs in zip(texts, said["rolling"], strict=True)
    )
    return {"nats": nats, "bits_per_byte": bits, "continuations": len(pairs), "texts": len(texts)}


def harness_difference(python: Path | None, folder: Path) -> tuple[dict[str, float] | None, dict[str, str]]:
    """:func:`lm_eval_difference`, or why it was left out: it takes nothing else away."""
    why = "no environment with lm_eval was found"
    if python is not None:
        try:
            return lm_eval_difference(python, folder), {}
        except subprocess.CalledProcessError as error:
            why = str(error.stderr)[-800:]
    return None, {"lm_eval_difference": why}


def kl_difference(bench: Any, student: Any) -> float:
    """KL by the measure, and directly from both models' whole distributions in float64."""
    from stillroom.core.progress import Task
    from stillroom.corpus.sequences import IGNORED
    from stillroom.evaluation.fidelity import Contender, compare
    from stillroom.evaluation.tally import Tally

    teacher = bench.load("teacher")
    heldout = bench.heldout
    tallies = [Tally({"all": 1}, heldout.documents) for _ in range(2)]
    contender = Contender("student", student.model, student.vocabulary, tallies[1])
    compare(teacher.model, tallies[0], [contender], heldout, np.zeros(0), Task("", 1, "", quiet=True))
    total, count = 0.0, 0
    with torch.inference_mode():
        for index in range(len(heldout)):
            row = heldout.row(index)
            # Each document by itself, without packing.
            for segment in row.segments[0].unique().tolist():
                if segment < 0:
                    continue
                ids = row.ids[0][row.segments[0] == segment][None]
                chosen = (row.targets[0][row.segments[0] == segment] != IGNORED).nonzero().squeeze(1)
                if not len(chosen):
                    continue
                p, q = (
                    torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, chosen].double(), dim=1)
                    for model in (teacher.model, student.model)
                )
                total += float((p.exp() * (p - q)).sum())
                count += len(chosen)
    return abs(float(tallies[1].of("kl").sum() / tallies[1].of("compared").sum()) - total / count)


def codec_self_kl() -> dict[str, dict[str, float]]:
    """By codec, the validation KL of a teacher as its own student in nats per token, its standard error, and their ratio."""
    from benchmarks.self_kl import codecs, self_kl

    table = {}
    for name, codec in codecs().items():
        value, error = self_kl(codec)
        table[name] = {"value": value, "standard_error": error, "standard_errors": value / error}
    return table


def memory_growth(folder: Path) -> dict[str, int]:
    """Peak memory of a process that evaluates some text, and ten times as much."""
    peaks = {}
    for name, count in (("short", SHORT), ("long", LONG)):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.evaluation", "--evaluate", str(count), "--folder", str(folder / name)],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        peaks[name] = int(done.stdout.split()[-1])
    return peaks


def evaluate_text(count: int, folder: Path) -> None:
    """Measure the fidelity of a tiny model on so many sequences from disk; print the peak memory in bytes."""
    from benchmarks.faults import bench_with
    from stillroom.evaluation.bench import Loaded
    from stillroom.evaluation.heldout import HeldOut
    from stillroom.evaluation.registry import metric
    from stillroom.signals.vocabulary_map import VocabularyMap
    from tests.students.tiny_families import tiny_sequences
    from tests.tiny_models import make_model, make_tokenizer

    tokenizer = make_tokenizer("bpe", 512)
    models = [make_model("llama", rows=len(tokenizer), tokenizer=tokenizer, layers=2, seed=seed) for seed in (0, 1)]
    loaded = [Loaded(model, tokenizer, VocabularyMap.identity(len(tokenizer)), 0) for model in models]
    folder.mkdir(parents=True, exist_ok=True)
    tiny_sequences(count, 512, ids=len(tokenizer)).save(folder / "heldout.safetensors")
    bench = bench_with(HeldOut(folder / "heldout.safetensors"), folder, *loaded)
    metric("fidelity").measure(bench)
    sys.stdout.write(f"{own_peak_bytes()}\n")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed of the faults' world instead of three")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--evaluate", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.evaluate:
        evaluate_text(options.evaluate, options.folder)
        return
    from benchmarks.faults import FAULTS, alarms, faulty, make_world, measured, with_student

    covered, rejected = coverage(), rejection()
    by_length = coverage_by_length()
    every = [
        *covered.values(),
        *(entry[kind] for entry in by_length.values() for kind in ("value", "difference", "quotient")),
    ]
    caught, injected, false = 0, 0, 0
    seen: dict[str, Any] = {}
    direct = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in (0,) if options.quick else (0, 1, 2):
            bench, teacher = make_world(folder / f"world{seed}", seed)
            itself = alarms(measured(bench))
            false += len(itself)
            seen[f"itself, seed {seed}"] = sorted(itself)
            for fault, meant in FAULTS.items():
                student = faulty(fault, teacher)
                found = alarms(measured(with_student(bench, teacher, student, fault)))
                injected += 1
                caught += meant in found
                false += len(found - {meant})
                seen[f"{fault}, seed {seed}"] = sorted(found)
                direct.append(kl_difference(bench, student))
        python = harness_python()
        harness, left_out = harness_difference(python, folder / "harness")
        peaks = memory_growth(folder)
    codecs_themselves = codec_self_kl()
    figures = {
        "interval_coverage": max(every, key=lambda value: abs(value - 0.95)),
        **{f"interval_coverage_{setting}": entry["value"] for setting, entry in by_length.items()},
        "paired_test_rejection": max(rejected.values(), key=lambda value: abs(value - 0.05)),
        "lm_eval_difference": max(harness["nats"], harness["bits_per_byte"]) if harness else None,
        "kl_difference": max(direct),
        "injected_faults_caught": caught,
        "injected_faults": injected,
        "false_alarms": false,
        "codec_self_kl": max(abs(row["standard_errors"]) for row in codecs_themselves.values()),
        "heldout_memory_growth": peaks["long"] - peaks["short"],
    }
    details = {
        "coverage": covered,
        "coverage_by_length": by_length,
        "coverage_by_length_without_cap": coverage_by_length(cap=None),
        "rejection": rejected,
        "repetitions": REPETITIONS,
        "harness": harness,
        "left_out": left_out,
        "alarms": seen,
        "codec_self_kl": codecs_themselves,
        "peak_memory_bytes": peaks,
    }
    write(figures, details, options.json)


if __name__ == "__main__":
    main()
