"""What is said of models and texts, and what an operator decided about them. Evaluates nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

KIND = "stillroom-terms"
"""What a document of terms calls itself."""
MOST_TEACHERS = 10_000
"""Models that a chain of students may name."""

StatementKind = Literal["licence", "checkpoint", "origin", "service", "weights", "text"]


@dataclass(frozen=True)
class Statement:
    """One thing that is said of a model or text.

    Attributes:
        kind: ``licence`` (a name), ``checkpoint`` (an exact name on the hub), ``origin`` (what it was made
            from, by a name that is none of the hub's), ``service`` (a service's model), ``weights`` (a digest), or ``text``
            (the text of a licence; empty where it cannot be read).
        value: What is said.
        where: Who says it; ``recipe`` is the operator's own word.
    """

    kind: StatementKind
    value: str
    where: str


Role = Literal["teacher", "student", "text"]
"""What a subject is in a recipe; a student is one that exists already."""
ROLES = get_args(Role)


@dataclass(frozen=True)
class Subject:
    """A model whose outputs or weights are used, or a text.

    Attributes:
        role: ``teacher``, ``student`` (one that exists already) or ``text``.
        name: How people call it; never a path.
        statements: What is said of it.
        policies: Texts of use policies that came with it, by file.
        carried: The terms of a student of Stillroom's, as its ``terms.json`` has them.
        digest: SHA-256 of its weights, where it was taken.
    """

    role: Role
    name: str
    statements: tuple[Statement, ...] = ()
    policies: tuple[tuple[str, str], ...] = ()
    carried: dict[str, Any] | None = None
    digest: str | None = None
    called: str | None = None
    """Its name under the recipe's ``teachers``, or ``NAME.original`` of what the teacher NAME was quantized from, which a
    decision about it has to say: one about ``teacher`` is not about it."""

    @property
    def decided_as(self) -> tuple[str, ...]:
        """What a decision about it may say as its subject."""
        called = self.role if self.called is None else self.called
        # A folder that is called `teacher` is not what a decision about `teacher` means.
        return (called,) if self.name in ROLES else (called, self.name)


@dataclass(frozen=True)
class Decided:
    """An operator's decision, with the text of the licence that it is about."""

    subject: str
    kind: Literal["own", "licence"]
    decided_by: str
    decided_at: str
    licence: str | None = None
    text: str | None = None
    text_sha256: str | None = None
    sha256: str | None = None
    name_prefix: str | None = None
    notices: tuple[str, ...] = ()
    non_commercial: bool = False
    reason: str | None = None

    def record(self) -> dict[str, Any]:
        """What is kept of it."""
        kept = {key: value for key, value in vars(self).items() if key != "text" and value not in (None, (), False)}
        return kept | ({"notices": list(self.notices)} if self.notices else {})
