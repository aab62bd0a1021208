"""`stillroom evaluate` and `stillroom report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of this room."""
    app.command()(evaluate)
    app.command()(report)


RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, such as runs/quickstart.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Draw no progress.")]
Json = Annotated[bool, typer.Option("--json", help="Answer as JSON on standard output.")]


def evaluate(folder: RunPath, quiet: Quiet = False, as_json: Json = False) -> None:
    """Do the stage `evaluate` of a run and what it needs; then write its summary and report."""
    from stillroom import pipeline

    pipeline.run_stage(folder, "evaluate", quiet=quiet)
    pipeline.run_stage(folder, "export", quiet=quiet)
    _finish(folder, as_json)


def report(folder: RunPath, as_json: Json = False) -> None:
    """Write the summary and the report of a finished run again."""
    _finish(folder, as_json)


def _finish(folder: Path, as_json: bool) -> None:
    import json

    from stillroom import pipeline
    from stillroom.evaluate.summary import print_table
    from stillroom.run import Run

    summary = pipeline.finish(Run.open(folder))
    if as_json:
        typer.echo(json.dumps(summary, indent=2, ensure_ascii=False))
    else:
        print_table(summary)
        typer.echo(f"Report: {folder / 'report.html'}")
