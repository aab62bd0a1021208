"""Commands about terms: the table of terms, and the result of the licence check on a recipe, a run or a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from stillroom.terms.table import Table
    from stillroom.terms.verdict import Verdict

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON on standard output.")]
Tables = Annotated[list[Path] | None, typer.Option("--table", help="A table of one's own, beside the packaged one.")]


def register(app: typer.Typer) -> None:
    """Add `stillroom terms`."""
    terms = typer.Typer(help="What licences and services allow.", no_args_is_help=True, rich_markup_mode=None)
    terms.command("list")(list_rows)
    terms.command("show")(show)
    terms.command("check")(check)
    app.add_typer(terms, name="terms")


def list_rows(table: Tables = None, as_json: Json = False) -> None:
    """List every row of the table of terms."""
    tables = _tables(table)
    if as_json:
        _echo(
            {
                "tables": [
                    {
                        "name": item.name,
                        "version": item.content.version,
                        "date": str(item.content.date),
                        "sha256": item.sha256,
                    }
                    for item in tables
                ],
                "rows": _rows(tables),
            }
        )
        return
    for item in tables:
        typer.echo(f"{item.name}, version {item.content.version} of {item.content.date} (not legal advice)")
        for row in item.content.rows:
            how = "text read" if row.confidence == "primary" else "second-hand"
            typer.echo(f"  {row.id:<20} {row.outputs:<15} {row.kind:<8} {row.title} (read {row.read}, {how})")


def show(
    name: Annotated[str, typer.Argument(metavar="ROW", help="A row's id, a licence's name or a model's exact name.")],
    table: Tables = None,
    as_json: Json = False,
) -> None:
    """Show the rows that a licence's, a service's or a model's name finds."""
    from stillroom.core.errors import TermsRefused

    found: dict[str, Any] = {}
    for item in _tables(table):
        for kind in ("licence", "checkpoint", "service"):
            for row in item.find(kind, name):
                found.setdefault(row.id, row.model_dump(mode="json") | {"table": item.name, "reason": row.reason()})
    if not found:
        raise TermsRefused(
            f"No table knows {name!r}: a teacher under it is refused until you decide.",
            "`stillroom terms list` shows what is known; docs/terms.md says how to decide.",
        )
    if as_json:
        _echo(list(found.values()))
        return
    for row in found.values():
        typer.echo(f"{row['id']}: {row['reason']}")
        owed = row["obligations"]
        lines = {
            "the name begins with": [owed["name_prefix"]] if owed["name_prefix"] else [],
            "notices": owed["notices"],
            "licence copies": owed["licences"],
            "use policies": owed["use_policies"],
            "conditions": row["conditions"],
            "exact models": row["checkpoints"] or row["services"],
            "found by": row["licences"],
        }
        for title, values in lines.items():
            for value in values:
                typer.echo(f"  {title}: {value}")


def check(
    path: Annotated[
        Path, typer.Argument(metavar="WHAT", help="A recipe, a run's folder, a model's folder or a GGUF file.")
    ],
    as_json: Json = False,
) -> None:
    """Check licences of a recipe, run or model: the result, reasons and obligations; exit code 1 when it is refused."""
    verdict = _verdict(path)
    if as_json:
        _echo(verdict.as_dict() | {"todo": verdict.todo})
    else:
        _show(verdict)
    if verdict.verdict == "refused":
        raise typer.Exit(1)


def _verdict(path: Path) -> Verdict:
    from stillroom.recipe.reading import load_recipe
    from stillroom.recipe.teacher import GgufTeacher, HuggingFaceTeacher
    from stillroom.runs.run import Run
    from stillroom.terms.gate import judge, run_verdict, verdict_of_recipe
    from stillroom.terms.subjects import model_subject
    from stillroom.terms.table import packaged_table

    if (path / "recipe.yaml").is_file():
        return run_verdict(Run.open(path))
    if path.is_dir():
        return judge([model_subject(HuggingFaceTeacher(name=str(path)), "teacher", True)], [], [packaged_table()])
    if path.suffix.lower() == ".gguf":
        return judge([model_subject(GgufTeacher(path=str(path)), "teacher", True)], [], [packaged_table()])
    return verdict_of_recipe(load_recipe(path))


def _show(verdict: Verdict) -> None:
    record = verdict.as_dict()
    typer.echo({"allowed": "Allowed.", "refused": "Refused."}.get(record["verdict"], "Allowed, with conditions."))
    for reason in record["reasons"]:
        typer.echo(f"  because    {reason}")
    for condition in record["conditions"]:
        typer.echo(f"  condition  {condition}")
    owed = record["obligations"]
    if owed["name_prefix"]:
        typer.echo(f"  obligation the student's name begins with {owed['name_prefix']}")
    for notice in owed["notices"]:
        typer.echo(f"  obligation notice: {notice}")
    for title, group in (("licence", owed["licences"]), ("use policy", owed["use_policies"])):
        for entry in group:
            lacking = "" if entry["text"] is not None else " (its text has to be supplied: terms.licence_texts)"
            typer.echo(f"  obligation {title}: {entry['name']}{lacking}")
    for teacher in record["teachers"]:
        if teacher["digest"]:
            typer.echo(f"  weights    {teacher['name']}: SHA-256 {teacher['digest']}")
    if verdict.todo:
        typer.echo(f"  to do      {verdict.todo}")
    typer.echo(f"Table {record['table_version']}; not legal advice.")


def _tables(paths: list[Path] | None) -> list[Table]:
    from stillroom.recipe.terms import TermsConfig
    from stillroom.terms.gate import tables_of

    return tables_of(TermsConfig(tables=tuple(paths or ())))


def _rows(tables: list[Table]) -> list[dict[str, object]]:
    from stillroom.terms.gate import rows_as_dicts

    return rows_as_dicts(tables)


def _echo(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
