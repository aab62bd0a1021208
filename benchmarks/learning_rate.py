"""How good the learning rate is that ``learning_rate: auto`` chooses, against a full sweep over whole runs.

    .venv/bin/python -m benchmarks.learning_rate --work FOLDER [--quick | --tiny] [--json FILE] [--only TEXT] [--minutes M]

Eight settings: two teachers, two shapes and two lengths. The long runs learn from tiny Llama and Qwen 3 teachers, which are
trained on the same text first, so that what they predict means something; `auto` measures the rate there by its sweep. The
short ones learn from SmolLM2-135M-Instruct and from the tiny Llama; they are too short for a sweep, and `auto` takes the
table. Shapes are the teacher without half of its layers (`pruned`), and one with random weights that is also narrower
(`fresh`). In each setting `auto` and seven rates a factor of two apart are trained on three seeds (order of the text, random
weights); where the best rate is at an end, up to three more follow on that side. The metric is the validation KL of the
weights that a run ends with, in nats per token; every run is the product's own training loop on a threshold cache.

`worst_over_best` is the KL of `auto` over that of the best rate, the mean over seeds, in the worst setting, with Student's
95 % interval; the best rate is the one of the lowest mean over seeds. `largest_lower_end` is the largest lower end of all
settings' intervals. `cost_share` is what the sweep took at most, as a share of the run's steps (a token of validation counts a
third of a step's), `cost_share_cpu` the same in CPU seconds. `swept` counts the settings whose rate is from a sweep. Settings
that lack some of their runs are in no figure; `settings` counts the others.

`--work` keeps finished trainings and the teachers, so that an interrupted benchmark goes on; `--minutes` begins no training
after so many. `--quick` takes shorter runs of all eight settings, with five rates at first and two seeds, whose intervals are
wide. `--only` takes the settings whose name contains a text. `--jobs` is how many teachers are worked on at a time, each with
its share of the threads. `--tiny` shows in a minute or two that the benchmark works, and measures nothing: two settings and
one seed.
"""

from __future__ import annotations

import argparse
import copy
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from benchmarks import jobs, material, report
from stillroom.core.errors import TrainingDiverged
from stillroom.core.progress import Progress
from stillroom.corpus.sequences import Sequences
from stillroom.models.load import LoadedTeacher, load_teacher, save_model
from stillroom.recipe.capture import ThresholdCodec
from stillroom.recipe.teacher import HuggingFaceTeacher
from stillroom.recipe.training import DistillConfig
from stillroom.signals.batches import BatchSource
from stillroom.signals.cache.identity import CacheIdentity
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.writer import CacheWriter
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.teachers.local import LocalTeacher
from stillroom.training.loop import Training
from stillroom.training.sweep import table_rate

