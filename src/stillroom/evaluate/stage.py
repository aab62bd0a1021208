"""The stage `evaluate`: teacher, shrunk, student and baseline on held-out text. Knows nothing of how they were made."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from stillroom import files
from stillroom.compute import prepare
from stillroom.corpus.sequences import Sequences
from stillroom.evaluate.fidelity import Contender, Sums, measure
from stillroom.evaluate.speed import measure_speed, working_memory
from stillroom.progress import Progress
from stillroom.run import Run, Stage
from stillroom.student.vocabulary import VocabularyMap
from stillroom.teacher.load import count_parameters, load_student, load_teacher

PROMPT_TOKENS = 256


def run_stage(run: Run, stage: Stage, progress: Progress) -> None:
    """Measure; what an earlier process finished is not measured again."""
    recipe = run.recipe
    device = prepare(recipe.compute, recipe.seed)
    heldout = Sequences.load(run.stage("corpus").path / "heldout.safetensors")
    vocabulary = VocabularyMap.load(run.stage("shrink").path / "vocabulary.safetensors")
    folders = {"shrunk": run.stage("shrink").path / "model", "student": run.stage("distill").path / "model"}
    if recipe.baseline:
        folders["baseline"] = run.stage("baseline").path / "model"
    sums_file, cost_file = stage.path / "fidelity.json", stage.path / "cost.json"
    if not (sums_file.is_file() and cost_file.is_file()):
        progress.say("  loading the teacher and the students")
        teacher = load_teacher(recipe.teacher, device, torch.float32)
        contenders = [
            Contender(name, load_student(folder, torch.float32)[0].to(device).eval(), vocabulary)
            for name, folder in folders.items()
        ]
        if not sums_file.is_file():
            with progress.task("evaluate", total=len(heldout) * heldout.length) as task:
                sums = measure(teacher.model, contenders, heldout, task)
            files.write_json(sums_file, {name: value.as_dict() for name, value in sums.items()})
        files.write_json(
            cost_file, _cost(teacher, contenders, heldout, vocabulary, folders, recipe.evaluate.speed_tokens)
        )
    config = recipe.evaluate
    all_sums = {name: Sums.from_dict(value) for name, value in files.read_json(sums_file).items()}
    from stillroom.evaluate.bootstrap import difference
    from stillroom.evaluate.fidelity import summarize

    cost = files.read_json(cost_file)
    result: dict[str, Any] = {
        name: cost[name] | summarize(sums, config.bootstrap_samples, config.confidence, recipe.seed)
        for name, sums in all_sums.items()
    }
    compared = {}
    for name in ("baseline", "shrunk"):
        if name in all_sums:
            mine, theirs = all_sums["student"], all_sums[name]
            estimate = difference(
                mine.kl, theirs.kl, mine.compared, config.bootstrap_samples, config.confidence, recipe.seed
            )
            compared[f"student_minus_{name}"] = {
                "kl_to_teacher": estimate.value,
                "kl_to_teacher_interval": [estimate.low, estimate.high],
            }
    files.write_json(
        stage.path / "evaluation.json",
        {
            "models": result,
            "compared": compared,
            "documents": int((all_sums["teacher"].tokens > 0).sum()),
            "interval": f"{config.confidence:.0%} bootstrap-t over documents, {config.bootstrap_samples} resamplings",
            "seed": recipe.seed,
            "expansion": round(
                statistics.fmean([all_sums["student"].tokens.sum() / all_sums["teacher"].tokens.sum()]), 5
            ),
        },
    )


def _cost(
    teacher: Any,
    contenders: list[Contender],
    heldout: Sequences,
    vocabulary: VocabularyMap,
    folders: dict[str, Any],
    speed_tokens: int,
) -> dict[str, dict[str, Any]]:
    """Parameters, bytes, memory and speed. Models of the same shape are measured once."""
    ids = heldout.ids[0][heldout.segments[0] >= 0][:PROMPT_TOKENS]
    expanded = vocabulary.expand(ids)[0][:PROMPT_TOKENS]
    student = next(contender for contender in contenders if contender.name == "student")
    models, prompts = {"teacher": teacher.model, "student": student.model}, {"teacher": ids, "student": expanded}
    speeds = measure_speed(models, prompts, speed_tokens) if speed_tokens else {}
    cost: dict[str, dict[str, Any]] = {
        "teacher": {
            "parameters": teacher.parameters,
            "bytes": teacher.stored_bytes,
            "working_memory_bytes": working_memory(teacher.model, ids),
            **speeds.get("teacher", {}),
        }
    }
    memory = working_memory(student.model, expanded)
    for contender in contenders:
        cost[contender.name] = {
            "parameters": count_parameters(contender.model),
            "bytes": sum(file.stat().st_size for file in folders[contender.name].glob("*.safetensors")),
            "working_memory_bytes": memory,
            **(speeds.get("student", {}) if contender.name == "student" else {}),
        }
    return cost
