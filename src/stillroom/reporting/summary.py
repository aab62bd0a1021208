"""One file of numbers a run."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from stillroom.core import files
from stillroom.core.version import tool_version
from stillroom.corpus.context import context_of, warning_of
from stillroom.evaluation.intervals import TOO_FEW
from stillroom.evaluation.metric import Result, without_bounds
from stillroom.evaluation.registry import find
from stillroom.evaluation.stage import extras
from stillroom.recipe.routes import OWN
from stillroom.runs.run import MODELS, SUMMARY, Run
from stillroom.runs.stages import require_finished, stages_of
from stillroom.teachers.several import records_of

FORMAT = 1
SAME_SECONDS = 0.95
"""A baseline that took this share of the student's seconds had as many: the same work differs by as much from run to run."""
TRAINING = (
    "learning_rate",
    "learning_rate_from",
    "sweep",
    "sweep_cost_share",
    "sweep_open",
    "step_tokens",
    "clipped_share",
    "lora",
    "rounds",
)
"""What a summary takes from the notes of the stages that train; those of 0.1.0 have none of it."""


def write_summary(run: Run) -> dict[str, Any]:
    """Gather the records of a finished run into ``summary.json``; returns them.

    Raises:
        RunError: A stage is not finished, or was finished with an earlier result of another one.
    """
    require_finished(run)
    evaluation = files.read_json(run.stage("evaluate").path / "evaluation.json")
    originals = evaluation.get("kl_to_original", {})
    corpus = files.read_json(run.stage("corpus").path / "ledger.json")
    context = context_of(run.stage("corpus").path)
    teacher = files.read_json(run.stage("capture").path / "teacher.json")
    exported = files.read_json(run.stage("export").path / "export.json")["files"]
    capture = run.stage("capture").record or {}
    stages = {spec.name: run.stage(spec.name).record for spec in stages_of(run.recipe)}
    models: dict[str, dict[str, Any]] = evaluation["models"]
    summary: dict[str, Any] = {
        "format": FORMAT,
        "name": run.recipe.name,
        "version": tool_version(),
        "recipe_digest": run.recipe_digest,
        "seed": run.recipe.public_seed,
        "randomness": run.randomness_record(),
        "student_kind": run.recipe.student.kind,
        **{name: models[name] for name in MODELS if name in models},
        "compared": evaluation["compared"],
        "bounds": evaluation["bounds"],
        "interval": evaluation["interval"],
        "heldout_documents": evaluation["documents"],
        # A run that an earlier version evaluated has none of these.
        "effective_documents": evaluation.get("effective_documents"),
        "enough": evaluation.get("enough"),
        "paired": evaluation.get("paired", {}),
        "baseline_comparison": baseline_comparison(stages) if "baseline" in models else None,
        "near_duplicates": corpus.get("near_duplicates"),
        "tokens": {name: split["tokens"] for name, split in corpus["splits"].items()},
        "context": {
            "targets_without_context": {name: split.missing for name, split in context.items()},
            "share": {name: split.share for name, split in context.items()},
            "warning": warning_of(context),
        },
        "cache": {
            "bytes_per_position": capture["notes"]["bytes_per_position"],
            "codec": capture["notes"]["codec"],
        },
        "stages": {
            name: {"seconds": record["seconds"], "peak_memory_bytes": record["peak_memory_bytes"]}
            for name, record in stages.items()
            if record is not None
        },
        "training": {
            name: found
            for name, record in stages.items()
            if record is not None
            and (found := {key: record["notes"][key] for key in TRAINING if key in record["notes"]})
        },
        "machine": machine(),
        "measures": brief(evaluation["measures"] | extras(run)),
    }
    summary["teacher"] |= {key: teacher[key] for key in ("name", "family", "digest", "licence")}
    if "quantization" in teacher:
        summary["teacher"] |= {"quantization": teacher["quantization"], "kl_to_original": originals.get(OWN)}
    if "written" in corpus:
        summary["written"] = {
            key: corpus["written"][key] for key in ("writer", "chunks", "written", "kept", "rows", "forms", "left_out")
        }
    if run.recipe.teachers:
        summary["teachers"] = [
            {key: record[key] for key in ("called", "name", "family", "digest", "licence", "parameters", "sources")}
            | {"learned_from": record.get("learned_from")}
            | (
                {"quantization": record["quantization"], "kl_to_original": originals.get(record["called"])}
                if "quantization" in record
                else {}
            )
            for record in records_of(run)
        ]
    if exported:
        # The smallest accepted file is the one that `stillroom chat` opens.
        summary["student"]["gguf"] = min(exported, key=lambda entry: int(entry["bytes"]))
        summary["student"]["gguf_files"] = exported
    files.write_json(run.path / SUMMARY, summary)
    return summary


def baseline_comparison(stages: dict[str, dict[str, Any] | None]) -> dict[str, Any]:
    """Whether the baseline was trained for as much as the student, so that a ratio of the two means something.

    Returns:
        ``claimed``: whether a ratio may be claimed; ``reason``: why not, in words, else None; ``tokens`` and ``seconds`` of
        the training of ``student`` and ``baseline``.
    """
    records = {name: stages.get(stage) or {} for name, stage in (("student", "distill"), ("baseline", "baseline"))}
    tokens = {name: record.get("notes", {}).get("tokens") for name, record in records.items()}
    seconds = {name: record.get("notes", {}).get("training_seconds") for name, record in records.items()}
    if not all(seconds.values()):  # of releases that counted whole stages: the student's also measures the teacher
        seconds = {name: record.get("seconds") for name, record in records.items()}
    reasons = []
    for spent, words, least in ((tokens, "tokens", 1.0), (seconds, "seconds of training", SAME_SECONDS)):
        mine, theirs = spent["student"], spent["baseline"]
        if mine is None or theirs is None:
            reasons.append(f"the {words} of one of them are not recorded")
        elif theirs < least * mine:
            digits = 2 if words != "tokens" and mine < 100 else 0
            reasons.append(f"the baseline had {theirs:,.{digits}f} {words}, the student {mine:,.{digits}f}")
    return {"claimed": not reasons, "reason": "; ".join(reasons) or None, "tokens": tokens, "seconds": seconds}


def brief(measures: dict[str, Result]) -> dict[str, Result]:
    """What was measured, without what only the report and comparisons need."""
    found = {}
    for name, result in measures.items():
        spec = find(name)
        found[name] = spec.summary(result) if spec else without_bounds(result)
    return found


def text_warnings(summary: dict[str, Any]) -> list[str]:
    """What the text behind the numbers warns of: too little of it, or text that was trained on nearly word for word."""
    found = []
    if summary.get("enough") is False:
        found.append(
            f"The held-out text has {summary['effective_documents']:.1f} effective documents, which is {TOO_FEW}: "
            "raise `corpus.heldout_tokens` or give more documents."
        )
    context = (summary.get("context") or {}).get("warning")
    if context:
        found.append(context)
    repeated = (summary.get("near_duplicates") or {}).get("heldout")
    if repeated and repeated["documents"]:
        found.append(
            f"{repeated['documents']:,} of {repeated['of']:,} held-out documents are near-duplicates of training documents: "
            "what is measured on them flatters the student."
        )
    return found


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import psutil
    import torch

    return {
        "system": platform.system(),
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=True),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    """The CPU's model name, where the system tells it."""
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
