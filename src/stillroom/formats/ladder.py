"""A run's student in every GGUF type: bytes, KL to the student and to the teacher, decode speed. Not a stage.

This measurement needs teacher and files, unlike the stage `export`, and is made on demand. It reads a
finished run and writes ``ladder/ladder.json``; the files that it needs on the way are removed again.

Legend: P positions, V the student's ids.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stillroom import switch
from stillroom.core import files
from stillroom.core.errors import VocabularyMismatch
from stillroom.core.gguf_types import GGUF_TYPES
from stillroom.core.progress import Progress
from stillroom.formats.check import MOST_LISTED, Listed, Passage, agreement, file_says
from stillroom.formats.exporter import Exporter
from stillroom.models.compute import prepare
from stillroom.models.forward import hidden_states, logits_from_hidden
from stillroom.runs.run import AnyPath, Run
from stillroom.runs.stages import require_one_result
from stillroom.runtime.engine import Engine, EngineOptions
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.teachers.registry import open_teacher
from stillroom.teachers.teacher import weights_of

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

ROUNDS = 3
"""Times that each file's speed is measured, in turns; the median counts."""
DECODED = 64
"""Tokens of one such measurement."""


def ladder(
    folder: AnyPath,
    types: tuple[str, ...] = tuple(GGUF_TYPES)[1:],
    *,
    plain: bool = False,
    speed: bool = True,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure a finished run's student in several types.

    Args:
        folder: The run.
        types: Types to measure.
        plain: Measure the types under Q8_0 without the importance matrix too.
        speed: Measure decode speed.
        quiet: Draw no progress.

    Returns:
        What ``ladder.json`` holds: ``rungs``, one per file, with the PyTorch student first.

    Raises:
        RunError: The run is not finished as far as its student, or the student is of an earlier result of another stage.
        VocabularyMismatch: The student has a tokenizer of its own.
        TeacherError: The teacher has no weights here.
    """
    run, progress = Run.open(folder), Progress(quiet, switch.require_on)
    if run.recipe.student_with_own_tokenizer is not None:
        raise VocabularyMismatch(
            "A ladder compares files with the teacher token by token, and this student has a tokenizer of its own.",
            "Take a student with the teacher's tokenizer; what this one's files differ from it by is in `export/export.json`.",
        )
    for needed in ("corpus", "shrink", "distill"):
        _ = run.stage(needed).output_digest
    require_one_result(run, "distill")
    target = run.path / "ladder"
    with run.locked():
        device = prepare(run.recipe.compute, run.recipe.public_seed)
        scratch = target / "files"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            exporter = Exporter(run, scratch, progress)
            progress.say("  what the teacher predicts")
            opened = open_teacher(run.recipe.teacher, device, torch.float32)
            teacher = weights_of(opened, "A ladder of file types").model
            said = [teacher_says(teacher, text, exporter.vocabulary, exporter.used) for text in exporter.texts]
            del opened, teacher
            result = _measure(exporter, said, types, plain, speed, progress)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            with contextlib.suppress(OSError):  # it has an earlier ladder
                target.rmdir()
        target.mkdir(exist_ok=True)
        files.write_json(target / "ladder.json", result)
    return result


@torch.inference_mode()
def teacher_says(
    teacher: CausalModel, text: Passage, vocabulary: VocabularyMap, used: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's log-probabilities in the student's ids, [P, V], and the passage's positions that they belong to, [P].

    Between the sub-tokens of one of the teacher's tokens the teacher predicts nothing.
    """
    ids = torch.tensor([text.teacher_ids])
    hidden = hidden_states(teacher, ids, torch.arange(ids.shape[1])[None])[0]
    pieces = vocabulary.lengths[ids[0]].tolist()
    seen: dict[int, int] = {}
    places, rows = [], []
    for position, token in enumerate(text.source):
        seen[token] = seen.get(token, 0) + 1
        if seen[token] == pieces[token]:
            places.append(position)
            rows.append(token)
    logprobs = torch.log_softmax(logits_from_hidden(teacher, hidden[rows]), dim=1)
    return vocabulary.project_dense(logprobs)[:, :used].clone(), torch.tensor(places)


def _measure(
    exporter: Exporter,
    said: list[tuple[torch.Tensor, torch.Tensor]],
    types: tuple[str, ...],
    plain: bool,
    speed: bool,
    progress: Progress,
) -> dict[str, Any]:
    positions = sum(len(text.ids) for text in exporter.texts)
    compared = sum(len(places) for _, places in said)
    student = exporter.student[0]
    rungs: list[dict[str, Any]] = [
        {
            "type": "PyTorch",
            "importance": False,
            "bytes": sum(file.stat().st_size for file in exporter.source.glob("*.safetensors")),
            "kl_to_student": 0.0,
            "top1_to_student": 1.0,
            "kl_to_teacher": agreement(
                [rows for rows, _ in said],
                [_listed(rows[places]) for rows, (_, places) in zip(exporter.expected, said, strict=True)],
            ).kl,
        }
    ]
    paths: list[Path] = []
    wanted = [(kind, True) for kind in types]
    wanted += [
        (kind, False) for kind in types if plain and GGUF_TYPES[kind].importance and exporter.config.importance_tokens
    ]
    for kind, weighted in wanted:
        weighted = weighted and GGUF_TYPES[kind].importance and exporter.importance is not None
        path = exporter.folder / f"{kind}{'' if weighted else '-plain'}.gguf"
        exporter.write(kind, path, weighted)
        with progress.task(f"ladder {path.stem}", total=positions, unit="positions") as task:
            listed = file_says(path, exporter.student[1], exporter.texts, exporter.used, task)
        own = agreement(exporter.expected, listed)
        at_teacher = [[rows[int(place)] for place in places] for rows, (_, places) in zip(listed, said, strict=True)]
        rungs.append(
            {
                "type": kind,
                "importance": weighted,
                "bytes": path.stat().st_size,
                "kl_to_student": own.kl,
                "top1_to_student": own.top1,
                "kl_to_teacher": agreement([rows for rows, _ in said], at_teacher).kl,
            }
        )
        paths.append(path)
    if speed:
        for rung, rate in zip(rungs[1:], _speeds(paths, exporter.texts[0].ids), strict=True):
            rung["decode_tokens_per_second"] = rate
    return {
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
        "positions": positions,
        "positions_with_teacher": compared,
        "rungs": rungs,
    }


def _listed(expected: torch.Tensor) -> list[Listed]:
    """What PyTorch predicts, limited to as many ids as the runtime lists, so that both are compared alike."""
    best = expected.double().topk(min(MOST_LISTED, expected.shape[1]), dim=1)
    return [Listed(ids, logprobs) for ids, logprobs in zip(best.indices, best.values, strict=True)]


def _speeds(paths: list[Path], prompt: list[int]) -> list[float]:
    """Tokens per second while decoding, by the runtime's own clock; the median of interleaved rounds."""
    rates: list[list[float]] = [[] for _ in paths]
    for _ in range(ROUNDS):
        for path, found in zip(paths, rates, strict=True):
            with Engine(path, EngineOptions(context=max(512, len(prompt) + DECODED + 16))) as engine:
                body = {"prompt": prompt, "max_tokens": DECODED, "temperature": 0, "ignore_eos": True}
                found.append(float(engine.complete(body)["timings"]["predicted_per_second"]))
    return [round(statistics.median(found), 2) for found in rates]


def table(result: dict[str, Any]) -> str:
    """The ladder as lines for a terminal."""
    lines = [f"{'type':<10}{'matrix':>8}{'MB':>9}{'KL student':>12}{'KL teacher':>12}{'same next':>11}{'decode/s':>10}"]
    for rung in result["rungs"]:
        rate = rung.get("decode_tokens_per_second")
        lines.append(
            f"{rung['type']:<10}{'yes' if rung['importance'] else '-':>8}{rung['bytes'] / 1e6:>9.1f}"
            f"{rung['kl_to_student']:>12.2e}{rung['kl_to_teacher']:>12.4f}{rung['top1_to_student']:>11.1%}"
            f"{f'{rate:.1f}' if rate is not None else '-':>10}"
        )
    lines.append(
        f"On {result['positions']:,} held-out positions, {result['positions_with_teacher']:,} of them with the teacher: "
        "the first of the held-out text (`export.check_tokens`)."
    )
    return "\n".join(lines)
