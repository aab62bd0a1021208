"""A finished run to a package: the layout, and every document in it. Signs nothing.

The same run packs to the same bytes. What depends on the day is listed in ``policy.json`` under ``dated``.
"""

from __future__ import annotations

import datetime
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stillroom.core import files
from stillroom.core.bounded import least
from stillroom.core.errors import RunError
from stillroom.core.outputs import require_apart
from stillroom.core.version import tool_version
from stillroom.packages.bom import bill_of_materials
from stillroom.packages.provenance import operations, statement, student_digests
from stillroom.packages.worksheet import screen, worksheet
from stillroom.runs.run import Run
from stillroom.runs.stages import require_finished
from stillroom.verification.claims import (
    BOM,
    CARD,
    EVALUATION,
    EXPORT,
    LICENCES,
    NOTICE,
    POLICY,
    PROVENANCE,
    TEMPLATE,
    TERMS,
    licence_files,
    weights_of,
)
from stillroom.verification.documents import Policy

FROM_MODEL = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
)
DATED = (f"{BOM}#/metadata/timestamp", f"{POLICY}#/released")


@dataclass(frozen=True)
class PackOptions:
    """What a publisher decides.

    Attributes:
        sequence: Place among the releases of this name.
        released: The day; today in UTC without it.
        grace_days: See ``Policy.offline_grace_days``.
        at_expiry: See ``Policy.at_expiry``.
        safetensors: Carry the full-precision weights too.
        open_weights: Whether the weights are published.
        teacher_operations: Training operations of the teacher, where they are known.
        destinations: Countries or parties that it goes to.
        denied: Lists of destinations that it may not go to.
    """

    sequence: int = 1
    released: datetime.date | None = None
    grace_days: int = 30
    at_expiry: Literal["warn", "refuse"] = "refuse"
    safetensors: bool = False
    open_weights: bool = True
    teacher_operations: float | None = None
    destinations: tuple[str, ...] = ()
    denied: tuple[Path, ...] = ()


def pack(run: Run, target: Path | None = None, options: PackOptions | None = None) -> Path:
    """Write a run's package; returns its folder.

    Args:
        run: A finished run.
        target: The folder to write; ``package`` in the run's folder without it. What is there is replaced.
        options: What the publisher decides.

    Raises:
        TermsRefused: The terms of a teacher or of a text forbid it, or a destination is denied.
        FloorMissed: The student misses a bound of its recipe.
        RunError: The run is not finished, or was changed since its summary was written.
    """
    from stillroom.terms.gate import require_packable, run_verdict

    options = options or PackOptions()
    target = target or run.path / "package"
    # A package that is there is replaced as a whole, with what was put into its folder.
    require_apart(target, options.denied)
    screen(list(options.destinations), list(options.denied))
    if not (run.path / "summary.json").is_file():
        raise RunError(f"{run.path}: the run is not finished.", "Finish it: stillroom run RECIPE.")
    summary = files.read_json(run.path / "summary.json")
    _require_of_this_student(run, summary)
    verdict = run_verdict(run)
    name = package_name(run.recipe.name, verdict.obligations.name_prefix)
    require_packable(verdict, name)
    terms = verdict.as_dict()
    released = options.released or datetime.datetime.now(datetime.UTC).date()
    if target.exists() and not (target / POLICY).is_file():
        raise RunError(f"{target} holds something that is not a package.", "Choose another folder.")
    with files.replacing(target) as beside:
        beside.mkdir()
        _copy_model(run, beside, options.safetensors)
        provenance = statement(run, summary, beside)
        written = {
            PROVENANCE: provenance,
            TERMS: terms,
            EXPORT: worksheet(
                operations(run, summary),
                options.teacher_operations,
                options.open_weights,
                list(options.destinations),
            )
            | {"student_digests": student_digests(run)},
            EVALUATION: evaluation(summary),
            POLICY: Policy(
                format=1,
                name=name,
                sequence=options.sequence,
                released=released,
                minimum_runtime=".".join(tool_version().split(".")[:3]),
                offline_grace_days=options.grace_days,
                at_expiry=options.at_expiry,
                dated=DATED,
            ).model_dump(mode="json"),
            BOM: bill_of_materials(
                name=name,
                sequence=options.sequence,
                released=released.isoformat(),
                folder=beside,
                summary=summary,
                provenance=provenance,
                terms=terms,
            ),
        }
        for document, content in written.items():
            files.write_json(beside / document, content)
        _write_obliged(beside, terms["obligations"])
        files.write_text(beside / CARD, _card(name, options.sequence, summary, provenance, terms, beside))
        _readable(beside)
    return target


def _require_of_this_student(run: Run, summary: dict[str, Any]) -> None:
    """Refuse numbers of another student than the one that is packed: a stage may have been done again since.

    Raises:
        RunError: They are.
    """
    require_finished(run)
    path = run.stage("evaluate").path / "evaluation.json"
    try:
        measured = dict(files.read_json(path)["models"]["student"])
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(
            f"{path}: the student's numbers cannot be read.", f"Measure again: stillroom run {run.path}"
        ) from None
    told = summary.get("student", {}) if isinstance(summary, dict) else {}
    if any(told.get(key) != value for key, value in measured.items()):
        raise RunError(
            f"{run.path}: its summary is of an earlier student than the one that is here.",
            f"Write it again: stillroom report {run.path}",
        )


