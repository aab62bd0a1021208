"""Evidence that a model was copied or distilled: rates under the null, power on copies, false accusations, marks, campaigns.

    .venv/bin/python -m benchmarks.guard [--quick] [--only NAME,NAME] [--work FOLDER] [--model FOLDER] \
        [--student RUN --teacher FILE] --json FILE

Every piece writes its result to ``--work`` when it is done, and is not repeated there, so that the benchmark can be
interrupted and goes on where it was. ``--only`` names pieces; the figures are those of all pieces that are done. What was
not measured is named in ``left_out`` and has no figure.

- ``null`` (point 1): small models, trained on texts that they share wholly, by half or not at all. The owner's labels of
  units, order of training and key are drawn again and again, while the suspects are fixed. ``nulls`` draws in all;
  ``null_excess_p`` is the least of the one-sided binomial p-values that a rate at 0.05 or at 0.001 is above nominal;
  ``null_pairs_worst_log10_p`` is of all ordered pairs.
- ``lineage`` (2): ``lineage_worst_log10_p``, the weakest of tunes, 8 to 2 bits, widths, depth and merges, of small models
  and of ``--model``; ``lineage_student_log10_p``: a run's student against its teacher's file.
- ``shuffled`` (2): copies whose units are shuffled, streams rotated and units rescaled. ``shuffled_exact_told``: how many
  the exact test still tells; ``shuffled_tpr``: share that stand above all their controls (at least 39: a false positive
  rate of 1 in 40).
- ``ask`` (3): ``ask_trials`` of independent suspects, ``ask_false_accusations``, and ``ask_tunes_found``. Trials share
  models: ``ask_models``.
- ``mark`` (4), on ``--model``: a copy of it learns from tokens that it sampled under a key, and 10,000 tokens that the copy
  samples are tested. ``mark_log10_p`` at fraction 1.0; the curve over fractions and clean tokens is in the details.
  ``mark_kl``, ``mark_agreement``: what the mark costs.
- ``coins`` (4), on ``--model``: ``coins_log10_p`` with 600 coins that are a tenth of a tune.
- ``order`` (5): small models trained once over many segments in a secret order, and students in fresh weights that learn
  from their predictions on other text: ``order_owner_log10_p``, ``order_student_log10_p`` (two teachers each).
- ``campaigns`` (6): the figures of :mod:`benchmarks.guard_campaigns`.

Without ``--model``, ``mark`` and ``coins`` run on a small model, whose figures are named ``toy_…``: they show that the
program works and no more.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import math
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks import report
from stillroom.core import files
from stillroom.core.marks import MarkKey, word_biases
from stillroom.core.secret import Secret
from stillroom.guard.ask import decide, greedy, leave_one_out_margin, same_start
from stillroom.guard.coins import Twin, coins_test, preferences, served
from stillroom.guard.lineage import unit_order
from stillroom.guard.lineage_examine import LEVEL, open_owner
from stillroom.guard.lineage_match import activity_of, default_text, matched_share, open_model
from stillroom.guard.lineage_order import places_of, sequence_losses, training_order
from stillroom.guard.lineage_weights import Block, StoredUnits, open_units
from stillroom.guard.marks import frequencies, mark_score, probabilities, weights_against, words_of

if TYPE_CHECKING:
    from stillroom.models.load import LoadedTeacher

MONTH = "2026-01"
LENGTH = 64
"""Tokens of a training sequence."""
LEFT_OUT = {
    "null_default_runs": "two whole runs with default settings; a run of the pipeline each",
    "mark_judged": "judged answers of the marked and the unmarked server",
    "mark_serving_speed": "see benchmarks.serve, which does not mark yet",
}
Result = tuple[dict[str, Any], dict[str, Any]]


@dataclass(frozen=True)
class Setting:
    """What the pieces share."""

    work: Path
    quick: bool
    model: Path | None
    student: Path | None
    teacher: Path | None

    def pick(self, full: int, quick: int) -> int:
        """A size."""
        return quick if self.quick else full


# Small models.


@functools.cache
def library_text(size: int) -> str:
    """Characters of Python's own library, which is on every machine: more text than its documentation has."""
    found, total = [], 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        found.append(path.read_text(encoding="utf-8", errors="replace"))
        total += len(found[-1])
        if total >= size:
            break
    if total < size:
        raise SystemExit(f"Python's library here has only {total} characters of text; {size} are needed.")
    return "\n\n".join(found)[:size]


