"""What a model is, from which teacher, under which terms, what it scored and lost.

A signed package describes itself (:mod:`stillroom.verification`); a run and a bare file are described here, and are said to
be unsigned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stillroom.core import files
from stillroom.core.bounded import BOUNDED
from stillroom.inspection.gguf_header import read_gguf
from stillroom.runs.run import Run

MEASURES = ("kl_to_teacher", "top1_agreement", "top5_agreement", "cross_entropy", "bits_per_byte")


def passport_of_run(run: Run, entry: dict[str, Any]) -> dict[str, Any]:
    """The provenance summary of a run that no one has signed.

    Args:
        run: The run.
        entry: The line of ``export.json`` for the file that is run.
    """
    summary = _read(run.path / "summary.json")
    teacher = {**summary.get("teacher", {}), **_read(run.path / "capture" / "teacher.json")}
    student = summary.get("student", {})
    measured = {each.get("sha256") for each in student.get("gguf_files") or ()}
    warnings = ["No one has signed this run."]
    if not student:
        warnings.append("It has not been evaluated.")
    elif entry.get("sha256") not in measured:
        # Exported since: what the summary says is of another student.
        student = {}
        warnings.append("It has not been evaluated since this file was exported.")
    record = _read(run.path / "terms.json")
    judged = [{name: each.get(name) for name in ("name", "role", "licence")} for each in record.get("teachers", ())]
    licences = {each["name"]: each["licence"] for each in judged}
    teachers = [
        {name: each.get(name) for name in ("name", "family", "parameters", "digest")}
        | {"licence": each.get("licence") or licences.get(each.get("name"))}
        for each in summary.get("teachers") or []
    ] or judged
    return {
        "kind": "run",
        "name": run.recipe.name,
        "signature": {"state": "unsigned run"},
        "file": {name: entry.get(name) for name in ("type", "bytes", "sha256", "kl_to_pytorch", "top1_agreement")},
        "teacher": {name: teacher.get(name) for name in ("name", "family", "licence", "parameters", "digest")},
        **({"teachers": teachers} if teachers else {}),
        "student": {"parameters": student.get("parameters")},
        "scores": {name: student.get(name) for name in (*MEASURES, *BOUNDED.values()) if name in student},
        "intervals": {f"{name}": student[f"{name}_interval"] for name in MEASURES if student.get(f"{name}_interval")},
        "lost": _lost(teacher, student),
        "terms": {"teacher_licence": teacher.get("licence"), **_judged(record)},
        "warnings": warnings,
    }


def passport_of_file(path: Path) -> dict[str, Any]:
    """The provenance summary of a file that says nothing but its own metadata."""
    return {
        "kind": "file",
        "name": path.stem,
        "signature": {"state": "unsigned file"},
        "file": {"bytes": path.stat().st_size, "sha256": files.digest_file(path)},
        "says_of_itself": _says(path),
        "warnings": ["Nothing is known of this file but what it says of itself."],
    }


def _says(path: Path) -> dict[str, Any]:
    """What a GGUF file's own metadata say of its name, its licence and what it was made from."""
    metadata = read_gguf(path).metadata
    bases = [metadata.get(f"general.base_model.{number}.name") for number in range(8)]
    found = {
        "name": metadata.get("general.name"),
        "licence": metadata.get("general.license"),
        "made_from": [base for base in bases if isinstance(base, str)],
    }
    return {name: value for name, value in found.items() if value and isinstance(value, str | list)}


def _judged(record: dict[str, Any]) -> dict[str, Any]:
    """What the terms of a run's sources allow and ask for; nothing of a run that was not evaluated."""
    if not record:
        return {}
    owed = record.get("obligations") or {}
    return {
        "verdict": record.get("verdict"),
        "conditions": record.get("conditions") or [],
        "non_commercial": bool(record.get("non_commercial")),
        "name_prefix": owed.get("name_prefix"),
        "notices": owed.get("notices") or [],
        "licences": [text["name"] for text in owed.get("licences") or []],
        "use_policies": [text["name"] for text in owed.get("use_policies") or []],
    }