def package_name(name: str, prefix: str | None) -> str:
    """The package's name: the run's, behind the prefix that the terms oblige."""
    if prefix and not name.startswith(prefix):
        return f"{prefix}-{name}"[:64]
    return name


def evaluation(summary: dict[str, Any]) -> dict[str, Any]:
    """``eval.json``: scores of student and teacher, and every bound of the recipe."""
    return {
        "format": 1,
        "scores": _numbers(summary["student"]),
        "teacher": _numbers(summary["teacher"]),
        "compared": summary.get("compared", {}),
        "bounds": summary.get("bounds", []),
        "interval": summary.get("interval"),
        "heldout_documents": summary.get("heldout_documents"),
        "machine": {key: summary.get("machine", {}).get(key) for key in ("processor", "cores")},
    }


def _numbers(scores: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in scores.items() if key not in ("gguf", "gguf_files")}


def _copy_model(run: Run, folder: Path, safetensors: bool) -> None:
    weights = folder / "weights"
    weights.mkdir()
    exported = files.read_json(run.stage("export").path / "export.json")
    if not exported["files"]:
        raise RunError(
            f"{run.path}: the recipe exports no GGUF file.", "Add `export: {gguf: [Q8_0]}` and run it again."
        )
    for entry in exported["files"]:
        source = run.path / entry["path"]
        _copy_accepted(run, source, weights / source.name, entry["sha256"])
    if "onnx" in exported:
        _copy_onnx(run, exported["onnx"], weights / "onnx")
    model = run.stage("distill").path / "model"
    for name in FROM_MODEL:
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)
    if (model / "chat_template.jinja").is_file():
        shutil.copyfile(model / "chat_template.jinja", folder / TEMPLATE)
    if safetensors:
        for source in sorted(model.glob("*.safetensors*")):
            shutil.copyfile(source, weights / source.name)


def _copy_onnx(run: Run, entry: dict[str, Any], target: Path) -> None:
    """The graph and what a reader needs beside it: its weights, the tokenizer, the config."""
    source = run.path / entry["path"]
    accepted = entry.get("files")
    if not accepted:
        raise RunError(
            f"{source}: its export recorded no digests; an older Stillroom wrote it.",
            f"Export again: stillroom export {run.path}",
        )
    target.mkdir()
    for name, digest in accepted.items():
        _copy_accepted(run, source / name, target / name, digest)


def _copy_accepted(run: Run, source: Path, target: Path, digest: str) -> None:
    if not source.is_file() or files.digest_file(source) != digest:
        raise RunError(f"{source} is not the file that was accepted.", f"Export again: stillroom export {run.path}")
    shutil.copyfile(source, target)


def _write_obliged(folder: Path, obligations: dict[str, Any]) -> None:
    """Notices, licences and use policies that the terms oblige."""
    if obligations["notices"]:
        files.write_text(folder / NOTICE, "\n\n".join(obligations["notices"]) + "\n")
    obliged = [(named["name"], named["text"]) for named in (*obligations["licences"], *obligations["use_policies"])]
    for name, text in licence_files(obliged).items():
        files.write_text(folder / LICENCES / name, text)


def _card(
    name: str, sequence: int, summary: dict[str, Any], provenance: dict[str, Any], terms: dict[str, Any], folder: Path
) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(  # noqa: S701 - Markdown from our own numbers
        loader=PackageLoader("stillroom.packages", "pages"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    student, teacher = summary["student"], summary["teacher"]
    rows = [
        {"name": label, "teacher": _cell(teacher, key), "student": _cell(student, key)}
        for key, label in (
            ("bits_per_byte", "bits per byte"),
            ("kl_to_teacher", "KL to the teacher, nats per token"),
            ("top1_agreement", "same next token as the teacher"),
            ("decode_tokens_per_second", "tokens per second"),
        )
    ]
    obliged = terms["obligations"]
    return environment.get_template("card.md.jinja").render(
        name=name,
        sequence=sequence,
        version=tool_version(),
        teacher=teacher,
        taught_by=taught_by(summary),
        student=student,
        rows=rows,
        heldout_documents=summary.get("heldout_documents", "the"),
        ancestors=provenance["predicate"]["buildDefinition"]["internalParameters"]["ancestors"],
        verdict=str(terms["verdict"]).replace("_", " ").capitalize() + ".",
        reasons=terms["reasons"],
        notices=obliged["notices"],
        licences=[named["name"] for named in (*obliged["licences"], *obliged["use_policies"])],
        weights=[file.relative_to(folder).as_posix() for file in weights_of(folder)],
    )


def taught_by(summary: dict[str, Any]) -> str:
    """The names of all teachers of a run."""
    names = [str(entry["name"]) for entry in summary.get("teachers") or [summary["teacher"]]]
    return ", ".join(names[:-1]) + (" and " if names[1:] else "") + names[-1]


def _cell(model: dict[str, Any], key: str) -> str:
    value = model.get(key)
    return f"{least(model, key)}{value:.4g}" if isinstance(value, int | float) else "–"


def _readable(folder: Path) -> None:
    """The same rights whatever the umask: rights travel in archives."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
