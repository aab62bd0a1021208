"""Part 2: with the real teacher. Capture against the bare forward pass, then a whole small path by `stillroom run`.

Run by part2.sh; `--out` is the folder for results. A dry run has a tiny random teacher.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import material
from stillroom.core.progress import Progress
from stillroom.models.forward import hidden_states, logits_from_hidden
from stillroom.models.load import load_teacher
from stillroom.recipe.capture import ThresholdCodec
from stillroom.recipe.teacher import GgufTeacher, HuggingFaceTeacher
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.writer import CacheWriter
from stillroom.teachers.capture import cache_identity, capture
from stillroom.teachers.local import LocalTeacher
from tools import identity
from tools.gpu.harness import Check, Setting, run_checks
from tools.gpu.pack import TEACHER

DECISION = {"kind": "own", "decided_by": "tools.gpu", "decided_at": "2026-11-26T12:00:00Z"}


def teacher_config(at: Setting, folder: Path) -> dict[str, str]:
    """The teacher as a recipe names it.

    Raises:
        FileNotFoundError: Its halves were not joined on this machine.
    """
    if at.tiny:
        if not (folder / "teacher").is_dir():
            identity._write_teacher(folder / "teacher")
        return {"kind": "huggingface", "name": str(folder / "teacher")}
    path = at.keep / TEACHER[1]
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: half a teacher is missing. Run part1.sh with trip 1, and this with trip 2 right after"
        )
    return {"kind": "gguf", "path": str(path)}


def captures(at: Setting) -> None:
    """Tokens a second of capture, with packing and writing, over those of the forward pass to logits alone."""
    with tempfile.TemporaryDirectory(prefix="gpu-capture-") as name:
        folder = Path(name)
        words = teacher_config(at, folder)
        config = GgufTeacher(path=words["path"]) if words["kind"] == "gguf" else HuggingFaceTeacher(name=words["name"])
        dtype = torch.bfloat16 if at.cuda else torch.float32
        teacher = LocalTeacher(load_teacher(config, at.device, dtype))
        length, tokens = (64, 512) if at.tiny else (512, 131_072)
        text = material.corpus(teacher.loaded, length, tokens, length)[0]
        at.note("tokens", text.ids.numel())
        size = max(1, min(len(text), teacher.batch_tokens(length) // length))
        at.note("sequences a forward pass", size)

        @torch.inference_mode()
        def bare() -> None:
            for start in range(0, len(text), size):
                ids = text.ids[start : start + size].to(at.device)
                positions = text.positions[start : start + size].to(at.device)
                hidden = hidden_states(teacher.loaded.model, ids, positions).flatten(0, 1)
                for part in torch.split(hidden, 4096):
                    logits_from_hidden(teacher.loaded.model, part)

        made = 0

        def whole() -> None:
            nonlocal made
            made += 1
            writer = CacheWriter.open(
                folder / f"cache{made}", cache_identity(teacher, ThresholdCodec(tau=1 / 36), 1.0, made)
            )
            with Progress(quiet=True).task("capture", text.ids.numel()) as task:
                capture(teacher, text, writer, 1.0, None, 1 << 20, task)

        forward = at.seconds(bare, 3, 1)
        at.note("bare forward to logits, tokens/s", text.ids.numel() / forward)
        spent = at.seconds(whole, 3, 1)
        at.note("capture, tokens/s", text.ids.numel() / spent)
        at.note("capture over the bare forward", forward / spent, least=0.9, speed=True)
        cache = TeacherCache.open(folder / "cache1")
        lacking = sum(address not in set(cache.digests) for row in text.addresses for address in row)
        at.note("sequences that the cache lacks", lacking, most=0)
        signal: Any = cache.read([address for row in text.addresses[:8] for address in row])[0]
        mass = float(signal.weights.sum(1).mean())
        at.note("mean kept mass of a position", mass, least=0.98, most=1.02)


def path(at: Setting) -> None:
    """`stillroom run`: first to the student, then the rest, so that what the rest lacks here costs nothing."""
    with tempfile.TemporaryDirectory(prefix="gpu-path-") as name:
        folder = Path(name)
        (folder / "path.yaml").write_text(json.dumps(recipe(at, folder)), encoding="utf-8")  # JSON is YAML too
        command = [sys.executable, "-m", "stillroom", "run", "path.yaml", "--runs", "runs", "--quiet"]
        for words in [[]] if at.tiny else [["--until", "distill"], []]:
            begun = time.monotonic()
            done = subprocess.run([*command, *words], cwd=folder, capture_output=True, text=True, check=False)
            what = "run to the student" if words else "run whole"
            at.note(f"{what}: seconds", round(time.monotonic() - begun, 1))
            at.note(f"{what}: exit code", done.returncode, least=0, most=0)
            if done.returncode:
                at.note(f"{what}: last words", (done.stdout + done.stderr)[-800:])
        summary = folder / "runs" / "path" / "summary.json"
        if summary.is_file():
            found = json.loads(summary.read_text(encoding="utf-8"))
            for key, value in flat(found):
                if key.startswith(("student", "teacher", "shrink", "distill")) and isinstance(value, int | float):
                    at.note(f"summary: {key}", value)
            stages = folder.glob("runs/path/*/stage.json")
            at.note("finished stages", ", ".join(sorted(stage.parent.name for stage in stages)))


def flat(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with dots, and what they lead to."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def recipe(at: Setting, folder: Path) -> dict[str, Any]:
    """The path's recipe."""
    if at.tiny:
        identity._write_text(folder / "text")
        source: dict[str, Any] = {"kind": "text", "path": "text", "licence": "PSF-2.0"}
        corpus = {"sequence_length": 64, "train_tokens": 2048, "validation_tokens": 256, "heldout_tokens": 256}
        student: dict[str, Any] = {"kind": "shrink", "layers": 3, "intermediate_size": 96}
    else:
        source = {"kind": "python_docs"}
        corpus = {"sequence_length": 512, "train_tokens": 150_000, "validation_tokens": 6000, "heldout_tokens": 16_000}
        student = {"kind": "shrink", "layers": 16, "intermediate_size": 768, "vocabulary": {"keep": "corpus"}}
    config = teacher_config(at, folder)
    subjects = ["teacher", "student"] if at.tiny else []
    if subjects:
        config["name"] = "./teacher"
    made: dict[str, Any] = {
        "name": "path",
        "seed": 0,
        "compute": {"device": at.device.type},
        "corpus": corpus | {"sources": [source]},
        "teacher": config,
        "student": student,
        "distill": {"batch_tokens": 256 if at.tiny else 8192, "learning_rate": 1e-3 if at.tiny else 3e-4},
        "baseline": False,
        "evaluate": {"speed_tokens": 0, "bootstrap_samples": 200},
        "export": {"gguf": ["F16"], "check_tokens": 64},
        "chat": {"prompt": None},
    }
    if subjects:
        made["terms"] = {"decisions": [DECISION | {"subject": subject} for subject in subjects]}
    return made


CHECKS = (Check("capture", captures, 150), Check("path", path, 360))


def main() -> int:
    """Run them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return min(100, run_checks("part2", CHECKS, out.resolve()))


if __name__ == "__main__":
    raise SystemExit(main())
