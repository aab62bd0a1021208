"""Evidence that a model was copied or distilled: rates under the null, power on copies, false accusations, marks, campaigns.

    .venv/bin/python -m benchmarks.guard [--quick] [--part NAME …] [--work FOLDER] [--student RUN --teacher FILE] \
        [--model FOLDER] [--mark-tokens N] [--plot FOLDER] --json FILE

Every part, and every long step of one, is kept in ``--work`` when it is done and not repeated there, so that an interrupted
benchmark goes on where it was. ``--part`` (or ``--only``) names parts that are run; the figures are those of all that are done.
What was not measured is named in ``left_out`` and has no figure. ``--student`` is the quickstart's run, ``--teacher`` its
teacher's file.

- ``null`` (point 1): small models, trained on texts that they share wholly, by half or not at all. The owner's labels of
  units, order of training and key are drawn again and again, while the suspects are fixed. ``nulls`` draws in all;
  ``null_excess_p`` is the least of the one-sided binomial p-values that a rate at 0.05 or at 0.001 is above nominal;
  ``null_pairs_worst_log10_p`` is of all ordered pairs.
- ``lineage`` (2): ``lineage_worst_log10_p``, the weakest of tunes, 8 to 2 bits, widths, depth and merges, of small models
  and of ``--model``; ``lineage_student_log10_p``: a run's student against its teacher's file.
- ``shuffled`` (2): copies whose units are shuffled, streams rotated and units rescaled. ``shuffled_exact_told``: how many
  the exact test still tells; ``shuffled_tpr``: share that stand above all their controls (at least 39: a false positive
  rate of 1 in 40).
- ``ask`` (3): ``ask_trials`` of independent suspects, ``ask_false_accusations``, and ``ask_tunes_found`` over tunes of four
  strengths, each apart in the details. Trials share models: ``ask_models``.
- ``mark`` (4), on ``--model`` (the student's): a copy of it learns from ``mark_learnt_tokens`` tokens that it sampled under a
  key, and 10,000 tokens that the copy samples are tested. ``mark_log10_p`` at fraction 1.0; the curves over fractions and over
  clean tokens afterwards are in the details. ``mark_kl``, ``mark_agreement``: what the mark costs.
- ``judged`` (4): answers to questions of held-out chats, sampled with and without the mark, judged by the teacher's nats per
  byte. ``mark_judged``: share of questions whose marked answer is better (0.5: no difference); ``mark_judged_nats_per_byte``:
  mean of marked minus unmarked.
- ``coins`` (4), on ``--model``: ``coins_log10_p`` with 600 coins that are a tenth of a tune.
- ``speed`` (4): ``mark_serving_speed``, tokens per second of a server that marks over those of one that does not, in pairs
  that take turns; ``mark_serving_whole_answers``: the same of whole answers, with what comes before the first token.
- ``order`` (5): small models trained once over many segments in a secret order, and students in fresh weights that learn
  from their predictions on other text: ``order_owner_log10_p``, ``order_student_log10_p`` (two teachers each), and strangers.
- ``campaigns`` (6): the figures of :mod:`benchmarks.guard_campaigns`.
- ``default_runs`` (1): whole runs without ``seed:``, all ordered pairs, by units and by order of training.

Without ``--model``, ``mark``, ``judged`` and ``coins`` run on a small model, whose figures are named ``toy_…``: they show that
the program works and no more.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import report
from benchmarks.guard_mark import MONTH, coins, judged, mark, speed
from benchmarks.guard_models import (
    LENGTH,
    NotMeasured,
    Result,
    Setting,
    batches,
    keep,
    library_text,
    small_models,
    train,
    tuned,
    with_model,
)
from stillroom.core import files
from stillroom.core.errors import Interrupted, StillroomError
from stillroom.core.marks import MarkKey
from stillroom.core.secret import Secret
from stillroom.guard.ask import decide, greedy, leave_one_out_margin, lengths_of, rarities
from stillroom.guard.lineage import unit_order
from stillroom.guard.lineage_examine import LEVEL, open_owner
from stillroom.guard.lineage_match import activity_of, default_text, matched_share, open_model
from stillroom.guard.lineage_order import places_of, sequence_losses, texts_of, training_order
from stillroom.guard.lineage_weights import Block, StoredUnits, open_units
from stillroom.guard.marks import mark_score, probabilities, weights_against

# 1. The null.


def held(path: Path) -> StoredUnits:
    """A model's units, in memory."""
    stored = open_units(path)
    return StoredUnits(path, tuple(relabelled(block, np.arange(block.units)) for block in stored.blocks))


