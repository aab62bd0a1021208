"""`stillroom evaluate`, `stillroom report` and `stillroom compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stillroom.core.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(evaluate)
    app.command()(report)
    app.command()(compare)


RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, such as runs/quickstart.")]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML), or the folder of a run.")]
Root = Annotated[
    Path | None, typer.Option("--runs", help="The folder that holds runs; `runs` beside the recipe without it.")
]
RunPaths = Annotated[list[Path], typer.Argument(metavar="RUN RUN …", help="Folders of two runs or more.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Draw no progress.")]
Json = Annotated[bool, typer.Option("--json", help="Answer as JSON on standard output.")]
Only = Annotated[
    str | None,
    typer.Option(
        help="Metrics, with commas between: fidelity, languages, samples, cost, tasks, safeguards, behaviour, or those of "
        "other packages. They are done with the recipe's settings whether or not it asks for them."
    ),
]


def evaluate(
    folder: RecipePath, only: Only = None, runs: Root = None, quiet: Quiet = False, as_json: Json = False
) -> None:
    """Measure a run's student against its teacher; then write its summary and report."""
    from stillroom import pipeline

    if only is None:
        made = pipeline.run_stage(folder, "evaluate", runs, quiet=quiet)
        pipeline.run_stage(made, "export", quiet=quiet)
        _finish(made.path, as_json, strict=True)
        return
    import json

    from stillroom.runs.stages import unfinished

    names = [name.strip() for name in only.split(",") if name.strip()]
    if not names:
        raise UsageError("--only names no metric.", "Such as: --only fidelity,tasks")
    run, found = pipeline.measure_only(folder, names, runs, quiet=quiet)
    folder = run.path
    done = not unfinished(run)
    if done:
        pipeline.finish(run)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    from stillroom.reporting.terminal import print_measures

    print_measures(found)
    typer.echo(f"Numbers: {folder / 'measures'}")
    if done:
        typer.echo(f"Report:  {folder / 'report.html'}")


def report(folder: RunPath, as_json: Json = False) -> None:
    """Write the summary and the report of a finished run again."""
    _finish(folder, as_json, strict=False)


def compare(folders: RunPaths, as_json: Json = False) -> None:
    """Set the students of several runs side by side, paired with the first."""
    import json

    from stillroom.evaluation.compare import compare_runs, print_comparison

    result = compare_runs(folders)
    if as_json:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        print_comparison(result)


def _finish(folder: Path, as_json: bool, strict: bool) -> None:
    import json

    from stillroom import pipeline
    from stillroom.evaluation.floors import require_bounds
    from stillroom.reporting.terminal import print_table
    from stillroom.runs.run import Run

    summary = pipeline.finish(Run.open(folder))
    if as_json:
        typer.echo(json.dumps(summary, indent=2, ensure_ascii=False))
    else:
        print_table(summary)
        typer.echo(f"Report: {folder / 'report.html'}")
    if strict:
        require_bounds(summary, str(folder / "report.html"))
