"""Reads the ``terms.json`` that a student of Stillroom's carries: a claim from elsewhere, checked in shape, evaluated again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from stillroom.core.errors import TermsRefused
from stillroom.terms.statements import MOST_TEACHERS, Statement, StatementKind, Subject
from stillroom.verification.obligations import Obligations

Short = Annotated[str, StringConstraints(max_length=2000)]
Long = Annotated[str, StringConstraints(max_length=1 << 20)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Statement(_Closed):
    kind: StatementKind
    value: Long
    where: Short


class _Teacher(_Closed):
    name: Short
    role: Literal["teacher", "student"]
    generation: Annotated[int, Field(ge=1, le=1000)]
    digest: Short | None
    licence: Short | None
    rows: tuple[Short, ...]
    statements: tuple[_Statement, ...]
    decision: dict[str, Any] | None
    permissions: tuple[Short, ...]

    def subject(self) -> Subject:
        """The teacher as it was evaluated."""
        said = tuple(Statement(item.kind, item.value, item.where) for item in self.statements)
        return Subject(self.role, self.name, said, digest=self.digest)

    def former(self) -> dict[str, Any]:
        """What was decided about it."""
        named = self.decision is not None and all(
            isinstance(self.decision.get(key), str) and self.decision[key] for key in ("decided_by", "decided_at")
        )
        return {"decision": self.decision} if named else {}


class _Corpus(_Closed):
    name: Short
    rows: tuple[Short, ...]
    statements: tuple[_Statement, ...]
    decision: dict[str, Any] | None


class _Text(_Closed):
    name: Short
    text: Long | None


class _Owed(_Closed):
    name_prefix: Short | None
    notices: Annotated[tuple[Short, ...], Field(max_length=10_000)]
    licences: Annotated[tuple[_Text, ...], Field(max_length=1000)]
    use_policies: Annotated[tuple[_Text, ...], Field(max_length=1000)]


class _Terms(_Closed):
    kind: Literal["stillroom-terms"]
    format: Literal[1]
    verdict: Literal["allowed", "allowed_with_conditions", "refused"]
    reasons: tuple[Short, ...]
    conditions: tuple[Short, ...]
    obligations: _Owed
    teachers: Annotated[tuple[_Teacher, ...], Field(min_length=1, max_length=MOST_TEACHERS)]
    corpora: tuple[_Corpus, ...]
    decisions: tuple[dict[str, Any], ...]
    permissions: tuple[dict[str, Any], ...]
    purpose: Literal["commercial", "non_commercial"]
    non_commercial: bool
    table_version: Short
    tables: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Carried:
    """What a student's terms say."""

    teachers: tuple[_Teacher, ...]
    corpora: tuple[Subject, ...]
    obligations: Obligations
    conditions: tuple[str, ...]
    non_commercial: bool


def parse_carried(value: Any, name: str) -> Carried:
    """Check the shape of a ``terms.json``.

    Raises:
        TermsRefused: It is none, or it is the record of a refusal.
    """
    try:
        terms = _Terms.model_validate(value)
    except (ValidationError, RecursionError) as error:
        place = ""
        if isinstance(error, ValidationError):
            mistake = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = f" (`{'.'.join(str(part) for part in mistake['loc'])[:200]}`)"
        raise TermsRefused(
            f"{name}: its terms.json is not one that Stillroom wrote{place}.", "Get the whole package again."
        ) from None
    if terms.verdict == "refused":
        raise TermsRefused(
            f"{name}: its terms.json records a refusal: {(terms.reasons or ('no reason',))[0]}", "Use another teacher."
        )
    return Carried(
        terms.teachers,
        tuple(
            Subject("text", item.name, tuple(Statement(said.kind, said.value, said.where) for said in item.statements))
            for item in terms.corpora
        ),
        Obligations.from_dict(terms.obligations.model_dump(mode="json")),
        terms.conditions,
        terms.non_commercial,
    )