def in_words(passport: dict[str, Any]) -> list[str]:
    """Where a model comes from, and its users' obligations, in sentences: one of each, most important first.

    Args:
        passport: What a package, a run or a file says of itself.
    """
    name, kind = str(passport.get("name") or "This model"), passport.get("kind")
    if kind == "file":
        says = passport.get("says_of_itself") or {}
        told = [
            f"its name is {says['name']}" if says.get("name") else "",
            f"its licence is {says['licence']}" if says.get("licence") else "",
            f"it was made from {' and '.join(says['made_from'])}" if says.get("made_from") else "",
        ]
        told = [each for each in told if each]
        return [
            f"{name} is a bare file that no one has signed.",
            *([f"It says of itself that {', '.join(told)}; no one vouches for it."] if told else []),
            "From which teacher it learnt, and its users' obligations, are not recorded with it: ask who gave it to you.",
        ]
    found = [_origin(name, passport)]
    signature = passport.get("signature") or {}
    if signature.get("state") == "verified":
        signers = len(signature.get("signers") or [])
        found.append(
            f"{passport.get('publisher') or 'Its publisher'} published it on {str(passport.get('released'))[:10]}, signed by "
            f"{signers} {'key' if signers == 1 else 'keys'}; the signatures were checked here."
        )
    else:
        found.append("No one has signed it: what is said here is the run's own record.")
    return [*found, *_owed(passport.get("terms") or {})]


def _origin(name: str, passport: dict[str, Any]) -> str:
    teachers = passport.get("teachers") or ([passport["teacher"]] if passport.get("teacher") else [])
    told: dict[str, str] = {}
    for teacher in teachers:
        known = str(teacher.get("name") or "")
        if known and teacher.get("role", "teacher") == "teacher":
            licence = teacher.get("licence")
            words = "the publisher's own" if licence == "own" else f"licence: {licence}"
            told[known] = f"{known} ({words if licence else 'no licence is recorded for it'})"
    if not told:
        return f"{name} is a student; its record names no teacher."
    return f"{name} is a student, distilled from {' and '.join(told.values())}."


def _owed(terms: dict[str, Any]) -> list[str]:
    """What follows from the terms of the sources."""
    verdict = terms.get("verdict")
    if verdict is None:
        return ["The terms of its sources have not been evaluated: find out what they allow before you pass it on."]
    found = []
    if verdict == "refused":
        found.append("The terms of its sources do not allow it to be passed on.")
    if terms.get("non_commercial"):
        found.append("It may not be used commercially.")
    if prefix := terms.get("name_prefix"):
        found.append(f"Whatever is made of it has a name that begins with {prefix}.")
    if notices := terms.get("notices"):
        found.append("Anyone who passes it on shows: " + "; ".join(f"“{notice}”" for notice in notices))
    if licences := terms.get("licences"):
        found.append(f"Anyone who passes it on adds the text of the {_and(licences, 'licence', 'licences')}.")
    if policies := terms.get("use_policies"):
        found.append(f"Its users keep to the {_and(policies, 'use policy', 'use policies')}.")
    found += [f"Condition: {condition}" for condition in terms.get("conditions") or []]
    if not found:
        found.append("The terms of its sources ask for nothing more.")
    return found


def _and(names: list[str], one: str, several: str) -> str:
    return f"{one if len(names) == 1 else several} {' and '.join(map(str, names))}"


def _lost(teacher: dict[str, Any], student: dict[str, Any]) -> dict[str, float]:
    """How much worse than its teacher the student is, measure by measure."""
    return {
        name: student[name] - teacher[name]
        for name in ("cross_entropy", "bits_per_byte")
        if isinstance(student.get(name), float) and isinstance(teacher.get(name), float)
    }


def _read(path: Path) -> dict[str, Any]:
    return dict(files.read_json(path)) if path.is_file() else {}
