"""One file of numbers a run, and the table in the terminal."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from stillroom.core import files
from stillroom.core.version import tool_version
from stillroom.evaluation.floors import sentence
from stillroom.evaluation.metric import Result, without_bounds
from stillroom.evaluation.registry import find, metric
from stillroom.evaluation.stage import extras
from stillroom.runs.run import MODELS, SUMMARY, Run

FORMAT = 1
TRAINING = ("learning_rate", "learning_rate_from", "sweep", "sweep_cost_share", "step_tokens", "clipped_share")
"""What a summary takes from the notes of the stages that train; those of 0.1.0 have none of it."""


def write_summary(run: Run) -> dict[str, Any]:
    """Gather the records of a finished run into ``summary.json``; returns them.

    Raises:
        RunError: A stage is not finished.
    """
    evaluation = files.read_json(_finished(run, "evaluate") / "evaluation.json")
    corpus = files.read_json(_finished(run, "corpus") / "ledger.json")
    teacher = files.read_json(_finished(run, "capture") / "teacher.json")
    exported = files.read_json(_finished(run, "export") / "export.json")["files"]
    capture = run.stage("capture").record or {}
    stages = {name: run.stage(name).record for name in _names(run)}
    models: dict[str, dict[str, Any]] = evaluation["models"]
    summary: dict[str, Any] = {
        "format": FORMAT,
        "name": run.recipe.name,
        "version": tool_version(),
        "recipe_digest": run.recipe_digest,
        "seed": run.recipe.seed,
        **{name: models[name] for name in MODELS if name in models},
        "compared": evaluation["compared"],
        "bounds": evaluation["bounds"],
        "interval": evaluation["interval"],
        "heldout_documents": evaluation["documents"],
        "tokens": {name: split["tokens"] for name, split in corpus["splits"].items()},
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
    if exported:
        # The smallest accepted file is the one that `stillroom chat` opens.
        summary["student"]["gguf"] = min(exported, key=lambda entry: int(entry["bytes"]))
        summary["student"]["gguf_files"] = exported
    files.write_json(run.path / SUMMARY, summary)
    return summary


def brief(measures: dict[str, Result]) -> dict[str, Result]:
    """What was measured, without what only the report and comparisons need."""
    found = {}
    for name, result in measures.items():
        spec = find(name)
        found[name] = spec.summary(result) if spec else without_bounds(result)
    return found


def print_measures(measures: dict[str, Result]) -> None:
    """Some metrics on standard output: teacher, baseline, student with its interval, McNemar's test where there is one."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for heading in ("teacher", "baseline", "student", "p"):
        table.add_column(heading, justify="right")
    tested = False
    for name, result in measures.items():
        spec = metric(name)
        for key, (value, low, high) in result["bounds"].items():
            if value is not None and not key.startswith(spec.details):
                other = spec.beside(result, key)
                tested = tested or other.p_value is not None
                table.add_row(
                    f"{name}.{key}",
                    *("" if number is None else f"{number:,.4g}" for number in (other.teacher, other.baseline)),
                    # The interval stands under its value, so that the table fits a narrow terminal.
                    f"{value:,.4g}" + ("" if low is None else f"\n[{low:,.3g}, {high:,.3g}]"),
                    "" if other.p_value is None else f"{other.p_value:.2g}",
                )
    console = Console(highlight=False)
    console.print(table)
    if tested:
        console.print("p: McNemar's test, the student against its teacher on the same items.", style="dim")
    for warning in warnings(measures):
        console.print(f"Warning: {warning}")


def warnings(measures: dict[str, Result]) -> list[str]:
    """What metrics warn of."""
    return [warning for result in measures.values() for warning in result.get("warnings", ())]


def print_table(summary: dict[str, Any]) -> None:
    """Teacher, shrunk, repaired, baseline and student side by side on standard output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, title=None, pad_edge=False)
    table.add_column("")
    for heading in ("parameters", "KL to teacher", "same next token", "bits per byte", "decode"):
        table.add_column(heading, justify="right")
    for name in MODELS:
        if name in summary:
            # The interval stands under its value, so that the table fits a narrow terminal.
            row = cells(summary[name], own=name == "teacher")
            table.add_row(name, *(cell.replace(" [", "\n[") for cell in row))
    console.print(table)
    console.print(
        f"KL in nats a token; {summary['interval']}, {summary['heldout_documents']} held-out documents. "
        "shrunk: cut only. repaired: the cut made up for in closed form, where training begins. baseline: trained on the "
        "same text without the teacher.",
        style="dim",
    )
    for bound in summary["bounds"]:
        console.print(f"{'met' if bound['met'] else 'MISSED'}: {sentence(bound)}")
    for warning in warnings(summary["measures"]):
        console.print(f"Warning: {warning}")
    for entry in summary["student"].get("gguf_files", ()):
        console.print(
            f"{entry['type']:<5} {entry['bytes'] / 1e6:,.1f} MB, KL to the PyTorch student {entry['kl_to_pytorch']:.1e}"
        )


def cells(model: dict[str, Any], *, own: bool) -> list[str]:
    """A model's row: parameters, KL, agreement, bits a byte, decode speed, each with its interval."""
    speed = model.get("decode_tokens_per_second")
    return [
        f"{model['parameters'] / 1e6:,.1f} M",
        "0" if own else with_interval(model, "kl_to_teacher", 3),
        "100 %" if own else with_interval(model, "top1_agreement", 1, percent=True),
        with_interval(model, "bits_per_byte", 3),
        f"{speed:,.0f} tok/s" if speed else "",
    ]


def with_interval(model: dict[str, Any], name: str, digits: int, *, percent: bool = False) -> str:
    """A value and its interval, such as ``1.734 [1.69, 1.78]``."""
    factor = 100 if percent else 1
    value = model[name] * factor
    low, high = (bound * factor for bound in model[f"{name}_interval"])
    unit = " %" if percent else ""
    return f"{value:.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]"


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
    """The processor's model name, where the system tells it."""
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _names(run: Run) -> list[str]:
    from stillroom.runs.stages import stages_of

    return [spec.name for spec in stages_of(run.recipe)]


def _finished(run: Run, name: str) -> Path:
    stage = run.stage(name)
    _ = stage.output_digest  # raises where the stage is not finished
    return stage.path
