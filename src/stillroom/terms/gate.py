"""The gate: the licence check: is this run allowed, and what are its student's obligations? `verdict.py` holds the rules.

The gate comes before the first stage that learns from a teacher, and again before packaging. It takes no switch: what the
tables do not know needs a decision, and what they forbid needs a permission, and both are in the recipe.
"""

from __future__ import annotations

from collections.abc import Iterable

from stillroom.core import files
from stillroom.core.errors import TermsRefused
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.terms import Decision, TermsConfig
from stillroom.runs.run import Run
from stillroom.terms.statements import Decided
from stillroom.terms.subjects import subjects_of
from stillroom.terms.table import Table, packaged_table, read_licence, read_permission, read_table
from stillroom.terms.verdict import Verdict, judge
from stillroom.verification.obligations import unmet

__all__ = [
    "Verdict",
    "judge",
    "pass_gate",
    "require_allowed",
    "require_packable",
    "run_verdict",
    "unmet",
    "verdict_of_recipe",
]

RECORD = "terms.json"


def verdict_of_recipe(recipe: Recipe) -> Verdict:
    """The result for a recipe, from what its teachers and texts say of themselves; opens no weights.

    Weights are read only where a decision or a row names their digest.

    Raises:
        RecipeError: A file that the recipe's terms name is missing or wrong.
        TeacherError: A teacher is not there.
        InspectionRefused: A teacher is not safe to open.
        TermsRefused: A teacher carries terms that are none.
    """
    terms = recipe.terms
    tables = tables_of(terms)
    digests = any(row.weights_sha256 for table in tables for row in table.content.rows)
    digests |= any(decision.sha256 for decision in terms.decisions)
    teachers, corpora = subjects_of(recipe, digests=digests)
    return judge(
        teachers,
        corpora,
        tables,
        permissions=[read_permission(path) for path in terms.permissions],
        decisions=[_decided(decision) for decision in terms.decisions],
        purpose=terms.purpose,
        texts={name: read_licence(path) for name, path in terms.licence_texts.items()},
    )


def run_verdict(run: Run) -> Verdict:
    """The result for a run, as it is now; the gate and `stillroom package` ask for it. Errors as for a recipe."""
    return verdict_of_recipe(run.recipe)


def require_allowed(verdict: Verdict) -> None:
    """Refuse what the terms forbid.

    Raises:
        TermsRefused: Names the clause, its source, when it was read, and what can be done.
    """
    if verdict.verdict == "refused":
        more = " (`stillroom terms check` shows everything that was looked at.)" if len(verdict.reasons) > 1 else ""
        raise TermsRefused(f"The terms do not allow this. {verdict.reasons[0]}{more}", verdict.todo)


def require_packable(verdict: Verdict, name: str) -> None:
    """Refuse to package what is forbidden, what lacks a text that it has to carry, or what has the wrong name.

    Args:
        verdict: The run's result.
        name: The package's name.

    Raises:
        TermsRefused: Says what is missing.
    """
    require_allowed(verdict)
    missing = verdict.obligations.missing
    if missing:
        raise TermsRefused(
            f"The package has to carry the text of {', '.join(missing)}, which Stillroom does not hold.",
            f"Save the text from its source and name the file in the recipe: terms: {{licence_texts: {{{missing[0]}: FILE}}}}.",
        )
    prefix = verdict.obligations.name_prefix
    if prefix and not name.startswith(prefix):
        raise TermsRefused(
            f"The student's name has to begin with `{prefix}`, and the package would be called `{name}`.",
            f"Change `name` in the recipe, for example to {prefix}-{name}.",
        )


def pass_gate(run: Run) -> Verdict:
    """Evaluate the terms of a run, keep the result in its folder as ``terms.json``, and refuse what is forbidden.

    Raises:
        TermsRefused: With the reason; the record of the refusal stays in the run's folder.
    """
    verdict = run_verdict(run)
    record = verdict.as_dict()
    path = run.path / RECORD
    if not path.is_file() or files.digest_bytes(path.read_bytes()) != files.digest_bytes(_written(record)):
        files.write_bytes(path, _written(record))
        run.event("terms", verdict=verdict.verdict, digest=files.digest_json(record), table=verdict.table_version)
    require_allowed(verdict)
    return verdict


def tables_of(terms: TermsConfig) -> list[Table]:
    """The packaged table, and the operator's beside it."""
    return [packaged_table(), *(read_table(path) for path in terms.tables)]


def rows_as_dicts(tables: Iterable[Table]) -> list[dict[str, object]]:
    """Every row for a reader."""
    return [row.model_dump(mode="json") | {"table": table.name} for table in tables for row in table.content.rows]


def _decided(decision: Decision) -> Decided:
    text = read_licence(decision.licence_text) if decision.licence_text is not None else None
    return Decided(
        subject=decision.subject,
        kind=decision.kind,
        decided_by=decision.decided_by,
        decided_at=decision.decided_at.isoformat(),
        licence=decision.licence,
        text=text,
        text_sha256=files.digest_bytes(text.encode()) if text is not None else None,
        sha256=decision.sha256,
        name_prefix=decision.name_prefix,
        notices=decision.notices,
        non_commercial=decision.non_commercial,
        reason=decision.reason,
    )


def _written(record: dict[str, object]) -> bytes:
    import json

    return (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()