def batches(ids: list[int], steps: int, rng: np.random.Generator, size: int = 8) -> list[torch.Tensor]:
    """Random windows [size, LENGTH] of a text's tokens."""
    starts = rng.integers(0, len(ids) - LENGTH, size=(steps, size))
    return [torch.tensor([ids[start : start + LENGTH] for start in row]) for row in starts.tolist()]


def train(model: Any, fed: list[torch.Tensor], rate: float, teacher: Any = None) -> None:
    """Train on next tokens, or on a teacher's predictions."""
    model.requires_grad_(True)  # as opened, models are frozen
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    for ids in fed:
        logits = model(input_ids=ids, use_cache=False).logits
        if teacher is None:
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        else:
            with torch.no_grad():
                wanted = torch.log_softmax(teacher(input_ids=ids, use_cache=False).logits, -1)
            loss = torch.nn.functional.kl_div(
                torch.log_softmax(logits, -1).flatten(0, 1),
                wanted.flatten(0, 1),
                log_target=True,
                reduction="batchmean",
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()


def small_models(setting: Setting, count: int) -> list[Path]:
    """Independently drawn models, each trained on a window of text; thirds share all, half or none of it. Kept in ``work``."""
    from tests.tiny_models import tiny_model

    steps = setting.pick(600, 3)
    found = []
    for number in range(count):
        folder = setting.work / "models" / f"{number}-{steps}"
        done = folder.with_suffix(".done")
        if not done.exists():
            tiny_model("llama", folder, layers=2, seed=1000 + number, tied=False)
            loaded = open_model(folder)
            shift = (0, 100_000 * (number % 2), 200_000 * (number // 3 + 1))[number % 3]
            text = library_text(shift + 200_000)[shift : shift + 200_000]
            ids = loaded.tokenizer.encode(text, add_special_tokens=False)
            train(loaded.model, batches(ids, steps, np.random.default_rng(number)), 1e-3)
            loaded.model.save_pretrained(folder)
            done.touch()
        found.append(folder)
    return found


def tuned(source: Path, target: Path, steps: int, rate: float = 3e-4) -> Path:
    """A model trained further on another text."""
    loaded = open_model(source)
    ids = loaded.tokenizer.encode(default_text()[:200_000], add_special_tokens=False)
    train(loaded.model, batches(ids, steps, np.random.default_rng(7)), rate)
    return keep(loaded, loaded.model, target)


def keep(loaded: LoadedTeacher, model: Any, target: Path) -> Path:
    """Write a model and its tokenizer."""
    model.save_pretrained(target)
    loaded.tokenizer.save_pretrained(target)
    return target


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


def ask(setting: Setting) -> Result:
    """False accusations of independent models, and tunes found."""
    models = small_models(setting, setting.pick(104, 44))
    rng = np.random.default_rng(3)
    text = library_text(400_000).split()
    starts = rng.integers(0, len(text) - 12, setting.pick(400, 6))
    prompts = [" ".join(text[start : start + 12]) for start in starts]
    said = [list(greedy(open_model(path))(prompts)) for path in models]

    def agreed(one: list[str], owner: int) -> np.ndarray:
        return np.array([same_start(*pair) for pair in zip(one, said[owner], strict=True)])

    def verdict(suspect: list[str], owner: int, others: list[int]) -> str:
        if setting.quick:  # too few models for 99 controls: a margin, from models that are no controls
            fixed = np.array([agreed(said[model], owner) for model in others[20:40]])
            controls = np.array([agreed(said[model], owner) for model in others[:20]])
            return decide(agreed(suspect, owner), controls, leave_one_out_margin(fixed.mean(axis=1))).verdict
        return decide(agreed(suspect, owner), np.array([agreed(said[model], owner) for model in others[:99]])).verdict

    told = "more alike than all controls"
    accused: list[str] = []
    for trial in range(setting.pick(312, 10)):
        owner = trial % len(models)
        suspect, *others = (int(model) for model in rng.permutation(len(models)) if model != owner)
        accused.append(verdict(said[suspect], owner, others))
    tunes = []
    for owner in range(setting.pick(40, 2)):
        path = tuned(models[owner], setting.work / "tunes" / str(owner), setting.pick(100, 1))
        others = [int(model) for model in rng.permutation(len(models)) if model != owner]
        tunes.append(verdict(list(greedy(open_model(path))(prompts)), owner, others))
    return {
        "ask_trials": len(accused),
        "ask_models": len(models),
        "ask_false_accusations": accused.count(told) / len(accused),
        "ask_tunes_found": tunes.count(told) / len(tunes),
    }, {"independent": {name: accused.count(name) for name in set(accused)}, "tunes": tunes}


# 4. Marks and coins.


def sampled(
    loaded: LoadedTeacher, count: int, seed: int, biases: list[tuple[int, float]] | None = None
) -> torch.Tensor:
    """Tokens [rows, LENGTH] that a model samples at temperature 1, each row from a word of the documentation."""
    model: Any = loaded.model
    added = torch.zeros(model.get_output_embeddings().weight.shape[0])
    for token, bias in biases or []:
        added[token] = bias
    generator = torch.Generator().manual_seed(seed)
    first = torch.tensor(loaded.tokenizer.encode(default_text()[:200_000], add_special_tokens=False))
    rows = []
    for _ in range(-(-count // (16 * LENGTH))):
        ids = first[torch.randint(len(first), (16, 1), generator=generator)]
        fed, past = ids, None
        with torch.no_grad():
            for _ in range(LENGTH):
                out = model(input_ids=fed, past_key_values=past, use_cache=True)
                past = out.past_key_values
                fed = torch.multinomial(torch.softmax(out.logits[:, -1].float() + added, -1), 1, generator=generator)
                ids = torch.cat([ids, fed], 1)
        rows.append(ids[:, 1:])
    return torch.cat(rows)[: -(-count // LENGTH)]


def subject(setting: Setting) -> tuple[Path, str]:
    """The model that is marked, and the prefix of its figures."""
    if setting.model is not None:
        return setting.model, ""
    return small_models(setting, 1)[0], "toy_"


def mark(setting: Setting) -> Result:
    """A copy that learnt from marked tokens; fractions; clean tokens afterwards; the price."""
    path, prefix = subject(setting)
    loaded = open_model(path)
    key = MarkKey("benchmark", Secret(bytes(range(32))))
    biases = word_biases(key, sorted(words_of(loaded.tokenizer).items()), MONTH)
    count, asked = setting.pick(100_000, 2_048), setting.pick(10_000, 1_024)
    clean, marked = sampled(loaded, count, 1), sampled(loaded, count, 2, biases)
    reference = frequencies(loaded.tokenizer, spoken(loaded, asked, 3))
    curve, washed = {}, {}
    rng = np.random.default_rng(4)

    def score(model: Any) -> float:
        other = copy.copy(loaded)
        object.__setattr__(other, "model", model)
        said = frequencies(loaded.tokenizer, spoken(other, asked, 5))
        return mark_score(weights_against(said, reference), key, MONTH)[0]

    for fraction in (1.0, 0.3, 0.1, 0.03, 0.01, 0.0)[: setting.pick(6, 2)]:
        model = copy.deepcopy(loaded.model)
        chosen = torch.where(torch.tensor(rng.random(len(clean)) < fraction)[:, None], marked, clean)
        train(model, list(torch.split(chosen, 8)), 1e-4)
        curve[str(fraction)] = score(model)
        if fraction == 1.0:
            again = sampled(loaded, count, 6)
            for part in (0.25, 0.5, 1.0):
                after = copy.deepcopy(model)
                train(after, list(torch.split(again[: max(1, round(part * len(again)))], 8)), 1e-4)
                washed[str(part)] = score(after)
    gone, same = [], []
    added = torch.zeros(loaded.model.get_output_embeddings().weight.shape[0])
    for token, bias in biases:
        added[token] = bias
    for ids in torch.split(clean[: setting.pick(200, 8)], 8):
        with torch.no_grad():
            logits = loaded.model(input_ids=ids, use_cache=False).logits.float()
        one, two = torch.log_softmax(logits, -1), torch.log_softmax(logits + added, -1)
        gone.append(float((one.exp() * (one - two)).sum(-1).mean()))
        same.append(float((one.argmax(-1) == two.argmax(-1)).float().mean()))
    return {
        f"{prefix}mark_log10_p": curve["1.0"],
        f"{prefix}mark_tokens": asked,
        f"{prefix}mark_kl": float(np.mean(gone)),
        f"{prefix}mark_agreement": float(np.mean(same)),
    }, {"learnt_tokens": count, "log10_p_by_fraction": curve, "log10_p_after_clean_tokens_as_a_share_of_learnt": washed}


def spoken(loaded: LoadedTeacher, count: int, seed: int) -> str:
    """What a model samples, as text."""
    return "\n".join(str(loaded.tokenizer.decode(row)) for row in sampled(loaded, count, seed))


def coins(setting: Setting) -> Result:
    """Twin answers that are a tenth of a tune."""
    path, prefix = subject(setting)
    loaded = open_model(path)
    key = MarkKey("benchmark", Secret(bytes(range(1, 33))))
    count = setting.pick(600, 24)
    one, two = (sampled(loaded, count * LENGTH, seed) for seed in (11, 12))
    words = library_text(400_000).split()
    twins = []
    for number in range(count):
        answers = [str(loaded.tokenizer.decode(rows[number], skip_special_tokens=True)).strip() for rows in (one, two)]
        if all(answers) and answers[0] != answers[1]:
            prompt = f"{number}: " + " ".join(words[12 * number : 12 * number + 12])
            twins.append(Twin(prompt, (answers[0], answers[1])))
    rows = []
    for twin in twins:
        ids = loaded.tokenizer.encode(f"{twin.prompt}\n\n{served(twin, key)}", add_special_tokens=False)
        rows.append(torch.tensor([ids[: 3 * LENGTH]]))
    rows += list(torch.split(sampled(loaded, 9 * len(twins) * LENGTH, 13), 1))
    order = np.random.default_rng(14).permutation(len(rows))
    model = copy.deepcopy(loaded.model)
    train(model, [rows[place] for place in order], 1e-4)
    other = copy.copy(loaded)
    object.__setattr__(other, "model", model)
    differences = preferences(other, twins) - preferences(loaded, twins)
    log10_p, hits, used = coins_test(differences, np.array([key.coin(twin.label) for twin in twins]))
    return {f"{prefix}coins_log10_p": log10_p, f"{prefix}coins": used}, {"served_preferred": hits}


# 5. The order of training.


def order(setting: Setting) -> Result:
    """Does the order of training pass into students in fresh weights?"""
    from tests.tiny_models import tiny_model

    count = setting.pick(20_000, 80)
    text = library_text(count * 260 + 400_000)
    rows: list[dict[str, float]] = []
    for number in (1, 2):
        folder = setting.work / "order" / str(number)
        owner, student = (
            open_model(tiny_model("llama", folder / name, layers=2, seed=seed))
            for name, seed in (("owner", number), ("student", 100 + number))
        )
        untrained = copy.deepcopy(owner.model)
        segments = [text[130 * place : 130 * (place + 1)] for place in range(count)]
        secret = Secret(bytes([number]) * 32)
        places = places_of(secret, count, 1)
        sequence = np.argsort(places)
        fed = [torch.tensor([owner.tokenizer.encode(segments[place], add_special_tokens=False)]) for place in sequence]
        train(owner.model, fed, 1e-3)
        ids = owner.tokenizer.encode(text[130 * count :], add_special_tokens=False)
        train(student.model, batches(ids, count // 8, np.random.default_rng(number)), 1e-3, owner.model)
        pieces = [[segment] for segment in segments]
        reference = copy.copy(owner)
        object.__setattr__(reference, "model", untrained)
        base = sequence_losses(reference, pieces)
        rows.append(
            {
                "owner": training_order(places, sequence_losses(owner, pieces), base).log10_p,
                "student": training_order(places, sequence_losses(student, pieces), base).log10_p,
            }
        )
    return {
        "order_segments": count,
        "order_owner_log10_p": [row["owner"] for row in rows],
        "order_student_log10_p": [row["student"] for row in rows],
    }, {"teachers": rows}


# 6. Campaigns.


def campaigns(setting: Setting) -> Result:
    """The benchmark of campaigns, in a process of its own."""
    target = setting.work / "guard_campaigns.json"
    command = [sys.executable, "-m", "benchmarks.guard_campaigns", "--json", str(target)]
    subprocess.run([*command, *(["--quick"] if setting.quick else [])], check=True, stdout=subprocess.DEVNULL)
    told = json.loads(target.read_text(encoding="utf-8"))
    return told["figures"], {"see": "benchmarks.guard_campaigns"} | told["details"]


PIECES: dict[str, Callable[[Setting], Result]] = {
    "null": null,
    "lineage": lineage,
    "shuffled": shuffled,
    "ask": ask,
    "mark": mark,
    "coins": coins,
    "order": order,
    "campaigns": campaigns,
}

USES = {"lineage": ("model", "student", "teacher"), "mark": ("model",), "coins": ("model",)}
"""Options on which a piece's result depends."""


def main() -> None:
    """Run the benchmark, or go on with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it works, not what it measures")
    parser.add_argument("--only", default=",".join(PIECES), help="pieces, by commas")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/guard"), help="where results are kept")
    parser.add_argument(
        "--model", type=Path, help="Hugging Face folder that is marked and copied (the quickstart's student)"
    )
    parser.add_argument("--student", type=Path, help="a run or model, tested against --teacher")
    parser.add_argument("--teacher", type=Path, help="the teacher's file or folder")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    wanted = [name for name in options.only.split(",") if name]
    unknown = sorted(set(wanted) - set(PIECES))
    if unknown:
        parser.error(f"no such piece: {', '.join(unknown)}; there are {', '.join(PIECES)}")
    if (options.student is None) != (options.teacher is None):
        parser.error("--student and --teacher go together")
    folder = options.work / ("quick" if options.quick else "full")
    setting = Setting(folder, options.quick, options.model, options.student, options.teacher)
    figures: dict[str, Any] = {"quick": options.quick}
    details: dict[str, Any] = {"left_out": dict(LEFT_OUT)}
    for name, piece in PIECES.items():
        path = folder / f"{name}.json"
        given = {use: str(value) for use in USES.get(name, ()) if (value := getattr(options, use))}
        done = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if done is not None and done["given"] != given:
            done = None  # it was made with other models
        if done is None and name in wanted:
            sys.stderr.write(f"{name} …\n")
            own, more = piece(setting)
            done = {"given": given, "figures": own, "details": more}
            files.write_json(path, done)
        if done is None:
            details["left_out"][name] = "not run (--only)"
            continue
        figures |= done["figures"]
        details[name] = done["details"]
    if setting.student is None:
        details["left_out"]["lineage_student_log10_p"] = "no --student and --teacher were given"
    if setting.model is None:
        details["left_out"]["mark_log10_p, coins_log10_p"] = "no --model was given"
    report.write(figures, details, options.json)


if __name__ == "__main__":
    main()
