"""What closed-form repair, structured compensation, the solver and a trimmed vocabulary are worth on
SmolLM2-135M-Instruct.

    .venv/bin/python -m benchmarks.shrink [--quick] [--work FOLDER] [--json FILE]

Everything is fitted on training documents of Python's documentation and judged on held-out ones: KL(teacher ‖ student)
in nats a token, before any training; the solver's figures after an equal budget of distillation, three seeds or six, each a
mean of ratios over the seeds that both students have, with its interval in the details. `--quick` leaves the solver out.
`--work` names a folder that keeps what is done, in `parts.json` and beside it.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import material, torch_pruning_peer
from benchmarks.material import evenly_spaced
from benchmarks.report import Kept, interval, write
from stillroom.core.progress import Progress
from stillroom.corpus.build import build_corpus
from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.models.families.family import Family
from stillroom.models.families.registry import family_of
from stillroom.models.forward import hidden_states, logits_from_hidden
from stillroom.models.load import count_parameters, load_student, save_model
from stillroom.recipe.capture import CaptureConfig
from stillroom.recipe.corpus import CorpusConfig, PythonDocsSource
from stillroom.recipe.student import Target
from stillroom.students.embeddings import keep_rows
from stillroom.students.importance import Sample
from stillroom.students.languages import as_record, language_costs
from stillroom.students.measured import Measured
from stillroom.students.narrow import Widths
from stillroom.students.planning import plan_shape
from stillroom.students.shape import Anatomy, Shape, tokenizer_bytes
from stillroom.students.shrink import _cut, shrink
from stillroom.students.trim import Trimmed, trim

REMOVED_LAYERS = 8
CHANNEL_SHARE = 0.75
TRIMMED = 16_384
LENGTH, TRAIN_TOKENS, HELDOUT_TOKENS = 512, 98_304, 12_288
SAMPLE_TOKENS = 16_384
SEEDS = (0, 1, 2)
MORE_SEEDS = (*SEEDS, 3, 4, 5)
CLOSE = ("solver", "width_only")
"""What three seeds do not tell apart gets more, at its better rate."""
RATES = (5e-4, 1e-4)
"""Peak learning rates; each student is judged at the one that is better for it."""
IDENTITY = {
    "removed_layers": REMOVED_LAYERS,
    "channel_share": CHANNEL_SHARE,
    "trimmed": TRIMMED,
    "length": LENGTH,
    "train_tokens": TRAIN_TOKENS,
    "heldout_tokens": HELDOUT_TOKENS,
    "sample_tokens": SAMPLE_TOKENS,
}
"""What all parts of a work folder have in common."""


@torch.no_grad()
def exact_kl(teacher: Any, student: Any, heldout: Sequences) -> float:
    """Mean KL(teacher ‖ student) over every held-out position with a target."""
    total, positions = 0.0, 0
    for index in range(len(heldout)):
        one = slice(index, index + 1)
        chosen = (heldout.targets[index] != IGNORED).nonzero().squeeze(1)
        sides = []
        for model in (teacher, student):
            hidden = hidden_states(model, heldout.ids[one], heldout.positions[one])[0, chosen]
            sides.append(torch.log_softmax(logits_from_hidden(model, hidden), dim=1))
        total += float((sides[0].exp() * (sides[0] - sides[1])).sum())
        positions += len(chosen)
    return total / positions


def depth(teacher: Any, adapter: Family, measured: Measured, heldout: Sequences) -> dict[str, float]:
    """Eight of thirty layers removed: by importance with and without repair, and at even distances."""
    count = len(adapter.layers(teacher))
    whole = Anatomy.of(teacher, adapter).teacher
    shape = Shape(count - REMOVED_LAYERS, whole.channels, whole.groups, whole.hidden, whole.vocabulary)
    started = time.perf_counter()
    cut = shrink(teacher, adapter, shape, measured, True)
    seconds = time.perf_counter() - started
    unhealed = exact_kl(teacher, _cut(teacher, adapter, cut.kept, Widths()), heldout)
    even = exact_kl(teacher, _cut(teacher, adapter, evenly_spaced(count, shape.layers), Widths()), heldout)
    return {
        "healed": exact_kl(teacher, cut.model, heldout),
        "unhealed": unhealed,
        "even": even,
        "seconds": seconds,
        **{f"removed_{n}": i for n, i in enumerate(sorted(set(range(count)) - set(cut.kept)))},
    }


def channels(teacher: Any, adapter: Family, measured: Measured, heldout: Sequences) -> dict[str, float]:
    """A quarter of the feed-forward channels removed, with and without compensation."""
    whole = Anatomy.of(teacher, adapter).teacher
    shape = Shape(whole.layers, round(whole.channels * CHANNEL_SHARE), whole.groups, whole.hidden, whole.vocabulary)
    started = time.perf_counter()
    compensated = shrink(teacher, adapter, shape, measured, True)
    seconds = time.perf_counter() - started
    plain = shrink(teacher, adapter, shape, measured, False)
    return {
        "compensated": exact_kl(teacher, compensated.model, heldout),
        "not": exact_kl(teacher, plain.model, heldout),
        "seconds": seconds,
    }


def vocabulary(teacher: Any, tokenizer: Any, train: Sequences, heldout: Sequences) -> dict[str, Any]:
    """Tokens a byte on held-out text before and after a trim, the parameters saved, and other languages' cost."""
    rows = teacher.get_output_embeddings().weight.shape[0]
    trimmed = trim(tokenizer, Counter(train.ids[train.segments >= 0].tolist()), TRIMMED, rows, 64)
    before = after = size = 0
    for index in range(len(heldout)):
        for segment in range(int(heldout.segments[index].max()) + 1):
            text = tokenizer.decode(heldout.ids[index][heldout.segments[index] == segment], skip_special_tokens=True)
            before += len(tokenizer(text, add_special_tokens=False).input_ids)
            after += len(trimmed.tokenizer(text, add_special_tokens=False).input_ids)
            size += len(text.encode())
    saved = (rows - len(trimmed.kept)) * teacher.config.hidden_size
    return {
        "before": before / size,
        "after": after / size,
        "parameters_saved_share": saved / count_parameters(teacher),
        "languages": as_record(language_costs(tokenizer, trimmed.tokenizer)),
    }


