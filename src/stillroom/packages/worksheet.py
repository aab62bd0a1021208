"""Facts for export control and for the EU's rules on general-purpose models, from a run. It states facts, not legal advice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stillroom.core.errors import RecipeError, TermsRefused

US_CLOSED_WEIGHTS = 1e26
"""ECCN 4E091 is about closed weights trained with more operations than this."""
EU_GENERAL_PURPOSE = 1e23
"""The EU's indicator of a general-purpose model, in training operations."""


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
    """Refuse a destination that a list names. A list is a text file, one name a line; `#` begins a comment.

    Raises:
        TermsRefused: Names the destination, the list and the line.
        RecipeError: A list cannot be read.
    """
    wanted = {_plain(destination): destination for destination in destinations}
    for path in lists:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            raise RecipeError(f"{path}: no such list of denied destinations.", "Give a text file.") from None
        for number, line in enumerate(lines, start=1):
            name = _plain(line.partition("#")[0])
            if name and name in wanted:
                raise TermsRefused(
                    f"The destination {wanted[name]} is on {path}, line {number}.", "The package was not written."
                )


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
