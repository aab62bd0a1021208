"""Several runs side by side, paired where they were measured on the same text and items."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.core import files
from stillroom.core.bounded import least
from stillroom.core.errors import CorpusError, RunError
from stillroom.core.plain import guard_tables
from stillroom.corpus.pieces import PieceFile
from stillroom.evaluation.intervals import TOO_FEW
from stillroom.evaluation.paired import mcnemar, paired_difference
from stillroom.evaluation.tally import MEASURES, MORE_IS_BETTER
from stillroom.evaluation.words import of, percent
from stillroom.runs.run import Run
from stillroom.runs.stages import require_finished

CONFIDENCE = 0.95

ROWS = (
    ("KL to teacher, nats per token", "kl_to_teacher", 3, 1.0, ""),
    ("same next token", "top1_agreement", 1, 100.0, " %"),
    ("among the five likeliest", "top5_agreement", 1, 100.0, " %"),
    ("bits per byte", "bits_per_byte", 3, 1.0, ""),
)


def compare_runs(folders: list[Path]) -> dict[str, Any]:
    """Students of finished runs side by side, each paired with the first run's.

    Args:
        folders: Runs' folders, two or more.

    Returns:
        ``runs`` (a list of name, folder, student, measures) and ``compared`` with the first: for each measure of fidelity
        the difference with its interval on the held-out documents that both have, for each task McNemar's test where
        both have the same items. ``documents`` has ``both`` and how many ``run`` and ``minus`` held out, where not all are
        the same. ``not_paired`` says why where there is none. The differences are those of
        :func:`stillroom.evaluation.paired.paired_difference`.

    Raises:
        RunError: A run is not finished, or its numbers are of an earlier result of a stage, or fewer than two are given.
    """
    if len(folders) < 2:
        raise RunError(
            "There is nothing to compare: give two runs or more.", "Such as: stillroom compare runs/a runs/b"
        )
    runs = [_read(folder) for folder in folders]
    first = runs[0]
    compared = [_against(first, other) for other in runs[1:]]
    shown = [{key: value for key, value in run.items() if not key.startswith("_")} for run in runs]
    return {"runs": shown, "compared": compared}


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    numbers = path.is_file() and (folder / "measures" / "fidelity.json").is_file()
    # Without a recipe: numbers alone, that were copied.
    made = None if numbers and not (folder / "recipe.yaml").is_file() else Run.open(folder)
    if not numbers:
        raise RunError(f"{folder}: this is not a finished run.", "Finish it with `stillroom run`, or measure it anew.")
    if made is not None:
        require_finished(made)
    try:
        return _numbers_of(folder, files.read_json(path)) | {"_run": made}
    except (KeyError, TypeError, AttributeError):
        raise RunError(
            f"{folder}: summary.json or measures/ holds something else than the numbers of a finished run.",
            f"Write them again: stillroom evaluate {folder}",
        ) from None


def _numbers_of(folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """What a comparison takes from a finished run."""
    measures = folder / "measures"
    tasks = measures / "tasks.json"
    fidelity = files.read_json(measures / "fidelity.json")["result"]
    # What the first pair would miss is missed here, where it is known whose it is.
    _ = fidelity["sums"]["student"]["text_bytes"]
    return {
        "name": summary["name"],
        "folder": str(folder),
        "student": {key: value for key, value in summary["student"].items() if not key.startswith("gguf")},
        "teacher": {key: summary["teacher"].get(key) for key in ("name", "digest", "parameters")},
        "retention": {
            code: entry["retention"]["student"]
            for code, entry in summary.get("measures", {}).get("languages", {}).get("languages", {}).items()
        },
        "bounds": summary.get("bounds", []),
        "_measured_by": [
            [record.get(key) for key in ("digest", "sources", "learned_from")]
            for record in summary.get("teachers") or ()
        ],
        "_fidelity": fidelity,
        "_tasks": files.read_json(tasks)["result"]["tasks"] if tasks.is_file() else {},
    }


def _documents(read: dict[str, Any]) -> list[str]:
    """A name of each document that was measured, from its pieces' addresses, in the order of the sums.

    Empty where the text is no longer there, where documents were put together into groups, and where a document is read
    behind another one of its row.
    """
    fidelity = read["_fidelity"]
    try:
        corpus = read["_run"].stage("corpus") if read["_run"] is not None else None
        if corpus is None or corpus.output_digest != fidelity.get("text"):
            return []
        pieces = PieceFile(corpus.path / "heldout.safetensors")
    except (RunError, CorpusError):
        return []
    if pieces.cross_documents:
        return []
    addresses: list[list[str]] = [[] for _ in pieces.document_sources]
    for number, document in enumerate(pieces.documents.tolist()):
        addresses[document].append(pieces.address(number))
    names = [hashlib.sha256("".join(sorted(found)).encode()).hexdigest() for found in addresses]
    return names if len(names) == len(fidelity["sums"]["student"]["text_bytes"]) == len(set(names)) else []


def _places(other: dict[str, Any], first: dict[str, Any]) -> tuple[list[int], list[int]] | str:
    """Where each run's sums have the documents that both held out, or why none is known to be the same."""
    mine, theirs = (read["_fidelity"]["sums"]["student"]["text_bytes"] for read in (other, first))
    same = [*range(len(mine))], [*range(len(mine))]
    one, two = (read["_fidelity"].get("text") for read in (other, first))
    if one is not None and one == two and mine == theirs:
        return same
    named, wanted = _documents(other), _documents(first)
    places = {name: place for place, name in enumerate(named)}
    pairs = [(places[name], place) for place, name in enumerate(wanted) if name in places]
    if pairs:
        return [one for one, _ in pairs], [two for _, two in pairs]
    # Names are of ids and pieces, which another tokenizer or length changes: the texts may be the same all the same.
    if mine == theirs and _tell_apart(mine):
        return same
    if not named or not wanted:
        return "The runs were measured on different held-out text, or with another `seed` in another order."
    return "The runs have no held-out document in common."


