"""The recipe's words for terms: purpose, decisions, tables and permissions of the operator."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints, field_validator, model_validator

from stillroom.recipe.section import Section

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=2, max_length=500)]
"""A name or a sentence that says something."""


class Decision(Section):
    """What a person decided about a model or text whose terms no one knows; kept in the run's ``terms.json``."""

    subject: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)] = "teacher"
    """``teacher``, ``teacher.original``, ``student`` (a student that exists already), or the name of what it is about."""
    kind: Literal["own", "licence"]
    """``own``: it belongs to the one who decides; ``licence``: its terms were read and allow it."""
    decided_by: Text
    """Who decided: a person's name."""
    decided_at: AwareDatetime
    """When, with the time zone: ``2026-11-24T09:30:00Z``."""
    licence: Text | None = None
    """The licence's name; with `kind: licence`."""
    licence_text: Path | None = None
    """File with the licence's text; with ``kind: licence``. Its digest is recorded and a copy goes into the package."""
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    """The weights that it holds for (as `stillroom terms check` shows); without it, whatever has the name."""
    name_prefix: Text | None = None
    """What the student's name has to begin with."""
    notices: tuple[Text, ...] = ()
    """What the package has to say."""
    non_commercial: bool = False
    """Whether the student may not be used commercially."""
    reason: Text | None = None
    """Why it was decided so."""

    @model_validator(mode="after")
    def _whole(self) -> Decision:
        if self.kind == "licence" and (self.licence is None or self.licence_text is None):
            raise ValueError("a decision of `kind: licence` needs `licence` (its name) and `licence_text` (a file)")
        if self.kind == "own" and (self.licence is not None or self.licence_text is not None):
            raise ValueError("a decision of `kind: own` has no licence of another owner")
        return self

    @field_validator("kind", mode="before")
    @classmethod
    def _spelt(cls, value: object) -> object:
        return "licence" if value == "license" else value

    @field_validator("decided_at")
    @classmethod
    def _past(cls, value: datetime.datetime) -> datetime.datetime:
        if value > datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1):
            raise ValueError("a decision cannot have been made in the future")
        return value


class TermsConfig(Section):
    """What the operator adds to the packaged table of terms. Nothing here switches the gate off."""

    purpose: Literal["commercial", "non_commercial"] = "commercial"
    """What the student is for. Licences for non-commercial use only refuse anything else."""
    decisions: tuple[Decision, ...] = ()
    """Decisions about models and text whose terms the tables do not know."""
    tables: tuple[Path, ...] = ()
    """Tables of one's own (YAML), read beside the packaged one. The stricter row holds."""
    permissions: tuple[Path, ...] = ()
    """Written permissions (YAML; docs/terms.md shows one) of owners whose terms would forbid it."""
    licence_texts: dict[str, Path] = Field(default={})
    """Files with the texts of licences that the package has to carry and Stillroom does not hold, by name."""