SMOLLM2 = "smollm2"
TINY_WIDTHS = {"llama": 96, "qwen3": 64}
"""Hidden sizes of the tiny teachers, by family; each has four layers."""
TINY_LENGTH, SMOLLM2_LENGTH = 64, 128
"""Tokens per sequence."""
BATCH = 4
"""Sequences per optimizer step, of every run."""
TEACHER_BATCH, TEACHER_RATE = 16, 3e-3
SEEDS = (0, 1, 2)
AUTO = "auto"
UNIT = 1e-3
"""The rates of the full sweep are this, times powers of two."""
RATES, MORE_RATES = 7, 3
"""Rates of the full sweep around the table's, and how many more may follow where the best is at an end."""


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        teacher_steps: Steps that tiny teachers are trained for, 1,024 tokens each.
        long: Steps of a long run, 256 tokens each.
        short: Steps of a short run of a tiny teacher's student.
        smollm2: Steps of a short run of SmolLM2's student, 512 tokens each.
        validation_tokens: Of the validation split.
        rates: Rates of the full sweep at first.
        seeds: Seeds of each rate.
    """

    teacher_steps: int
    long: int
    short: int
    smollm2: int
    validation_tokens: int
    rates: int = RATES
    seeds: tuple[int, ...] = SEEDS


SIZES = {
    "full": Size(teacher_steps=1500, long=1600, short=160, smollm2=48, validation_tokens=8192),
    "quick": Size(teacher_steps=600, long=640, short=60, smollm2=8, validation_tokens=2048, rates=5, seeds=SEEDS[:2]),
    "tiny": Size(teacher_steps=40, long=640, short=20, smollm2=2, validation_tokens=512, rates=3, seeds=SEEDS[:1]),
}


@dataclass(frozen=True)
class Setting:
    """A teacher, the shape of its student, and the length of the run (``short`` or ``long``)."""

    teacher: str
    shape: str
    length: str

    @property
    def name(self) -> str:
        """What results call it."""
        return f"{self.length} {self.teacher} {self.shape}"

    def steps(self, size: Size) -> int:
        """Optimizer steps."""
        if self.length == "long":
            return size.long
        return size.smollm2 if self.teacher == SMOLLM2 else size.short


SETTINGS = tuple(
    Setting(teacher, shape, length)
    for length, teachers in (("long", ("llama", "qwen3")), ("short", (SMOLLM2, "llama")))
    for teacher in teachers
    for shape in ("pruned", "fresh")
)
TINY_SETTINGS = (Setting("llama", "pruned", "long"), Setting("llama", "fresh", "short"))


@dataclass(frozen=True)
class World:
    """A teacher with its text and signals, and what its students start from.

    Attributes:
        loaded: The teacher.
        train: Training text, in the teacher's ids.
        validation: Validation text.
        cache: Signals of both.
        vocabulary: From the teacher's ids to the students'.
        pruned: The teacher without every second layer.
    """

    loaded: LoadedTeacher
    train: Sequences
    validation: Sequences
    cache: TeacherCache
    vocabulary: VocabularyMap
    pruned: Any

    def student(self, shape: str, seed: int) -> Any:
        """A new student of this shape, float32."""
        if shape == "pruned":
            return copy.deepcopy(self.pruned)
        from transformers import AutoModelForCausalLM

        config = copy.deepcopy(self.pruned.config)
        # A third of the key/value heads, at least one, and as wide as its heads.
        heads = max(1, round(config.num_key_value_heads / 3))
        per_group = config.num_attention_heads // config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        config.num_key_value_heads, config.num_attention_heads = heads, heads * per_group
        config.hidden_size, config.head_dim = heads * per_group * size, size
        config.intermediate_size = 2 * config.hidden_size
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()


def tiny_teacher(family: str, steps: int, train_tokens: int, folder: Path) -> LoadedTeacher:
    """A tiny teacher, trained on the benchmark's text; ``folder`` keeps it."""
    from tests.tiny_models import tiny_model

    if not folder.is_dir():
        with tempfile.TemporaryDirectory() as raw:
            path = tiny_model(family, Path(raw) / "model", layers=4, hidden=TINY_WIDTHS[family])
            loaded = load_teacher(HuggingFaceTeacher(name=str(path)), "cpu", torch.float32)
        text, _ = material.corpus(loaded, TINY_LENGTH, train_tokens, TINY_LENGTH)
        loss = train_teacher(loaded.model, text, steps)
        sys.stderr.write(f"tiny {family}: cross-entropy {loss:.3f} nats per token after {steps} steps\n")
        save_model(loaded.model, loaded.tokenizer, folder)
    return load_teacher(HuggingFaceTeacher(name=str(folder)), "cpu", torch.float32)


def train_teacher(model: Any, text: Sequences, steps: int) -> float:
    """Train a model in place by cross-entropy with AdamW; the mean loss of the last steps, nats per token."""
    model.requires_grad_(requires_grad=True).train()
    with torch.no_grad():
        # Tests want predictions far from uniform; training wants to begin near them.
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=TEACHER_RATE, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(1)
    losses: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = TEACHER_RATE * min(1.0, (step + 1) / 50) * (1 - step / steps)
        rows = torch.randint(len(text), (TEACHER_BATCH,), generator=generator)
        logits = model(input_ids=text.ids[rows], use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), text.targets[rows].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.eval()
    return statistics.mean(losses[-20:])