def relabelled(block: Block, order: np.ndarray) -> Block:
    """A block whose units stand in another order."""
    rows = {part: block.rows(part)[order] for part in block.shared}

    def reader(part: str) -> Callable[[slice | None], Any]:
        whole = np.ascontiguousarray(rows[part].T) if part == "down" else rows[part]
        return lambda chosen: whole if chosen is None else whole[chosen]

    return Block(block.name, block.units, block.width, {part: reader(part) for part in block.shared})


def binomial_excess(hits: int, trials: int, rate: float) -> float:
    """P(at least this many hits) where each has this rate."""
    from scipy.stats import binom  # type: ignore[import-untyped,unused-ignore]

    return float(binom.sf(hits - 1, trials, rate))


def null(setting: Setting) -> Result:
    """Rates under redrawn labels, orders and keys."""
    models = small_models(setting, setting.pick(24, 3))
    rng = np.random.default_rng(11)
    draws = setting.pick(1200, 12)
    units = [held(path) for path in models]
    pairs = list(itertools.permutations(range(len(models)), 2))
    straight = {pair: unit_order(units[pair[0]], units[pair[1]]).log10_p for pair in pairs}
    found: dict[str, list[float]] = {"labels": [], "order": [], "key": []}
    for number in range(draws):
        suspect, owner = pairs[number % len(pairs)]
        blocks = tuple(relabelled(block, rng.permutation(block.units)) for block in units[owner].blocks)
        told = unit_order(units[suspect], StoredUnits(models[owner], blocks)).log10_p
        found["labels"].append(0.0 if told is None else told)
    opened = [open_model(path) for path in models]
    text = library_text(60_000)
    segments = [[text[start : start + 150]] for start in range(0, setting.pick(60_000, 9_000), 150)]
    losses = [sequence_losses(loaded, segments) for loaded in opened]
    favours = [probabilities(loaded, text, setting.pick(10_000, 500)) for loaded in opened]
    for number in range(draws):
        suspect, owner = pairs[number % len(pairs)]
        secret = Secret(rng.bytes(32))
        places = places_of(secret, len(segments), 1)
        found["order"].append(training_order(places, losses[suspect], losses[owner]).log10_p)
        weights = weights_against(favours[suspect], favours[owner])
        found["key"].append(mark_score(weights, MarkKey("null", secret), MONTH)[0])
    rates = {
        f"{kind} at {level}": {
            "hits": (hits := sum(value <= math.log10(level) for value in values)),
            "draws": len(values),
            "excess_p": binomial_excess(hits, len(values), level),
        }
        for kind, values in found.items()
        for level in (0.05, 0.001)
    }
    known = [value for value in straight.values() if value is not None]
    return {
        "nulls": 3 * draws,
        "null_models": len(models),
        "null_excess_p": min(entry["excess_p"] for entry in rates.values()),
        "null_pairs_worst_log10_p": min(known),
    }, {"rates": rates, "pairs": {f"{one} of {other}": value for (one, other), value in straight.items()}}