def no_smaller(anatomy: Anatomy, than: Shape, shapes: Iterable[Shape]) -> Shape:
    """The first of growing shapes that has at least as many parameters."""
    asked = anatomy.parameters(than)
    return next(shape for shape in shapes if anatomy.parameters(shape) >= asked)


def chosen_shapes(loaded: Any, adapter: Family, anatomy: Anatomy, measured: Measured, size: int) -> dict[str, Shape]:
    """What the solver finds for at most half the teacher's parameters; and, on each axis alone, the smallest student
    that has no fewer parameters than the solver's.
    """
    target = Target(parameters=anatomy.parameters(anatomy.teacher) // 2, axes=("layers", "intermediate_size"))
    found = plan_shape(loaded.model, adapter, anatomy, target, {}, size, measured, True, Progress()).shape
    whole = replace(anatomy.teacher, vocabulary=size)
    shapes = {
        "solver": found,
        "depth_only": no_smaller(anatomy, found, (replace(whole, layers=n) for n in range(1, whole.layers + 1))),
        "width_only": no_smaller(anatomy, found, (replace(whole, channels=n) for n in range(1, whole.channels + 1))),
    }
    shapes["even"] = shapes["depth_only"]
    return shapes


def starts(
    loaded: Any, adapter: Family, anatomy: Anatomy, measured: Measured, size: int, work: Path, kept: Kept
) -> tuple[dict[str, tuple[Path, str]], dict[str, str]]:
    """Each student's folder before distillation, with the teacher's vocabulary, and its shape in words; what is left out."""
    teacher = loaded.model

    def shapes() -> dict[str, Any]:
        return {name: asdict(shape) for name, shape in chosen_shapes(loaded, adapter, anatomy, measured, size).items()}

    found: dict[str, tuple[Path, str]] = {}
    (work / "starts").mkdir(exist_ok=True)
    for name, values in kept.cell("shapes", shapes).items():
        shape, folder = Shape(**values), work / "starts" / name
        if f"start/{name}" not in kept.cells or not folder.is_dir():
            if name == "even":
                start = _cut(teacher, adapter, evenly_spaced(anatomy.teacher.layers, shape.layers), Widths())
            else:
                start = shrink(teacher, adapter, shape, measured, True).model
            save_model(start, loaded.tokenizer, folder)
            kept.add(f"start/{name}", {"parameters": count_parameters(start)})
        found[name] = folder, shape.words()
    peer = work / "starts" / "torch_pruning"
    whole = work / "teacher"
    if not whole.is_dir():
        save_model(teacher, loaded.tokenizer, whole)
    try:
        if "start/torch_pruning" not in kept.cells or not peer.is_dir():
            spent = torch_pruning_peer.cut(whole, peer)
            loaded.tokenizer.save_pretrained(peer)
            kept.add("start/torch_pruning", {"cpu_seconds": spent})
    except torch_pruning_peer.LeftOut as error:
        print(f"torch_pruning is left out: {error}", file=sys.stderr)
        return found, {"torch_pruning": str(error)}
    found["torch_pruning"] = peer, f"pruned by Torch-Pruning {torch_pruning_peer.VERSION}"
    return found, {}


def solver(
    loaded: Any, adapter: Family, measured: Measured, splits: dict[str, Sequences], tokens: int, work: Path, kept: Kept
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The solver's student and others of no fewer parameters, each distilled on the same tokens; KL on held-out text; and
    what is left out.
    """
    train = splits["train"].take(max(1, tokens // splits["train"].length))
    rows = loaded.model.get_output_embeddings().weight.shape[0]
    counts = Counter(splits["train"].ids[splits["train"].segments >= 0].tolist())
    trimmed = trim(loaded.tokenizer, counts, None, rows, 64)
    size = trimmed.vocabulary.student_size
    anatomy = Anatomy.of(loaded.model, adapter, tokenizer_bytes(loaded.tokenizer))
    distilling = Distilling(loaded, trimmed, train, splits["heldout"], work, kept)
    results: dict[str, dict[str, Any]] = {}
    best: dict[str, list[float]] = {}
    begun, left_out = starts(loaded, adapter, anatomy, measured, size, work, kept)
    for name, (folder, words) in begun.items():
        start = load_student(folder, torch.float32)[0]
        keep_rows(start, trimmed.kept, size)
        by_rate = {rate: [distilling.kl(name, start, rate, seed) for seed in SEEDS] for rate in RATES}
        rate = min(RATES, key=lambda rate: statistics.mean(by_rate[rate]))
        seeds = MORE_SEEDS if name in CLOSE else SEEDS
        best[name] = [distilling.kl(name, start, rate, seed) for seed in seeds]
        more = [kl - least for kl, least in zip(best[name], best["solver"], strict=False)]
        results[name] = {
            "shape": words,
            "parameters": count_parameters(start),
            "learning_rate": rate,
            "kl": statistics.mean(best[name]),
            "kls": best[name],
            "interval": interval(best[name]),
            "more_than_solver": statistics.mean(more),
            "more_than_solver_interval": interval(more),
            **solver_over(best["solver"], best[name]),
            "by_rate": {f"{rate:g}": statistics.mean(kls) for rate, kls in by_rate.items()},
        }
    return results, left_out


def solver_over(solver: list[float], other: list[float]) -> dict[str, Any]:
    """The solver's KL over another student's, seed by seed of those that both have."""
    ratios = [kl / over for kl, over in zip(solver, other, strict=False)]
    return {"solver_over": statistics.mean(ratios), "solver_over_interval": interval(ratios)}


@dataclass
class Distilling:
    """Distillation of one start after another, all on the same tokens; what is done is kept in the folder.

    Attributes:
        loaded: The teacher.
        trimmed: The students' vocabulary.
        train: What they are distilled on.
        heldout: What they are judged on.
        folder: Keeps the teacher's signals.
        kept: Keeps each student's KL.
    """

    loaded: Any
    trimmed: Trimmed
    train: Sequences
    heldout: Sequences
    folder: Path
    kept: Kept

    def kl(self, name: str, start: Any, rate: float, seed: int) -> float:
        """KL on held-out text of a start after distillation with one learning rate and seed."""
        key = f"distilled/{len(self.train) * self.train.length}/{name}/{rate:g}/{seed}"
        return float(self.kept.cell(key, lambda: {"kl": self._distil(name, start, rate, seed)})["kl"])

    def _distil(self, name: str, start: Any, rate: float, seed: int) -> float:
        import copy

        from stillroom.recipe.training import DistillConfig
        from stillroom.signals.batches import BatchSource
        from stillroom.training.loop import Training

        cache = self._cache
        training = Training(
            title=f"{name}, {rate:g}, seed {seed}",
            model=copy.deepcopy(start).float(),
            config=DistillConfig(evaluate_every=10_000, learning_rate=rate),
            train=BatchSource(self.train, self.trimmed.vocabulary, cache),
            validation=BatchSource(self.heldout, self.trimmed.vocabulary, cache),
            distill=True,
            folder=self.folder / f"{name}-{seed}",
            seed=seed,
            device=torch.device("cpu"),
            used=self.trimmed.vocabulary.student_used,
            progress=Progress(),
            event=lambda **_: None,
        )
        shutil.rmtree(training.folder, ignore_errors=True)
        training.folder.mkdir(parents=True)
        state = training.run()
        shutil.rmtree(training.folder)
        return float(state.history[-1]["kl"])

    @functools.cached_property
    def _cache(self) -> Any:
        """What the teacher predicts of both texts, captured once; a capture that was interrupted goes on."""
        from stillroom.core.progress import Task
        from stillroom.signals.cache.reader import TeacherCache
        from stillroom.signals.cache.writer import CacheWriter
        from stillroom.teachers.capture import cache_identity, capture
        from stillroom.teachers.local import LocalTeacher

        config = CaptureConfig()
        folder = self.folder / f"cache-{len(self.train)}"
        teacher = LocalTeacher(self.loaded)
        identity = cache_identity(teacher, config.codec, 1.0, 0)
        writer = CacheWriter.open(folder, identity)
        for split in (self.train, self.heldout):
            quiet = Task("", 1, "", quiet=True)
            capture(teacher, split, writer, 1.0, None, config.shard_tokens, quiet)
        return TeacherCache.open(folder)


def main() -> None:
    """Measure, print and write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--tokens", type=int, default=16_384, help="distillation tokens of each student")
    arguments.add_argument("--work", type=Path, help="folder that keeps what is done")
    options = arguments.parse_args()
    torch.manual_seed(0)
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
    kept = Kept(options.work / "parts.json" if options.work else None, IDENTITY)
    loaded = material.teacher(torch.float32)
    teacher, adapter = loaded.model, family_of(loaded.model)
    config = CorpusConfig(
        sources=(PythonDocsSource(),),
        sequence_length=LENGTH,
        train_tokens=TRAIN_TOKENS,
        validation_tokens=4096,
        heldout_tokens=HELDOUT_TOKENS,
    )
    splits = build_corpus(config, loaded.tokenizer, 0, Progress()).splits
    sample = Sample.of(splits["train"], SAMPLE_TOKENS)
    file = options.work / "importance.safetensors" if options.work else None
    measured = Measured.of(teacher, adapter, sample, leave_one_out=True, file=file, digest=loaded.digest)
    heldout = splits["heldout"]
    details: dict[str, Any] = {
        "vocabulary": kept.cell("vocabulary", lambda: vocabulary(teacher, loaded.tokenizer, splits["train"], heldout)),
        "depth": kept.cell("depth", lambda: depth(teacher, adapter, measured, heldout)),
        "channels": kept.cell("channels", lambda: channels(teacher, adapter, measured, heldout)),
    }
    by_depth, by_channels = details["depth"], details["channels"]
    figures = {
        "healed_over_unhealed_kl": by_depth["healed"] / by_depth["unhealed"],
        "healed_over_even_kl": by_depth["healed"] / by_depth["even"],
        "channels_compensated_over_not_kl": by_channels["compensated"] / by_channels["not"],
        "trimmed_tokens_per_byte_ratio": details["vocabulary"]["after"] / details["vocabulary"]["before"],
    }
    print(json.dumps(figures, indent=2), file=sys.stderr)
    if not options.quick:
        with tempfile.TemporaryDirectory() as scratch:
            work = options.work or Path(scratch)
            students, details["left_out"] = solver(loaded, adapter, measured, splits, options.tokens, work, kept)
        details["solver"] = students
        for other in sorted(students.keys() - {"solver"}):
            figures[f"solver_over_{other}_kl"] = students[other]["solver_over"]
    write(figures, details, options.json)


if __name__ == "__main__":
    main()
