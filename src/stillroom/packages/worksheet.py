"""Facts for export control and for the EU's rules on general-purpose models, from a run. It states facts, not legal advice."""

from __future__ import annotations

import codecs
import csv
import unicodedata
from pathlib import Path
from typing import Any

from stillroom.core.errors import RecipeError, TermsRefused

US_CLOSED_WEIGHTS = 1e26
"""ECCN 4E091 is about closed weights trained with more operations than this."""
EU_GENERAL_PURPOSE = 1e23
"""The EU's indicator of a general-purpose model, in training operations."""
LONGEST_LINE = 100_000
"""Characters of a line of a list of denied destinations: a field of any of them fits what CSV is read with."""


def worksheet(
    operations: dict[str, Any], teacher_operations: float | None, open_weights: bool, destinations: list[str]
) -> dict[str, Any]:
    """The export-control fact sheet ``export.json``.

    Args:
        operations: What the run spent; see ``provenance.operations``.
        teacher_operations: Training operations of the teacher, where they are known.
        open_weights: Whether the weights are published.
        destinations: Countries or parties that it goes to, already screened.
    """
    spent = float(operations["total"])
    threshold = teacher_operations / 3 if teacher_operations else EU_GENERAL_PURPOSE / 3
    return {
        "format": 1,
        "training_operations": {"student": spent, "teacher": teacher_operations},
        "weights": "open" if open_weights else "closed",
        "us": {
            "rule": "ECCN 4E091: closed weights above 1e26 training operations",
            "closed_weights_above_threshold": not open_weights
            and spent + (teacher_operations or 0.0) > US_CLOSED_WEIGHTS,
        },
        "eu": {
            "general_purpose_indicator": EU_GENERAL_PURPOSE,
            "above_indicator": spent > EU_GENERAL_PURPOSE,
            "modifier_threshold": threshold,
            "modifier_threshold_from": "one third of the teacher's training operations"
            if teacher_operations
            else "the fallback of 1e23 / 3: the teacher's training operations are not known",
            "counts_as_provider_by_modification": spent > threshold,
        },
        "destinations": sorted(destinations),
        "note": "Facts for those who must decide; not legal advice.",
    }


def screen(destinations: list[str], lists: list[Path]) -> None:
    """Refuse a destination that a list names. A list is a text file with one name, or one row of a table, a line; `#` begins a
    comment.

    Names are compared without case, accents and punctuation. Of a row with `;`, `,`, `|` or tabs each field counts.

    Raises:
        TermsRefused: Names the destination, the list and the line.
        RecipeError: A list cannot be read, or nothing would be screened: no name, or no destination.
    """
    if lists and not destinations:
        raise RecipeError("Lists of denied destinations are given, and no destination.", "Name it: --to DESTINATION.")
    wanted = {_plain(destination): destination for destination in destinations}
    if "" in wanted:
        raise RecipeError(f"{wanted['']!r} is no name of a destination.", "Write it as the lists do.")
    for path in lists:
        named = False
        for number, line in enumerate(_lines(path), start=1):
            names = _names(line, f"{path}, line {number}")
            named |= bool(names)
            for name in sorted(names & wanted.keys()):
                raise TermsRefused(
                    f"The destination {wanted[name]} is on {path}, line {number}.", "The package was not written."
                )
        if not named:
            raise RecipeError(f"{path}: this list of denied destinations names none.", "Write one name a line.")


def _lines(path: Path) -> list[str]:
    """The lines of a list: UTF-8, or UTF-16 with the mark that programs write first."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecipeError(
            f"{path}: the list of denied destinations cannot be read: {error.strerror}.", "Give a text file."
        ) from None
    try:
        text = data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise RecipeError(f"{path}: the list of denied destinations is not UTF-8 text.", "Save it as UTF-8.")
    return text.splitlines()


def _names(line: str, where: str) -> set[str]:
    """What a line names: itself, and each field where it is a row of a table."""
    said = line.partition("#")[0]
    if not said.strip():
        return set()
    if len(said) > LONGEST_LINE:
        raise RecipeError(f"{where}: cannot be read: it has {len(said):,} characters.", "Write one name a line.")
    found = {_plain(line), _plain(said)}
    for delimiter in ";,|\t":
        try:
            found.update(_plain(field) for row in csv.reader([said], delimiter=delimiter) for field in row)
        except csv.Error as error:
            raise RecipeError(f"{where}: cannot be read: {error}.", "Write one name a line.") from None
    return found - {""}


def _plain(text: str) -> str:
    """A name as it is compared: letters and digits of one form, without case and accents, single blanks for all else."""
    letters = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    kept = (sign for sign in letters if not unicodedata.combining(sign) and unicodedata.category(sign) != "Cf")
    return " ".join("".join(" " if unicodedata.category(sign)[0] in "PSZ" else sign for sign in kept).split())