def default_runs(setting: Setting) -> Result:
    """Whole runs with default settings (no ``seed:``), tested against each other: order of units, of training, and key."""
    from stillroom.pipeline import run
    from stillroom.runs.run import Run
    from tests.tiny_models import tiny_model

    count = setting.pick(4, 2)
    folder = setting.work / "runs"
    teacher = folder / "teacher"
    if not teacher.exists():
        with files.replacing(teacher) as beside:
            tiny_model("llama", beside, layers=2)
    (folder / "text").mkdir(parents=True, exist_ok=True)
    whole = library_text(60_000)
    for number in range(40):
        (folder / "text" / f"{number:02}.txt").write_text(whole[1500 * number : 1500 * (number + 1)], encoding="utf-8")
    own = {"kind": "own", "decided_by": "Stillroom's benchmarks", "decided_at": "2026-11-24T00:00:00Z"}
    recipe: dict[str, Any] = {
        "name": "small",
        "compute": {"device": "cpu", "threads": 1},
        "corpus": {
            "sources": [{"kind": "text", "path": str((folder / "text").absolute()), "licence": "PSF-2.0"}],
            "sequence_length": 64,
            "train_tokens": setting.pick(16_000, 3_200),
            "validation_tokens": 128,
            "heldout_tokens": 512,
        },
        "teacher": {"kind": "huggingface", "name": str(teacher.absolute())},
        "student": {"kind": "fresh", "config": {"num_hidden_layers": 2}},
        "distill": {"batch_tokens": 256, "learning_rate": 1e-3, "precision": "float32"},
        "baseline": False,
        "terms": {"decisions": [own | {"subject": "teacher"}, own | {"subject": "student"}]},
    }
    runs: list[Run] = [run(recipe, folder / str(number), until="distill", quiet=True) for number in range(count)]
    models = [made.path / "distill" / "model" for made in runs]
    texts = texts_of(runs[0])
    losses = [sequence_losses(open_model(model), texts) for model in models]
    base = [sequence_losses(open_model(made.path / "shrink" / "model"), texts) for made in runs]
    rows: dict[str, dict[str, float]] = {}
    for one, other in itertools.permutations(range(count), 2):
        randomness = runs[other].randomness
        assert isinstance(randomness, Secret), "a default run draws a secret"
        places = places_of(randomness, len(texts), runs[other].recipe.distill.epochs)
        units = unit_order(models[one], models[other]).log10_p
        rows[f"{one} of {other}"] = {
            "units": 0.0 if units is None else units,
            "order": training_order(places, losses[one], base[other]).log10_p,
        }
    worst = min(min(row.values()) for row in rows.values())
    tests = 2 * len(rows)
    return {
        "null_default_runs": count,
        "null_default_runs_tests": tests,
        "null_default_runs_worst_log10_p": worst,
        "null_default_runs_worst_corrected_log10_p": min(0.0, worst + math.log10(tests)),
    }, {"pairs": rows, "commitments": [made.commitment for made in runs]}


# 2. Lineage.


def copies(source: Path, other: Path | None, folder: Path, steps: int) -> dict[str, Path]:
    """Changed copies of a model."""
    made = {"tune": tuned(source, folder / "tune", steps)}
    loaded = open_model(source)
    for bits in (8, 6, 4, 3, 2):
        model = copy.deepcopy(loaded.model)
        for weight in model.parameters():
            if weight.dim() == 2:
                top = 2 ** (bits - 1) - 1
                scale = weight.data.abs().amax(1, keepdim=True).clamp_min(1e-9) / top
                weight.data = (weight.data / scale).round().clamp(-top, top) * scale
        made[f"{bits} bits"] = keep(loaded, model, folder / f"bits{bits}")
    for share in (0.75, 0.5, 0.25):
        model = copy.deepcopy(loaded.model)
        count = round(model.config.intermediate_size * share)
        for layer in model.model.layers:
            norms = layer.mlp.gate_proj.weight.norm(dim=1) * layer.mlp.down_proj.weight.norm(dim=0)
            units = norms.topk(count).indices.sort().values
            for name in ("gate_proj", "up_proj"):
                getattr(layer.mlp, name).weight.data = getattr(layer.mlp, name).weight.data[units].clone()
            layer.mlp.down_proj.weight.data = layer.mlp.down_proj.weight.data[:, units].clone()
        model.config.intermediate_size = count
        made[f"width {share}"] = keep(loaded, model, folder / f"width{share}")
    model = copy.deepcopy(loaded.model)
    model.model.layers = model.model.layers[::2]
    model.config.num_hidden_layers = len(model.model.layers)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[::2]
    made["depth 0.5"] = keep(loaded, model, folder / "depth")
    if other is not None:
        stranger = dict(open_model(other).model.named_parameters())
        for share in (0.9, 0.5):
            model = copy.deepcopy(loaded.model)
            for name, weight in model.named_parameters():
                weight.data = share * weight.data + (1 - share) * stranger[name].data
            made[f"merge {share}"] = keep(loaded, model, folder / f"merge{share}")
    return made


