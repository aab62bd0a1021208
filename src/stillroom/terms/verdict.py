"""The licence check itself: from what models and texts say of themselves, and tables of terms, to a result. Reads no files.

Every statement of a subject is looked up: the licence that it states, the text that it carries, its exact name, and what it
was made from. The strictest of the rows that are found holds, so that no statement can cover another. What no row knows needs
a person's decision; what a row forbids needs the owner's written permission. There is no other way past.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from stillroom.core.files import digest_bytes
from stillroom.terms.carried import parse_carried
from stillroom.terms.statements import KIND, MOST_TEACHERS, Decided, Statement, Subject
from stillroom.terms.table import Permitted, Row, Table
from stillroom.terms.texts import held_text, is_same, normal
from stillroom.verification.obligations import Obligations

Outcome = Literal["allowed", "allowed_with_conditions", "refused"]
FORMAT = 1


@dataclass
class Verdict:
    """May it be done, why, and what follows."""

    verdict: Outcome
    reasons: list[str]
    conditions: list[str]
    obligations: Obligations
    teachers: list[dict[str, Any]]
    corpora: list[dict[str, Any]]
    decisions: list[dict[str, Any]]
    permissions: list[dict[str, Any]]
    purpose: str
    non_commercial: bool
    table_version: str
    tables: list[dict[str, str]]
    todo: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The document ``terms.json``: the same for the same recipe, whatever the day."""
        return {
            "kind": KIND,
            "format": FORMAT,
            "verdict": self.verdict,
            "reasons": self.reasons,
            "conditions": self.conditions,
            "obligations": self.obligations.as_dict(),
            "teachers": self.teachers,
            "corpora": self.corpora,
            "decisions": self.decisions,
            "permissions": self.permissions,
            "purpose": self.purpose,
            "non_commercial": self.non_commercial,
            "table_version": self.table_version,
            "tables": self.tables,
        }


@dataclass
class _Case:
    """What is gathered while subjects are evaluated."""

    tables: Sequence[Table]
    permissions: Sequence[Permitted]
    decisions: Sequence[Decided]
    purpose: str
    today: datetime.date
    texts: dict[str, str]
    reasons: list[str] = field(default_factory=list)
    conditions: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    todos: list[str] = field(default_factory=list)
    owed: Obligations = field(default_factory=Obligations)
    used: dict[str, Decided] = field(default_factory=dict)
    permitted: dict[str, Permitted] = field(default_factory=dict)
    non_commercial: bool = False


def judge(
    teachers: Sequence[Subject],
    corpora: Sequence[Subject],
    tables: Sequence[Table],
    *,
    permissions: Sequence[Permitted] = (),
    decisions: Sequence[Decided] = (),
    purpose: Literal["commercial", "non_commercial"] = "commercial",
    texts: dict[str, str] | None = None,
    today: datetime.date | None = None,
) -> Verdict:
    """Evaluate teachers and texts together; obligations are the union of all.

    Args:
        teachers: Models whose outputs or weights are used. One that is itself a student of Stillroom's brings what it carries,
            and everything that it was made from is evaluated again, by the tables of today.
        corpora: Texts.
        tables: The packaged table first, then the operator's.
        permissions: Written permissions of owners.
        decisions: Decisions about what no table knows.
        purpose: What the student is for.
        texts: Texts of licences that the operator supplies, by name.
        today: The day on which permissions have to be valid.

    Raises:
        TermsRefused: What a teacher carries is not a document of terms.
    """
    case = _Case(
        tables, permissions, decisions, purpose, today or datetime.datetime.now(datetime.UTC).date(), texts or {}
    )
    known: dict[str, dict[str, Any]] = {}
    for teacher in teachers:
        for generation, subject, former in _with_ancestors(teacher, case):
            entry = _judge_model(case, subject, generation, former)
            # Two ways to the same teacher are one teacher, at the nearest generation.
            key = repr((entry["name"], entry["role"], entry["statements"]))
            if key not in known or known[key]["generation"] > generation:
                known[key] = entry
    judged = [_judge_text(case, corpus) for corpus in corpora]
    if case.non_commercial:
        case.conditions.insert(0, "Non-commercial use only, of the student and of every student of it.")
    prefixes = sorted(case.owed.prefixes)
    if len(prefixes) > 1 and not any(all(name.startswith(each) for each in prefixes) for name in prefixes):
        case.refusals.append(f"The student's name would have to begin with {' and with '.join(prefixes)} at once.")
        case.todos.append("Leave one of these teachers out, or get a written permission of one owner.")
    reasons = _unique([*case.refusals, *case.reasons])
    refused = bool(case.refusals)
    outcome: Outcome = "refused" if refused else "allowed_with_conditions" if case.conditions else "allowed"
    return Verdict(
        verdict=outcome,
        reasons=reasons,
        conditions=_unique(case.conditions),
        obligations=case.owed,
        teachers=sorted(known.values(), key=lambda entry: entry["generation"]),
        corpora=judged,
        decisions=[decided.record() for _, decided in sorted(case.used.items())],
        permissions=[_permission_record(permitted) for _, permitted in sorted(case.permitted.items())],
        purpose=purpose,
        non_commercial=case.non_commercial,
        table_version=tables[0].content.version,
        tables=[{"name": table.name, "version": table.content.version, "sha256": table.sha256} for table in tables],
        todo=case.todos[0] if case.todos else "",
    )


