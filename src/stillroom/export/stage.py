"""The stage `export`: the student as files for devices, each checked before it is accepted. Knows nothing of the teacher."""

from __future__ import annotations

import time
from typing import Any

import torch

from stillroom import files
from stillroom.compute import prepare
from stillroom.corpus.sequences import Sequences
from stillroom.export.check import compare, require_agreement, require_same_tokens
from stillroom.export.gguf_file import write_gguf
from stillroom.progress import Progress
from stillroom.run import Run, Stage
from stillroom.student.vocabulary import VocabularyMap
from stillroom.teacher.load import load_student

CHECK_LENGTH = 128
"""Longest sequence of the check."""
SAMPLES = (
    "def f(x):\n    return x + 2024",
    "Hello, world! It's 3.14 o'clock.",
    "naïve café — 你好, мир 🙂",
    "a\n\n\n  b\tc",
)


def run_stage(run: Run, stage: Stage, progress: Progress) -> None:
    """Write and check every file that the recipe asks for; one that was accepted before is kept."""
    recipe = run.recipe
    config = recipe.export
    prepare(recipe.compute, recipe.seed)
    folder = run.stage("distill").path / "model"
    vocabulary = VocabularyMap.load(run.stage("shrink").path / "vocabulary.safetensors")
    heldout = Sequences.load(run.stage("corpus").path / "heldout.safetensors")
    sequences = _sequences(heldout, vocabulary, config.check_tokens)
    record = stage.path / "accepted.json"
    accepted: dict[str, Any] = files.read_json(record) if record.is_file() else {}
    model, tokenizer = load_student(folder, torch.float32)
    model.eval()
    for kind in config.gguf:
        target = stage.path / f"{recipe.name}-{kind}.gguf"
        if kind in accepted and target.is_file() and files.digest_file(target) == accepted[kind]["sha256"]:
            continue
        started = time.monotonic()
        write_gguf(folder, target, kind, name=recipe.name, licence=_licence(run), rows=vocabulary.student_used)
        require_same_tokens(tokenizer, target, list(SAMPLES))
        with progress.task(f"check {kind}", total=sum(map(len, sequences)), unit="positions") as task:
            agreement = compare(model, tokenizer, target, sequences, vocabulary.student_used, task)
        require_agreement(agreement, kind, config.max_kl.get(kind, float("inf")), target)
        accepted[kind] = {
            "type": kind,
            "path": target.relative_to(run.path).as_posix(),
            "bytes": target.stat().st_size,
            "sha256": files.digest_file(target),
            "kl_to_pytorch": agreement.kl,
            "largest_kl_to_pytorch": agreement.largest_kl,
            "top1_agreement": agreement.top1,
            "positions": agreement.positions,
            "seconds": round(time.monotonic() - started, 3),
        }
        files.write_json(record, accepted)
        progress.say(
            f"  {target.name}: {target.stat().st_size / 1e6:.1f} MB, KL to PyTorch {agreement.kl:.1e}, "
            f"same next token {agreement.top1:.1%}"
        )
    files.write_json(stage.path / "export.json", {"files": [accepted[kind] for kind in config.gguf]})


def _sequences(heldout: Sequences, vocabulary: VocabularyMap, tokens: int) -> list[list[int]]:
    """Held-out beginnings in the student's ids, each of one document, ``tokens`` in all."""
    found: list[list[int]] = []
    for index in range(len(heldout)):
        chosen = heldout.segments[index] == heldout.segments[index][0]
        ids = vocabulary.expand(heldout.ids[index][chosen])[0][:CHECK_LENGTH].tolist()
        room = tokens - sum(map(len, found))
        if room <= 0:
            break
        found.append(ids[:room])
    return found


def _licence(run: Run) -> str | None:
    facts = run.stage("capture").path / "teacher.json"
    return files.read_json(facts).get("licence") if facts.is_file() else None