def lineage(setting: Setting) -> Result:
    """The exact test on changed copies."""
    one, other = small_models(setting, 2)
    steps = setting.pick(200, 2)
    found: dict[str, Any] = {}
    sources = [("small", one, other)] + ([("model", setting.model, None)] if setting.model else [])
    for label, source, stranger in sources:
        for name, path in copies(source, stranger, setting.work / "copies" / label, steps).items():
            found[f"{label}: {name}"] = unit_order(path, source).log10_p
    figures: dict[str, Any] = {}
    if setting.student is not None and setting.teacher is not None:
        told = unit_order(open_owner(setting.student).model, setting.teacher).log10_p
        figures["lineage_student_log10_p"] = found["student against its teacher"] = told
    figures["lineage_worst_log10_p"] = max(0.0 if value is None else value for value in found.values())
    return figures, found


def disguised(source: Path, target: Path, seed: int) -> Path:
    """A Llama that computes the same, with its units shuffled and rescaled and its stream rotated."""
    loaded = open_model(source)
    model: Any = loaded.model
    generator = torch.Generator().manual_seed(seed)
    width = model.config.hidden_size
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0].float()

    def absorb(norm: Any, *readers: Any) -> None:
        for reader in readers:
            reader.weight.data = (reader.weight.data * norm.weight.data) @ turn
        norm.weight.data.fill_(1.0)

    inner = model.model
    inner.embed_tokens.weight.data = inner.embed_tokens.weight.data @ turn
    for layer in inner.layers:
        attention, mlp = layer.self_attn, layer.mlp
        absorb(layer.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj)
        absorb(layer.post_attention_layernorm, mlp.gate_proj, mlp.up_proj)
        for writer in (attention.o_proj, mlp.down_proj):
            writer.weight.data = turn.T @ writer.weight.data
        order = torch.randperm(mlp.up_proj.weight.shape[0], generator=generator)
        scale = torch.exp(torch.randn(len(order), generator=generator))
        mlp.gate_proj.weight.data = mlp.gate_proj.weight.data[order]
        mlp.up_proj.weight.data = mlp.up_proj.weight.data[order] * scale[:, None]
        mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, order] / scale
    absorb(inner.norm, model.lm_head)
    return keep(loaded, model, target)


def shuffled(setting: Setting) -> Result:
    """Disguised copies against the exact test and the match."""
    models = small_models(setting, setting.pick(41, 3))
    words = setting.pick(2048, 128)
    text = default_text()
    activities = [activity_of(path, text, words) for path in models]
    rows: list[dict[str, float | None]] = []
    told = seen = 0
    sameness = []
    for number in range(setting.pick(40, 2)):
        path = disguised(models[number], setting.work / "disguised" / str(number), number)
        before, after = open_model(models[number]), open_model(path)
        ids = torch.tensor([list(range(5, 40))])
        with torch.no_grad():
            gap = before.model(input_ids=ids).logits - after.model(input_ids=ids).logits
        sameness.append(float(gap.abs().max()))
        share = matched_share(activity_of(path, text, words), activities[number])[0]
        controls = [
            matched_share(activity, activities[number])[0] for i, activity in enumerate(activities) if i != number
        ]
        exact = unit_order(path, models[number]).log10_p
        told += exact is not None and exact <= LEVEL
        seen += share > max(controls)
        rows.append({"exact_log10_p": exact, "share": share, "best_control": max(controls)})
    return {
        "shuffled_copies": len(rows),
        "shuffled_controls": len(models) - 1,
        "shuffled_exact_told": told,
        "shuffled_tpr": seen / len(rows),
    }, {"copies": rows, "largest_difference_of_logits": max(sameness)}