def _tell_apart(sizes: list[int]) -> bool:
    """Whether the same sizes of documents in the same order can hardly be another order: those of fixed size are in any."""
    counts = Counter(sizes).values()
    orders = math.lgamma(len(sizes) + 1) - sum(math.lgamma(count + 1) for count in counts)
    return len(counts) == len(sizes) or orders > math.log(1e6)


def _against(first: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"run": other["name"], "minus": first["name"], "fidelity": {}, "tasks": {}}
    a, b = (run["_fidelity"]["sums"]["student"] for run in (other, first))
    places = _places(other, first)
    if isinstance(places, str):
        found["not_paired"] = places
    else:
        held_out = {"both": len(places[0]), "run": len(a["text_bytes"]), "minus": len(b["text_bytes"])}
        if len(set(held_out.values())) > 1:
            found["documents"] = held_out
        for name, (value, weight, factor) in MEASURES.items():
            # What is measured against the teacher compares nothing where the teachers are two.
            one = all(first[key] == other[key] for key in ("teacher", "_measured_by"))
            if weight == "compared" and not one:
                found["kl_not_paired"] = "KL and the same next token are to different teachers: they are not compared."
                continue
            if least(first["student"], name) != least(other["student"], name):
                found["kl_not_paired"] = "One run's KL is a lower bound, the other's is exact: they are not compared."
                continue
            (mine, weights), (theirs, same) = (
                (np.asarray(sums[value], dtype=np.float64)[there], np.asarray(sums[weight], dtype=np.float64)[there])
                for sums, there in zip((a, b), places, strict=True)
            )
            if np.array_equal(weights, same):
                test = paired_difference(
                    mine * factor, theirs * factor, weights, CONFIDENCE, less=name not in MORE_IS_BETTER
                )
                bounds = None if test["low"] is None else [test["low"], test["high"]]
                found["fidelity"][name] = {"difference": test.pop("value"), "interval": bounds} | test
            elif weight == "compared":
                found["kl_not_paired"] = (
                    "The runs compare other positions with the teacher, as other vocabularies do: KL and the same next token "
                    "are not compared."
                )
    for name, entry in other["_tasks"].items():
        against = first["_tasks"].get(name)
        if against and entry["digest"] == against["digest"] and "right" in entry:
            found["tasks"][name] = mcnemar(
                [bool(value) for value in entry["right"]["student"]],
                [bool(value) for value in against["right"]["student"]],
            )
    return found


def print_comparison(result: dict[str, Any]) -> None:
    """The table in the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    guard_tables()
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("student of")
    for run in result["runs"]:
        table.add_column(run["name"], justify="right")
    table.add_row("parameters", *(f"{run['student']['parameters'] / 1e6:,.1f} M" for run in result["runs"]))
    for title, key, digits, factor, unit in ROWS:
        cells = []
        for run in result["runs"]:
            cells.append(least(run["student"], key) + of(run["student"], key, digits, factor, unit))
        table.add_row(title, *cells)
    for code in sorted({code for run in result["runs"] for code in run["retention"]}):
        kept = [run["retention"].get(code) for run in result["runs"]]
        table.add_row(f"retention {code}", *(percent(entry["value"], 1) if entry else "" for entry in kept))
    console.print(table)
    for entry in result["compared"]:
        console.print(f"{entry['run']} minus {entry['minus']}:", style="bold")
        if "not_paired" in entry:
            console.print(f"  {entry['not_paired']} What they differ by cannot be told from their intervals.")
        if "documents" in entry:
            both, mine, theirs = (entry["documents"][key] for key in ("both", "run", "minus"))
            console.print(f"  Paired on the {both:,} documents that both held out, of {mine:,} and {theirs:,}.")
        if "kl_not_paired" in entry:
            console.print(f"  {entry['kl_not_paired']}")
        for title, key, digits, factor, unit in ROWS:
            if key in entry["fidelity"]:
                found = entry["fidelity"][key]
                value = f"{found['difference'] * factor:+.{digits}f}{unit}"
                if found["interval"] is not None:
                    low, high = (bound * factor for bound in found["interval"])
                    value += f" [{low:+.{digits}f}, {high:+.{digits}f}]"
                votes = f"better in {found['wins']} of {found['n']} documents, sign test p = {found['sign_test_p']:.2g}"
                console.print(f"  {title}: {value}: {found['conclusion']}; {votes}")
        for name, test in entry["tasks"].items():
            console.print(
                f"  {name}: {test['only_first']} items gained, {test['only_second']} lost (McNemar p = {test['p_value']:.2g})"
                + ("" if test["enough"] else f": {TOO_FEW}")
            )
