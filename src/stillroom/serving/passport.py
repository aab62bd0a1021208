"""What a model is, from which teacher, under which terms, what it scored and lost.

A signed package speaks for itself (:mod:`stillroom.verification`); a run and a bare file are described here, and are said to
be unsigned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stillroom.core import files
from stillroom.runs.run import Run

MEASURES = ("kl_to_teacher", "top1_agreement", "top5_agreement", "cross_entropy", "bits_per_byte")


def passport_of_run(run: Run, entry: dict[str, Any]) -> dict[str, Any]:
    """The passport of a run that nobody has signed.

    Args:
        run: The run.
        entry: The line of ``export.json`` for the file that is run.
    """
    summary = _read(run.path / "summary.json")
    teacher = {**summary.get("teacher", {}), **_read(run.path / "capture" / "teacher.json")}
    student = summary.get("student", {})
    return {
        "kind": "run",
        "name": run.recipe.name,
        "signature": {"state": "unsigned run"},
        "file": {name: entry.get(name) for name in ("type", "bytes", "sha256", "kl_to_pytorch", "top1_agreement")},
        "teacher": {name: teacher.get(name) for name in ("name", "family", "licence", "parameters", "digest")},
        **(
            {
                "teachers": [
                    {name: entry.get(name) for name in ("name", "family", "licence", "parameters", "digest")}
                    for entry in summary["teachers"]
                ]
            }
            if summary.get("teachers")
            else {}
        ),
        "student": {"parameters": student.get("parameters")},
        "scores": {name: student.get(name) for name in MEASURES if name in student},
        "intervals": {f"{name}": student[f"{name}_interval"] for name in MEASURES if student.get(f"{name}_interval")},
        "lost": _lost(teacher, student),
        "terms": {"teacher_licence": teacher.get("licence")},
        "warnings": ["Nobody has signed this run."] + ([] if student else ["It has not been evaluated."]),
    }


def passport_of_file(path: Path) -> dict[str, Any]:
    """The passport of a file that says nothing but its own metadata."""
    return {
        "kind": "file",
        "name": path.stem,
        "signature": {"state": "unsigned file"},
        "file": {"bytes": path.stat().st_size, "sha256": files.digest_file(path)},
        "warnings": ["Nothing is known of this file but what it says of itself."],
    }


def _lost(teacher: dict[str, Any], student: dict[str, Any]) -> dict[str, float]:
    """How much worse than its teacher the student is, measure by measure."""
    return {
        name: student[name] - teacher[name]
        for name in ("cross_entropy", "bits_per_byte")
        if isinstance(student.get(name), float) and isinstance(teacher.get(name), float)
    }


def _read(path: Path) -> dict[str, Any]:
    return dict(files.read_json(path)) if path.is_file() else {}