# 3. Asking.


TUNES = ((20, 1e-4), (20, 3e-4), (100, 1e-4), (100, 3e-4))
"""Steps and rate of each kind of tune, on another text. The models themselves were trained for 200 steps at 1e-3."""
ACCUSED = "more alike than all controls"


def ask(setting: Setting) -> Result:
    """False accusations of independent models, and tunes found.

    Every ordered pair of models is a trial, with 99 of the others as controls.
    """
    models = small_models(setting, setting.pick(104, 44))
    rng = np.random.default_rng(3)
    text = library_text(400_000).split()
    starts = rng.integers(0, len(text) - 12, setting.pick(400, 6))
    prompts = [" ".join(text[start : start + 12]) for start in starts]

    def answers_of(path: Path) -> list[str]:
        return list(greedy(open_model(path))(prompts))

    said = [setting.step("ask", f"answers of {path.name}", partial(answers_of, path)) for path in models]
    owners = setting.pick(len(models), 2)
    alike = [np.array([lengths_of(answers, said[owner]) for answers in said]) for owner in range(owners)]
    whole = [np.array([len(answer) for answer in answers]) for answers in said]

    def verdict(suspect: np.ndarray, owner: int, others: list[int]) -> str:
        controls, margin = alike[owner][others[:99]], None
        if setting.quick:  # too few models for 99 controls: a margin, from models that are no controls
            controls = alike[owner][others[:20]]
            margin = leave_one_out_margin(rarities(alike[owner][others[20:40]]).mean(axis=1))
        return decide(suspect, controls, whole[owner], margin).verdict

    def answers_of_tune(owner: int, steps: int, rate: float) -> list[str]:
        target = setting.work / "tunes" / f"{owner}-{steps}-{rate:g}"
        return answers_of(tuned(models[owner], target, steps, rate))

    independent: Counter[str] = Counter()
    for owner in range(owners):
        for suspect in range(len(models)):
            others = [int(model) for model in rng.permutation(len(models)) if model not in (owner, suspect)]
            if suspect != owner:
                independent[verdict(alike[owner][suspect], owner, others)] += 1
    tunes: dict[str, Counter[str]] = {}
    for steps, rate in ((1, 1e-4),) if setting.quick else TUNES:
        told = tunes[f"{steps} steps at {rate:g}"] = Counter()
        for owner in range(setting.pick(40, 2)):
            others = [int(model) for model in rng.permutation(len(models)) if model != owner]
            make = partial(answers_of_tune, owner, steps, rate)
            answers = setting.step("ask", f"answers of tune {owner}, {steps} steps at {rate:g}", make)
            told[verdict(lengths_of(answers, said[owner]), owner, others)] += 1
    found = {name: told[ACCUSED] / told.total() for name, told in tunes.items()}
    return {
        "ask_trials": independent.total(),
        "ask_models": len(models),
        "ask_false_accusations": independent[ACCUSED] / independent.total(),
        "ask_tunes": sum(told.total() for told in tunes.values()),
        "ask_tunes_found": sum(told[ACCUSED] for told in tunes.values()) / sum(told.total() for told in tunes.values()),
        "ask_tunes_found_of_the_strongest": found[list(found)[-1]],
    }, {"independent": independent, "tunes": tunes, "tunes_found": found}


# 5. The order of training.


def order(setting: Setting) -> Result:
    """Does the order of training pass into students in fresh weights?"""
    count = setting.pick(20_000, 80)
    rows = [setting.step("order", f"teacher {number}", partial(one_order, setting, number, count)) for number in (1, 2)]
    return {
        "order_segments": count,
        "order_owner_log10_p": [row["owner"] for row in rows],
        "order_student_log10_p": [row["student"] for row in rows],
        "order_stranger_log10_p": [row["stranger"] for row in rows],
    }, {"teachers": rows, "rate": ORDER_RATE}


ORDER_RATE = 3e-3
"""Learning rate of owners and students."""