def _with_ancestors(teacher: Subject, case: _Case) -> Iterable[tuple[int, Subject, dict[str, Any]]]:
    """A teacher, and everything that it carries, with its generation and what was decided about it before."""
    if teacher.carried is None:
        yield 1, teacher, {}
        return
    carried = parse_carried(teacher.carried, teacher.name)
    if teacher.statements:
        # What a student's files say of it besides its terms is evaluated too; without it, its terms are all there is to say.
        yield 1, teacher, {"carried": True}
    case.owed.add(carried.obligations)
    case.non_commercial |= carried.non_commercial
    if carried.non_commercial and case.purpose != "non_commercial":
        _refuse_commercial(case, f"{teacher.name}: its own terms are for non-commercial use only.")
    case.reasons.append(
        f"{teacher.name}: a student made with Stillroom; its terms.json names {len(carried.teachers)} teachers."
    )
    case.conditions.extend(carried.conditions)
    for entry in carried.teachers[:MOST_TEACHERS]:
        yield entry.generation + 1, entry.subject(), entry.former()
    for text in carried.corpora:
        _judge_text(case, text)


def _judge_model(case: _Case, subject: Subject, generation: int, former: dict[str, Any]) -> dict[str, Any]:
    """One model: the rows that its statements find, what they forbid, and its obligations."""
    rows, unknown = _look_up(case, subject)
    decided = _decision_for(case, subject)
    lifted: list[str] = []
    for row in rows:
        permitted = _permission_for(case, subject, row, generation)
        if row.outputs == "forbidden":
            if permitted is None:
                case.refusals.append(f"{subject.name}: {row.reason()}{_without_force(case, subject, row, generation)}")
                case.todos.append(_how_to_permit(row))
                continue
            lifted.append(permitted.sha256)
            case.conditions.append(_permitted_words(subject, permitted))
        elif row.outputs == "non_commercial" and permitted is None:
            case.non_commercial = True
            if case.purpose != "non_commercial":
                why_not = _without_force(case, subject, row, generation)
                _refuse_commercial(case, f"{subject.name}: {row.reason()}{why_not}")
        elif row.outputs == "non_commercial" and permitted is not None:
            lifted.append(permitted.sha256)
            case.conditions.append(_permitted_words(subject, permitted))
        case.reasons.append(f"{subject.name}: {row.reason()}")
        case.conditions.extend(row.conditions)
        _owe(case, subject, row)
    record = decided.record() if decided is not None else former.get("decision")
    if (unknown or not rows) and not former.get("carried"):
        if decided is not None:
            _apply(case, subject, decided)
        elif former.get("decision"):
            words = former["decision"]
            case.conditions.append(
                f"{subject.name}: rests on the decision of {words['decided_by']} at {words['decided_at']}, "
                "which its student carries."
            )
        else:
            said = unknown[0] if unknown else "it says nothing of its licence"
            case.refusals.append(f"{subject.name}: its terms are not known: {said}.{_of_other_weights(case, subject)}")
            whose = subject.decided_as[0] if generation == 1 else subject.name
            case.todos.append(
                "Read its licence and add a decision to the recipe (docs/terms.md). For a model of your own:\n"
                "    terms:\n"
                "      decisions:\n"
                f"      - {{subject: {whose}, kind: own, decided_by: YOUR NAME, decided_at: YYYY-MM-DDT00:00:00Z}}\n"
                "  Under a licence: `kind: licence, licence: ITS NAME, licence_text: FILE` in place of `kind: own`."
            )
    elif decided is not None:
        _restrict(case, subject, decided)
    return {
        "name": subject.name,
        "role": subject.role,
        "generation": generation,
        "digest": subject.digest,
        "licence": "; ".join(row.title for row in rows) or (record or {}).get("licence") or ("own" if record else None),
        "rows": [row.id for row in rows],
        "statements": [{"kind": item.kind, "value": item.value, "where": item.where} for item in subject.statements],
        "decision": record,
        "permissions": lifted,
    }


