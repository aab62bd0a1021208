"""`stillroom cluster check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from stillroom.core.errors import EnvironmentProblem
from stillroom.core.plain import shown

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON on standard output.")]


def register(app: typer.Typer) -> None:
    """Add the group `cluster`."""
    group = typer.Typer(help="Look at the machines of a cluster.", no_args_is_help=True, rich_markup_mode=None)
    group.command()(check)
    app.add_typer(group, name="cluster")


def check(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="RECIPE", help="A recipe (YAML), or the folder of a run: for what it shares."),
    ] = None,
    runs: Annotated[
        Path | None, typer.Option("--runs", help="The folder that holds runs; `runs` beside the recipe without it.")
    ] = None,
    at: Annotated[
        list[str] | None, typer.Option("--at", metavar="FOLDER|URL", help="One more shared place; may be repeated.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS|auto|local", help="Check every machine of a Ray cluster.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Before money is spent: are versions, clocks, disk, memory and shared places of all machines as a run needs them?

    Under `srun` every process checks its machine, and the first one tells of all.
    """
    from stillroom.cluster import check as checks
    from stillroom.cluster.check_srun import check_srun, step_of_here

    places, memory_bytes = _needs(recipe, runs)
    places = list(dict.fromkeys([*places, *map(_place, at or ())]))
    step = step_of_here()
    if ray is not None:
        from stillroom.cluster.check_ray import check_ray

        checked = check_ray(ray, places, memory_bytes)
    elif step is not None:
        checked = check_srun(places, *step, memory_bytes)
    else:
        checked = checks.check_here(places, memory_bytes)
    quiet = ray is None and step is not None and step[0] > 0
    if as_json and not quiet:
        typer.echo(json.dumps(_record(checked), indent=2))
    elif not quiet:
        for line in checks.table(checked):
            typer.echo(shown(line, one_line=True))
    if checked.findings:
        first = checked.findings[0]
        what = shown(first.what, one_line=True).rstrip(".")
        more = f", and {len(checked.findings) - 1} more" if len(checked.findings) > 1 else ""
        raise EnvironmentProblem(
            f"The cluster is not ready: {shown(first.node, one_line=True)}: {what}{more}.",
            "Mend what is named, and check again: nothing was spent.",
        )


def _needs(recipe: Path | None, runs: Path | None) -> tuple[list[str], int]:
    """The places that a run's machines share, and bytes of the teacher's weights where they are known."""
    if recipe is None:
        return [], 0
    from stillroom.core.store import is_url
    from stillroom.pipeline import recipe_and_root

    found, root = recipe_and_root(recipe, runs)
    cache, copies = found.capture.path, found.distill.checkpoint_copy
    places = [str(root.absolute())]
    if cache is not None:
        places.append(str(cache) if is_url(cache) else str(Path(cache).absolute()))
    name = getattr(found.teacher, "name", "")
    weights = (
        sum(path.stat().st_size for path in Path(name).glob("*.safetensors")) if name and Path(name).is_dir() else 0
    )
    return places + ([copies] if copies is not None else []), weights


def _place(where: str) -> str:
    from stillroom.core.store import check_url, is_url

    return check_url(where) if is_url(where) else str(Path(where).absolute())


def _record(checked: Any) -> dict[str, Any]:
    return {
        "nodes": [seen.facts.model_dump() | {"clock_ahead_seconds": list(seen.clock_off)} for seen in checked.nodes],
        "findings": [vars(finding) for finding in checked.findings],
    }