def one_order(setting: Setting, number: int, count: int) -> dict[str, float]:
    """One owner, a student in fresh weights that learns from its predictions on other text, and a stranger."""
    from tests.tiny_models import tiny_model

    folder = setting.work / "order" / str(number)
    owner, student, stranger = (
        open_model(tiny_model("llama", folder / name, layers=2, seed=seed))
        for name, seed in (("owner", number), ("student", 100 + number), ("stranger", 200 + number))
    )
    untrained = copy.deepcopy(owner.model)
    text = library_text(count * 140 + 500_000)
    ids = owner.tokenizer.encode(text, add_special_tokens=False)
    segments = [ids[LENGTH * place : LENGTH * (place + 1)] for place in range(count)]
    rest = ids[LENGTH * count :]
    secret = Secret(bytes([number]) * 32)
    places = places_of(secret, count, 1)
    sequence = np.argsort(places)
    fed = [torch.tensor([segments[place] for place in part]) for part in np.array_split(sequence, -(-count // 8))]
    train(owner.model, fed, ORDER_RATE)
    train(student.model, batches(rest, count // 8, np.random.default_rng(number)), ORDER_RATE, owner.model)
    train(stranger.model, batches(rest, count // 32, np.random.default_rng(number)), ORDER_RATE)
    pieces = [[str(owner.tokenizer.decode(segment))] for segment in segments]
    reference = with_model(owner, untrained)
    base = sequence_losses(with_model(owner, stranger.model), pieces)
    results = {
        "owner": training_order(places, sequence_losses(owner, pieces), base),
        "student": training_order(places, sequence_losses(student, pieces), base),
        "stranger": training_order(places, base, sequence_losses(reference, pieces)),
    }
    return {name: told.log10_p for name, told in results.items()} | {
        f"{name}_spearman": told.spearman for name, told in results.items()
    }


# 6. Campaigns.


def campaigns(setting: Setting) -> Result:
    """The benchmark of campaigns, in a process of its own; without baselines that lack a kind of traffic, which it has too."""
    target = setting.work / "guard_campaigns.json"
    command = [sys.executable, "-m", "benchmarks.guard_campaigns", "--json", str(target)]
    for part in ("months", "large", "merge"):
        command += ["--part", part]
    command += ["--work", str(setting.work / "campaigns"), *(["--quick"] if setting.quick else [])]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        code = process.wait()
    finally:
        process.terminate()  # not killed, where this process is ended: it has a process of its own to end
        process.wait()
    if code:
        raise NotMeasured(f"benchmarks.guard_campaigns ended with {code}; standard error has its words")
    told = json.loads(target.read_text(encoding="utf-8"))
    earlier = told["machine"].get("earlier", [])
    return told["figures"], {"see": "benchmarks.guard_campaigns", "earlier": earlier} | told["details"]


# The curves.


def plot(figures: dict[str, Any], details: dict[str, Any], folder: Path) -> None:
    """The mark over fractions and over clean tokens, and detection by kind of campaign, as SVG; what was measured of it."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams |= {"svg.hashsalt": "stillroom", "svg.fonttype": "none", "font.size": 10}

    def written(figure: Any, name: str) -> None:
        figure.tight_layout()
        with files.replacing(folder / name) as beside:
            figure.savefig(beside, format="svg", metadata={"Date": None})
        plt.close(figure)

    folder.mkdir(parents=True, exist_ok=True)
    if "mark" in details:
        figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
        curves = (
            ("log10_p_by_fraction", "share of the learnt tokens that was marked"),
            ("log10_p_after_clean_tokens_as_a_share_of_learnt", "clean tokens afterwards, over learnt tokens"),
        )
        for axes, (name, label) in zip(panels, curves, strict=True):
            points = {float(share): value for share, value in details["mark"][name].items()}
            if name != "log10_p_by_fraction":
                points[0.0] = details["mark"]["log10_p_by_fraction"]["1.0"]
            axes.plot(*zip(*sorted(points.items()), strict=True), marker="o", color="#0b6e4f")
            axes.axhline(-6, color="#8a4f00", linewidth=0.8, linestyle="--")
            axes.set(xlabel=label)
            axes.grid(visible=True, linewidth=0.3)
        panels[0].set(ylabel="log10 p of 10,000 sampled tokens")
        written(figure, "guard-mark.svg")
    kinds = [name.removeprefix("found_") for name in figures if name.startswith("found_")]
    if kinds:
        figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
        found = [figures[f"found_{kind}"] for kind in kinds]
        panels[0].barh(kinds, found, color="#0b6e4f")
        panels[0].set(xlabel=f"share of {figures['months']} months in which it was found", xlim=(0, 1.05))
        delays = [figures[f"delay_{kind}"] or 0 for kind in kinds]
        panels[1].barh(kinds, delays, color="#3b5bdb")
        panels[1].set(xlabel="median days from its first request to the report")
        for place, kind in enumerate(kinds):
            if figures[f"delay_{kind}"] is None:
                panels[1].text(0.1, place, "never found", va="center")
        panels[0].invert_yaxis()
        written(figure, "guard-campaigns.svg")


PARTS: dict[str, Callable[[Setting], Result]] = {
    "null": null,
    "default_runs": default_runs,
    "lineage": lineage,
    "shuffled": shuffled,
    "ask": ask,
    "mark": mark,
    "judged": judged,
    "coins": coins,
    "order": order,
    "campaigns": campaigns,
    "speed": speed,
}


def main() -> None:
    """Run the benchmark, or go on with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it works, not what it measures")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this one; may be repeated")
    parser.add_argument("--only", default="", help="parts, by commas: the same as several --part")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/guard"), help="where results are kept")
    parser.add_argument(
        "--model", type=Path, help="Hugging Face folder that is marked and copied (without it, that of --student)"
    )
    parser.add_argument("--mark-tokens", type=int, help="tokens that a copy learns from in `mark` (100,000)")
    parser.add_argument("--student", type=Path, help="a run or model, tested against --teacher")
    parser.add_argument("--teacher", type=Path, help="the teacher's file or folder")
    parser.add_argument("--plot", type=Path, help="folder for the curves, as SVG")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    wanted = [*(options.part or []), *(name for name in options.only.split(",") if name)] or list(PARTS)
    if unknown := sorted(set(wanted) - set(PARTS)):
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if (options.student is None) != (options.teacher is None):
        parser.error("--student and --teacher go together")
    for given in (options.model, options.student, options.teacher):
        if given is not None and not given.exists():
            parser.error(f"{given}: there is no such file or folder")
    model = options.model
    if model is None and options.student is not None:
        model = open_owner(options.student).model
    folder = options.work / ("quick" if options.quick else "full")
    folder.mkdir(parents=True, exist_ok=True)
    kept = report.Kept(folder / "parts.json", {"quick": options.quick})
    setting = Setting(folder, options.quick, model, options.student, options.teacher, options.mark_tokens, kept)
    figures: dict[str, Any] = {"quick": options.quick}
    details: dict[str, Any] = {"left_out": {}}
    for name, part in PARTS.items():
        key = setting.key(name)
        if key not in kept.cells and name in wanted:
            sys.stderr.write(f"{name} …\n")
            try:
                own, more = part(setting)
            except Interrupted:
                raise
            except (NotMeasured, StillroomError) as error:
                sys.stderr.write(f"{name} is left out: {error}\n")
                details["left_out"][name] = str(error)
                continue
            kept.add(key, {"figures": own, "details": more})
        if key not in kept.cells:
            details["left_out"][name] = "not run (--part)"
            continue
        figures |= kept.cells[key]["figures"]
        details[name] = kept.cells[key]["details"]
    if setting.student is None:
        details["left_out"]["lineage_student_log10_p"] = "no --student and --teacher were given"
    if setting.model is None:
        details["left_out"]["mark_log10_p, mark_judged, coins_log10_p"] = "no --model was given"
    report.write(figures, details, options.json)
    if options.plot is not None:
        plot(figures, details, options.plot)


if __name__ == "__main__":
    main()