def _judge_text(case: _Case, subject: Subject) -> dict[str, Any]:
    """One text: what is not stated is a gap that is told, what a row forbids is refused."""
    rows, unknown = _look_up(case, subject)
    for row in rows:
        permitted = _permission_for(case, subject, row, 1)
        if row.outputs == "forbidden" and permitted is None:
            case.refusals.append(f"The text {subject.name}: {row.reason()}{_without_force(case, subject, row, 1)}")
            case.todos.append(_how_to_permit(row))
            continue
        if permitted is not None and row.outputs != "allowed":
            case.conditions.append(_permitted_words(subject, permitted))
        elif row.outputs == "non_commercial":
            case.non_commercial = True
            if case.purpose != "non_commercial":
                _refuse_commercial(case, f"The text {subject.name}: {row.reason()}")
        case.reasons.append(f"The text {subject.name}: {row.reason()}")
        case.conditions.extend(row.conditions)
        if row.attribution:
            case.owed.notices.add(f"Trained on text of {subject.name} ({row.title}).")
        if row.text.holds is None:
            _owe(case, subject, row)
    decided = _decision_for(case, subject)
    if decided is not None and rows and not unknown:
        _restrict(case, subject, decided)
        decided = None
    elif decided is not None:
        _apply(case, subject, decided)
    elif unknown or not rows:
        said = unknown[0] if unknown else "no licence is stated"
        case.conditions.append(f"A gap: the text {subject.name}: {said}; no one has said that it may be used so.")
    return {
        "name": subject.name,
        "rows": [row.id for row in rows],
        "statements": [{"kind": item.kind, "value": item.value, "where": item.where} for item in subject.statements],
        "decision": decided.record() if decided is not None else None,
    }


def _look_up(case: _Case, subject: Subject) -> tuple[list[Row], list[str]]:
    """Every row that a statement finds, and the statements that none knows."""
    rows: dict[str, Row] = {}
    unknown: list[str] = []
    own = False
    for item in subject.statements:
        if item.kind == "text":
            found, trouble = _recognise(case, item)
            unknown.extend(trouble)
        else:
            found = [row for table in case.tables for row in table.find(item.kind, item.value)]
            if not found and item.kind in ("licence", "origin", "service"):
                unknown.append(f"{item.where} says {item.value!r}, which no table knows")
        own |= item.where != "recipe" and (bool(found) or item.kind in ("licence", "text", "service"))
        for row in found:
            rows.setdefault(row.id, row)
    if subject.role != "text" and rows and not own:
        # The operator's own word is not the model's: a decision has to be behind it.
        unknown.append("the model itself states no licence, only the recipe does")
    return list(rows.values()), unknown


def _recognise(case: _Case, item: Statement) -> tuple[list[Row], list[str]]:
    """The row of a licence's text. A text that only looks like a known one is not known."""
    if not item.value:
        return [], [f"{item.where} cannot be read as the text of a licence"]
    for table in case.tables:
        row = table.recognise(item.value)
        if row is None:
            continue
        if row.text.holds is not None and not is_same(row.text.holds, item.value):
            return [row], [f"{item.where} begins as the {row.title} does and is another text"]
        if row.text.sha256 and digest_bytes(item.value.encode()) not in row.text.sha256:
            return [row], [
                f"{item.where} begins as the {row.title} does, and its digest is another than that of the text read"
            ]
        return [row], []
    return [], [f"{item.where} is the text of a licence that no table knows"]


def _owe(case: _Case, subject: Subject, row: Row) -> None:
    """Add what a row asks the student to carry."""
    owed = row.obligations
    if owed.name_prefix:
        case.owed.prefixes.add(owed.name_prefix)
    case.owed.notices.update(owed.notices)
    if subject.role != "text":
        verb = "Made from" if subject.role == "student" else "Distilled from"
        case.owed.notices.add(f"{verb} {subject.name} ({row.title}).")
    own = [item.value for item in subject.statements if item.kind == "text" and item.value]
    # Of several texts, the one that is this licence.
    own.sort(key=lambda text: not any(table.recognise(text) == row for table in case.tables))
    for name in owed.licences:
        text = case.texts.get(name) or (own[0] if own else None) or held_text(name)
        if text is not None and name == "MIT":
            text = text.replace("<year> <copyright holders>", f"the authors of {subject.name}")
        case.owed.add_licence(name, text)
    for name in owed.use_policies:
        # Licences of this kind carry their use limits as an attachment.
        attached = (
            next((text for text in own if "attachment a" in normal(text)), None) if "Attachment" in name else None
        )
        text = case.texts.get(name) or next((text for _, text in subject.policies), None) or attached
        case.owed.add_policy(name, text)