def make_world(name: str, size: Size, folder: Path) -> World:
    """A teacher, its text, and its signals; ``folder`` keeps teachers and signals."""
    length = SMOLLM2_LENGTH if name == SMOLLM2 else TINY_LENGTH
    steps = size.smollm2 if name == SMOLLM2 else max(size.long, size.short)
    tokens = steps * BATCH * length
    # Of another size they are others.
    kept = folder / f"{name}-{size.teacher_steps}"
    kept.mkdir(exist_ok=True)
    if name == SMOLLM2:
        loaded = material.teacher(torch.float32)
    else:
        loaded = tiny_teacher(name, size.teacher_steps, tokens, kept / "teacher")
    texts = material.corpus(loaded, length, tokens, size.validation_tokens)
    layers = max(1, int(loaded.model.config.num_hidden_layers) // 2)
    pruned, vocabulary = material.student(loaded, layers, *texts)
    cache = captured(LocalTeacher(loaded), texts, kept / "cache")
    return World(loaded, *texts, cache, vocabulary, pruned)


def captured(teacher: LocalTeacher, texts: Sequence[Sequences], folder: Path) -> TeacherCache:
    """The cache of some texts, by the default codec; what it holds already is not captured again."""
    identity = CacheIdentity(
        teacher_digest=teacher.identity["teacher"],
        tokenizer_digest=teacher.identity["tokenizer"],
        vocabulary_size=teacher.vocabulary.size,
        temperature=1.0,
        codec=ThresholdCodec(),
        seed=0,
        dtype=teacher.dtype,
    )
    writer = CacheWriter.open(folder, identity)
    for text in texts:
        wanted = [index for index, digest in enumerate(text.digests) if digest not in writer]
        for start in range(0, len(wanted), 32):
            for index, scores in teacher.score(text, wanted[start : start + 32]):
                writer.add(text.digests[index], scores)
    writer.flush()
    return TeacherCache.open(folder)


def trained(world: World, setting: Setting, size: Size, rate: int | None, seed: int) -> dict[str, Any]:
    """One run of the product's training loop.

    Args:
        world: The teacher and its text.
        setting: Shape and length.
        size: Sizes.
        rate: Power of two of the rate; None is ``auto``.
        seed: Of order and random weights.

    Returns:
        The KL of the weights that it ends with (None where it diverged) and at the start (None where the student was broken
        as it began), nats per token, the rate, CPU seconds, and of ``auto`` how it was chosen.
    """
    rows = setting.steps(size) * BATCH
    text = world.train.take(rows)
    config = DistillConfig(
        batch_tokens=BATCH * text.length,
        learning_rate="auto" if rate is None else rate_of(rate),
        epochs=-(-rows // len(text)),
        evaluate_every=10**9,
        checkpoint_seconds=1e9,
    )
    marks: dict[str, float] = {}
    chosen: dict[str, Any] = {}
    start: list[float] = []

    def event(**values: Any) -> None:
        kind = values.get("event")
        if kind == "validation" and not start:
            start.append(values["kl"])
        if kind in ("validation", "learning_rate"):
            marks.setdefault(kind, time.process_time())
        if kind == "learning_rate":
            chosen.update({key: value for key, value in values.items() if key != "event"})

    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = Training(
            title=setting.name,
            model=world.student(setting.shape, seed),
            config=config,
            train=BatchSource(text, world.vocabulary, world.cache),
            validation=BatchSource(world.validation, world.vocabulary, world.cache),
            distill=True,
            folder=Path(folder),
            seed=seed,
            device=torch.device("cpu"),
            used=world.vocabulary.student_used,
            progress=Progress(quiet=True),
            event=event,
        )
        try:
            kl = run.run().best_kl
        except TrainingDiverged:
            kl = None
    ended = time.process_time()
    found: dict[str, Any] = {
        "kl": kl,
        "start_kl": start[0] if start else None,
        "hidden_size": int(run.model.config.hidden_size),
        "learning_rate": run.chosen.rate if run.chosen else None,
        "cpu_seconds": ended - begun,
    }
    if rate is None:
        share = 0.0
        if chosen.get("learning_rate_from") == "sweep":
            share = (marks["learning_rate"] - marks["validation"]) / (ended - marks["learning_rate"])
        found |= {"auto": chosen, "cost_share_cpu": share}
    return found


def rate_of(power: int) -> float:
    """A rate of the full sweep."""
    return float(UNIT * 2.0**power)


def means(runs: Mapping[int, Mapping[int, float | None]]) -> dict[int, float]:
    """Mean KL over seeds by power of the rate; infinite where one diverged."""
    return {
        power: statistics.mean(math.inf if kl is None else kl for kl in kls.values()) for power, kls in runs.items()
    }


def next_rates(centre: int, runs: Mapping[int, Mapping[int, float | None]], rates: int) -> list[int]:
    """Powers of two whose rates are to be trained now: those around the centre, then past the end where the best is.

    Args:
        centre: The power nearest to the table's rate.
        runs: KL by power and seed, of the powers that are finished.
        rates: How many around the centre.
    """
    first = [centre + offset - rates // 2 for offset in range(rates)]
    missing = [power for power in first if power not in runs]
    if missing:
        return missing
    if len(runs) >= rates + MORE_RATES:
        return []
    by_power = means(runs)
    best = min(by_power, key=lambda power: (by_power[power], power))
    if best == max(runs):
        return [best + 1]
    return [best - 1] if best == min(runs) else []


def compared(auto: Mapping[int, float | None], runs: Mapping[int, Mapping[int, float | None]]) -> dict[str, Any]:
    """`auto` against the best rate of a full sweep, paired by seed.

    Args:
        auto: KL by seed.
        runs: KL by power of the rate and seed.
    """
    by_power = means(runs)
    best = min(by_power, key=lambda power: (by_power[power], power))
    ratios = [kl / runs[best][seed] if kl is not None else None for seed, kl in auto.items()]  # type: ignore[operator]
    finite = [ratio for ratio in ratios if ratio is not None]
    whole = len(finite) == len(ratios)
    return {
        "best_rate": rate_of(best),
        "best_at_an_end": best in (min(runs), max(runs)),
        "over_best": statistics.mean(finite) if whole else None,
        "over_best_interval": report.interval(finite) if whole else None,
        "over_best_by_seed": ratios,
        "kl_by_rate": {f"{rate_of(power):.3g}": list(kls.values()) for power, kls in sorted(runs.items())},
        "kl_auto": list(auto.values()),
    }


def figures_of(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The figures over all finished settings. A setting in which ``auto`` diverged is the worst, and has no ratio."""
    if not settings:
        return {"settings": 0}
    worst = max(settings, key=lambda name: or_infinite(settings[name]["over_best"]))
    lower = [found["over_best_interval"][0] for found in settings.values() if found["over_best_interval"]]
    return {
        "worst_over_best": settings[worst]["over_best"],
        "worst_over_best_interval": settings[worst]["over_best_interval"],
        "worst_setting": worst,
        "largest_lower_end": max(lower) if lower else None,
        "cost_share": max(found["cost_share"] for found in settings.values()),
        "cost_share_cpu": max(found["cost_share_cpu"] for found in settings.values()),
        "swept": sum(found["from"] == "sweep" for found in settings.values()),
        "settings": len(settings),
    }


def or_infinite(value: float | None) -> float:
    """A KL; infinite where the training diverged."""
    return math.inf if value is None else value


class Results(report.Kept):
    """Finished trainings by setting, rate and seed, in a file."""

    @staticmethod
    def key(setting: Setting, rate: int | None, seed: int) -> str:
        """What a cell is called."""
        return f"{setting.name}/{AUTO if rate is None else rate}/{seed}"

    def finished(self, setting: Setting, seeds: Sequence[int]) -> dict[int, dict[int, float | None]]:
        """KL by power of the rate and seed, of the rates that all seeds have."""
        found: dict[int, dict[int, float | None]] = {}
        for key, cell in self.cells.items():
            name, power, seed = key.split("/")
            if name == setting.name and power != AUTO and int(seed) in seeds:
                found.setdefault(int(power), {})[int(seed)] = cell["kl"]
        return {power: dict(sorted(kls.items())) for power, kls in found.items() if len(kls) == len(seeds)}

    def autos(self, setting: Setting, seeds: Sequence[int]) -> dict[int, dict[str, Any]]:
        """The runs of ``auto`` by seed."""
        keys = {seed: self.key(setting, None, seed) for seed in seeds}
        return {seed: self.cells[key] for seed, key in keys.items() if key in self.cells}


def centre_of(auto: Mapping[str, Any]) -> int:
    """The power of two nearest to the table's rate, from a run of ``auto``."""
    if auto["start_kl"] is None:
        return 0  # broken as it begins: every rate shows it
    return round(math.log2(table_rate(auto["hidden_size"], auto["start_kl"]) / UNIT))


def summary(results: Results, setting: Setting, size: Size) -> dict[str, Any] | None:
    """What a setting came to; None where runs are missing."""
    autos = results.autos(setting, size.seeds)
    runs = results.finished(setting, size.seeds)
    if len(autos) < len(size.seeds) or next_rates(centre_of(autos[size.seeds[0]]), runs, size.rates):
        return None
    chosen = [auto["auto"] for auto in autos.values()]
    return compared({seed: auto["kl"] for seed, auto in autos.items()}, runs) | {
        "steps": setting.steps(size),
        "start_kl": autos[size.seeds[0]]["start_kl"],
        "from": "sweep" if all(auto.get("learning_rate_from") == "sweep" for auto in chosen) else "table",
        "auto_rates": [auto.get("learning_rate") for auto in chosen],
        "trials": [auto.get("sweep") for auto in chosen],
        "sweep_steps": [auto.get("sweep_steps") for auto in chosen],
        "cost_share": max(auto.get("sweep_cost_share", 0.0) for auto in chosen),
        "cost_share_cpu": max(auto["cost_share_cpu"] for auto in autos.values()),
    }


def main() -> None:
    """Train what is not trained yet, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--quick", action="store_true")
    kind.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help="folder that keeps teachers, signals and finished trainings")
    parser.add_argument("--only", default="", help="settings whose name contains this, such as 'long llama'")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no training after so many minutes")
    parser.add_argument("--jobs", type=int, default=2, choices=(1, 2, 3), help="teachers at a time")
    options = parser.parse_args()
    name = "tiny" if options.tiny else "quick" if options.quick else "full"
    size = SIZES[name]
    settings = [found for found in (TINY_SETTINGS if options.tiny else SETTINGS) if options.only in found.name]
    if not settings:
        parser.error(
            f"--only {options.only!r}: no setting has that in its name; there are {[s.name for s in SETTINGS]}"
        )
    folder: Path = options.work or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.time() + 60 * options.minutes
    by_teacher: dict[str, list[Setting]] = {}
    for setting in settings:
        by_teacher.setdefault(setting.teacher, []).append(setting)
    threads = max(1, torch.get_num_threads() // options.jobs)
    calls = [partial(measure, some, size, name, folder, deadline) for some in by_teacher.values()]
    try:
        if options.jobs == 1:
            parts = [call() for call in calls]
        else:
            parts = jobs.together(calls, options.jobs, partial(torch.set_num_threads, threads))
            for teacher in by_teacher:
                results_of(teacher, size, name, folder)  # so that this process tells what other code has made
    finally:
        if options.work is None:
            shutil.rmtree(folder)
    found = {setting: done for part in parts for setting, done in part.settings.items()}
    details = {"settings": found, "cells": {key: cell for part in parts for key, cell in part.cells.items()}}
    details |= {"size": asked_of(name, size), "jobs": options.jobs, "threads_per_job": threads}
    report.write(figures_of(found), details, options.json)


@dataclass(frozen=True)
class Part:
    """What one teacher's settings came to: the finished settings, and all trainings."""

    settings: dict[str, dict[str, Any]]
    cells: dict[str, dict[str, Any]]


def asked_of(name: str, size: Size) -> dict[str, Any]:
    """What results depend on."""
    return {"name": name, "batch": BATCH} | vars(size) | {"seeds": list(size.seeds)}


def results_of(teacher: str, size: Size, name: str, folder: Path) -> Results:
    """The finished trainings of one teacher's settings."""
    return Results(folder / f"results-{teacher}.json", asked_of(name, size))


def measure(settings: Sequence[Setting], size: Size, name: str, folder: Path, deadline: float) -> Part:
    """All trainings of one teacher's settings; none is begun after the deadline (seconds since the epoch)."""
    teacher = settings[0].teacher
    results = results_of(teacher, size, name, folder)
    world: World | None = None

    def train(setting: Setting, rate: int | None) -> bool:
        """All seeds of a rate; whether there was time for it."""
        nonlocal world
        for seed in size.seeds:
            key = results.key(setting, rate, seed)
            if key in results.cells:
                continue
            if time.time() > deadline:
                return False
            world = world or make_world(teacher, size, folder)
            cell = trained(world, setting, size, rate, seed)
            results.add(key, cell)
            said = "diverged" if cell["kl"] is None else f"{cell['kl']:.4f} nats per token"
            sys.stderr.write(
                f"{key}: {said}, rate {cell['learning_rate']:.2e}, {cell['cpu_seconds']:.1f} CPU seconds\n"
            )
        return True

    for setting in settings:
        going = train(setting, None)
        while going:
            runs = results.finished(setting, size.seeds)
            wanted = next_rates(centre_of(results.autos(setting, size.seeds)[size.seeds[0]]), runs, size.rates)
            going = bool(wanted) and all(train(setting, power) for power in wanted)
    done = {setting.name: summary(results, setting, size) for setting in settings}
    return Part({key: found for key, found in done.items() if found is not None}, results.cells)


if __name__ == "__main__":
    main()