def _apply(case: _Case, subject: Subject, decided: Decided) -> None:
    """A decision stands in for what no table knows."""
    case.used[subject.name] = decided
    if decided.kind == "own":
        case.reasons.append(
            f"{subject.name}: the operator's own, as {decided.decided_by} decided at {decided.decided_at}."
        )
    else:
        case.reasons.append(
            f"{subject.name}: {decided.licence}: allowed by the decision of {decided.decided_by} at {decided.decided_at} "
            f"(text supplied, SHA-256 {decided.text_sha256})."
        )
        case.conditions.append(f"{subject.name}: rests on the decision of {decided.decided_by}, not on the table.")
        case.owed.add_licence(str(decided.licence), decided.text)
        case.owed.notices.add(f"Distilled from {subject.name} ({decided.licence}).")
    _restrict(case, subject, decided)


def _restrict(case: _Case, subject: Subject, decided: Decided) -> None:
    """What a decision asks for besides: it holds where a table knows the terms, too, for it is only stricter."""
    if decided.name_prefix or decided.notices or decided.non_commercial:
        case.used[subject.name] = decided
    if decided.name_prefix:
        case.owed.prefixes.add(decided.name_prefix)
    case.owed.notices.update(decided.notices)
    if decided.non_commercial:
        case.non_commercial = True
        if case.purpose != "non_commercial":
            _refuse_commercial(case, f"{subject.name}: decided to be for non-commercial use only.")


def _decision_for(case: _Case, subject: Subject) -> Decided | None:
    for decided in case.decisions:
        if decided.subject not in subject.decided_as:
            continue
        if decided.sha256 is not None and decided.sha256 != subject.digest:
            continue
        return decided
    return None


def _of_other_weights(case: _Case, subject: Subject) -> str:
    """A sentence about a decision that names a subject and other weights; empty where there is none."""
    for decided in case.decisions:
        if decided.subject in subject.decided_as and decided.sha256 not in (None, subject.digest):
            return (
                f" The decision of {decided.decided_by} about it is for weights with the SHA-256 {decided.sha256}, and these "
                f"have {subject.digest or 'none that is known'}."
            )
    return ""


def _without_force(case: _Case, subject: Subject, row: Row, generation: int) -> str:
    """A sentence about a permission that covers a subject and does not hold here; empty where there is none."""
    for permitted in case.permissions:
        if _covers(permitted, subject, row) and (fault := _fault(case, permitted, generation)):
            return f" The permission {permitted.file} does not hold here: {fault}."
    return ""


def _covers(permitted: Permitted, subject: Subject, row: Row) -> bool:
    names = {normal(name) for name in permitted.content.covers}
    return bool(names & {normal(row.id), normal(subject.name)})


def _fault(case: _Case, permitted: Permitted, generation: int) -> str:
    """Why a permission that covers a subject does not hold; empty where it does."""
    content = permitted.content
    if generation > 1 and not content.descendants:
        return "it is not for models made from models of it (`descendants`)"
    if content.granted_on > case.today:
        return f"it is granted on {content.granted_on}"
    if content.valid_until is not None and content.valid_until < case.today:
        return f"it was valid until {content.valid_until}"
    if content.purpose == "non_commercial" and case.purpose != "non_commercial":
        return "it is for non-commercial use, and `terms.purpose` is not"
    return ""


def _permission_for(case: _Case, subject: Subject, row: Row, generation: int) -> Permitted | None:
    for permitted in case.permissions:
        if not _covers(permitted, subject, row) or _fault(case, permitted, generation):
            continue
        if permitted.content.purpose == "non_commercial":
            case.non_commercial = True
        case.permitted[permitted.sha256] = permitted
        return permitted
    return None


def _refuse_commercial(case: _Case, words: str) -> None:
    case.refusals.append(words)
    case.todos.append(
        "Use another teacher, get a written permission, or say `terms: {purpose: non_commercial}` if that is what it is for."
    )


def _how_to_permit(row: Row) -> str:
    return (
        "Use another teacher. With the owner's written permission, record it and name its file in the recipe "
        f"(docs/terms.md): terms: {{permissions: [FILE]}}, covering {row.id}."
    )


def _permitted_words(subject: Subject, permitted: Permitted) -> str:
    content = permitted.content
    return (
        f"{subject.name}: by written permission of {content.granted_by} to {content.granted_to} on {content.granted_on} "
        f"({content.scope}; file SHA-256 {permitted.sha256})."
    )


def _permission_record(permitted: Permitted) -> dict[str, Any]:
    record = permitted.content.model_dump(mode="json")
    return record | {"file": permitted.file, "sha256": permitted.sha256, "words": permitted.words}


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
