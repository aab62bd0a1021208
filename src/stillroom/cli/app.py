"""The command line: parse, call, print."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from stillroom.core.errors import EnvironmentProblem, FloorMissed, Interrupted, StillroomError, UsageError, translate
from stillroom.core.plain import guard_terminal, shown
from stillroom.core.telemetry import turn_off


class _Commands(typer.core.TyperGroup):
    """The commands; an interrupt reaches the entry point, which says what it means."""

    def invoke(self, ctx: Any) -> Any:
        """Do a command.

        Raises:
            Interrupted: The user stopped it.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _stopped(error) from None


def _stopped(error: KeyboardInterrupt) -> Interrupted:
    where = f" at {error}" if str(error) else ""
    return Interrupted(f"Stopped{where}.", "The same command goes on.")


app = typer.Typer(
    name="stillroom",
    cls=_Commands,
    help="Turn a large language model into a small one that its owner can run, prove and switch off.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

SPINS = "10000"
"""How often a waiting thread of PyTorch's (GNU OpenMP) looks for the others before it sleeps. With the library's 300,000,
threads that wait for one whose core another program has burn the cores that are left: ten times slower on a busy machine, and
no faster on a free one."""

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML), or the folder of a run.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, such as runs/quickstart.")]
Root = Annotated[
    Path | None, typer.Option("--runs", help="The folder that holds runs; `runs` beside the recipe without it.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a key of the recipe, such as distill.epochs=2; may be repeated."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Draw no progress.")]
Json = Annotated[bool, typer.Option("--json", help="Answer as JSON on standard output.")]


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False,
) -> None:
    if version:
        from stillroom.core.version import tool_version

        typer.echo(tool_version())
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def run(
    recipe: RecipePath,
    runs: Root = None,
    until: Annotated[
        str | None,
        typer.Option(help="Stop after this stage: corpus, capture, shrink, distill, baseline, export or evaluate."),
    ] = None,
    changes: Set = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Train in so many processes on this machine (torch elastic).")
    ] = None,
    nodes: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|auto",
            help="Train on so many machines, with --workers on each: the same command on every one (`auto`: SLURM's step), "
            "or, with --ray, once.",
        ),
    ] = None,
    node_rank: Annotated[
        int | None, typer.Option(help="Of --nodes: this machine's number, from 0; SLURM's where left out.")
    ] = None,
    rendezvous: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Of --nodes: an address of node 0; of SLURM's first node where left out."
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS|auto|local",
            help="Capture on a Ray cluster, or on one that is started here; with --nodes, train there too.",
        ),
    ] = None,
    capture_workers: Annotated[
        int | None, typer.Option(min=1, help="Workers of --ray; without it, one per GPU, or else per core.")
    ] = None,
    secret: Annotated[
        Path | None,
        typer.Option(help="Repeat another run: its file lineage.secret, for a recipe without `seed`."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Do the whole path of a recipe; the same command again resumes."""
    from stillroom import pipeline
    from stillroom.cluster.cluster import cluster_of

    cluster = cluster_of(workers, ray, capture_workers, nodes, node_rank, rendezvous)
    if cluster is not None and cluster.nodes is not None and not cluster.nodes.first:
        from stillroom.cluster.launch import serve
        from stillroom.core.progress import Progress

        given, root = pipeline.recipe_and_root(recipe, runs, _overrides(changes))
        serve(root / given.name, given, cluster.nodes, Progress(quiet))
        return
    made = pipeline.opened(recipe, runs, _overrides(changes))
    missed = None
    try:
        pipeline.run(made, until=until, quiet=quiet, cluster=cluster, secret=secret)
    except FloorMissed as error:
        # Everything was done and written: it is shown before the answer is no.
        missed = error
    if until is None:
        _show_run(made, as_json)
    if missed is not None:
        raise missed


@app.command()
def plan(
    recipe: RecipePath,
    runs: Root = None,
    changes: Set = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Plan for many machines too: nodes, hours, dollars, bytes, objects.")
    ] = False,
    worker: Annotated[
        str, typer.Option(help="What a worker of --cluster is: `this` machine, by its pilot, or `h100`, by arithmetic.")
    ] = "this",
    cluster_workers: Annotated[
        int | None, typer.Option(min=1, help="Workers of --cluster; without it, several numbers are shown.")
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Dollars per hour of a worker; 2.50 for a card without it.")
    ] = None,
    egress_price: Annotated[float, typer.Option(min=0, help="Dollars per GB that leaves the store's region.")] = 0.09,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say what a recipe will take, before anything is spent; exit code 1 where it does not fit."""
    from stillroom.pipeline import recipe_and_root
    from stillroom.planning.plan import OnCluster, make_plan, show_plan

    if worker not in ("this", "h100"):
        raise UsageError(f"--worker {worker}: no such worker.", "Write this or h100.")
    if not cluster and (worker, cluster_workers, price_per_hour, egress_price) != ("this", None, None, 0.09):
        raise UsageError("What is said of workers and prices is for many machines.", "Give --cluster too.")
    asked = OnCluster(worker, cluster_workers, price_per_hour, egress_price) if cluster else None  # type: ignore[arg-type]
    made = make_plan(*recipe_and_root(recipe, runs, _overrides(changes)), quiet=quiet or as_json, cluster=asked)
    if as_json:
        _echo_json(made)
    else:
        show_plan(made)
    if made["verdict"] == "stop":
        raise typer.Exit(1)


def _overrides(changes: list[str] | None) -> dict[str, Any] | None:
    """What ``--set`` says: values by dotted keys; values are YAML, as in a recipe."""
    from stillroom.core.errors import UsageError
    from stillroom.core.strict_yaml import load_yaml

    found = {}
    for change in changes or ():
        key, equals, value = change.partition("=")
        if not key or not equals:
            raise UsageError(f"--set {change}: not KEY=VALUE.", "Write it as --set distill.epochs=2.")
        if key.strip() in found:
            raise UsageError(f"--set {change}: `{key.strip()}` is set twice.", "Give each key one value.")
        found[key.strip()] = load_yaml(value, f"--set {key}")[1]
    return found or None


def _one_stage(
    name: str, recipe: Path, runs: Path | None, changes: list[str] | None, quiet: bool, as_json: bool
) -> None:
    from stillroom import pipeline

    made = pipeline.run_stage(recipe, name, runs, overrides=_overrides(changes), quiet=quiet)
    record = made.stage(name).record or {}
    if as_json:
        _echo_json(record)
    elif name in made.done:
        typer.echo(f"{name}: {record['seconds']:.1f} s, peak memory {record['peak_memory_bytes'] / 2**20:,.0f} MiB")
    else:
        typer.echo(f"{name}: done before; nothing was to be done")


def _stage_command(name: str) -> Callable[..., None]:
    """The command that does one stage."""

    def command(
        recipe: RecipePath, runs: Root = None, changes: Set = None, quiet: Quiet = False, as_json: Json = False
    ) -> None:
        _one_stage(name, recipe, runs, changes, quiet, as_json)

    command.__doc__ = f"Do the stage `{name}` of a recipe or run, and what it needs."
    return command


@app.command()
def capture(
    recipe: RecipePath,
    runs: Root = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Capture only the I-th of N parts, beside other processes and machines that do the others; then "
            "`stillroom cache seal`, or this command without --part.",
        ),
    ] = None,
    changes: Set = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Do the stage `capture` of a recipe or run, and what it needs; with --part only a share of it."""
    if part is None:
        _one_stage("capture", recipe, runs, changes, quiet, as_json)
        return
    from dataclasses import asdict

    from stillroom import pipeline

    done = pipeline.capture_part(recipe, part, runs, overrides=_overrides(changes), quiet=quiet)
    if as_json:
        _echo_json(asdict(done))
    else:
        typer.echo(
            f"part {part}: {done.units:,} units, {done.before:,} of them done before, {done.made:,} made now in "
            f"{done.seconds:.1f} s; when all parts are done: stillroom cache seal, or stillroom capture without --part"
        )


for _stage in ("corpus", "shrink", "distill", "baseline", "export"):
    app.command(_stage)(_stage_command(_stage))


def _show_run(made: Any, as_json: bool) -> None:
    """What a finished run prints: the table, an answer by the student, and where to go on."""
    from stillroom.reporting.terminal import print_table

    summary = made.summary
    if as_json:
        _echo_json(summary)
        return
    print_table(summary)
    prompt = made.recipe.chat.prompt
    if prompt and made.recipe.export.writes_gguf:
        from stillroom.serving.ask import answer

        typer.echo(f"\nAsked: {prompt}")
        typer.echo(f"The student: {answer(made.path, prompt, made.recipe.chat.max_tokens)}")
    typer.echo(f"\nReport:  {made.path / 'report.html'}")
    typer.echo(f"Numbers: {made.path / 'summary.json'}")
    typer.echo(f"Chat:    {_command()} chat {made.path}")


def _command() -> str:
    """How the user can call this command again from here."""
    called = Path(sys.argv[0])
    if called.name == "stillroom" and str(called.parent) not in os.environ.get("PATH", "").split(os.pathsep):
        try:
            return str(called.absolute().relative_to(Path.cwd()))
        except ValueError:
            return str(called)
    return "stillroom"


def _echo_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _register() -> None:
    """Add the other groups of commands; their modules import nothing heavy."""
    import importlib

    for group in (
        "recipe",
        "cache",
        "cluster",
        "teacher",
        "evaluate",
        "ladder",
        "serve",
        "switch",
        "terms",
        "package",
        "guard",
    ):
        importlib.import_module(f"stillroom.cli.{group}").register(app)


_register()
# Whatever a command prints may come from a file, a model or a network.
guard_terminal()


def _require_system() -> None:
    if sys.platform == "win32":
        raise EnvironmentProblem(
            "Windows is not supported: the switch, the lists of engines and the locks of runs need what only Linux and macOS "
            "have (fcntl, local sockets, signals).",
            "Use Linux or macOS, or the Windows Subsystem for Linux.",
        )


def main() -> None:
    """Entry point: a mistake is one clear message and an exit code, never a traceback."""
    # Read when PyTorch is loaded, which no command has done yet.
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    turn_off()
    try:
        _require_system()
        app()
    except StillroomError as error:
        sys.exit(_draw(error))
    except BrokenPipeError:
        sys.exit(0)
    except KeyboardInterrupt as error:
        sys.exit(_draw(_stopped(error)))
    except Exception as error:
        known = translate(error)
        if known is None:
            raise
        sys.exit(_draw(known))


def _draw(error: StillroomError) -> int:
    sys.stderr.write(f"stillroom: {shown(error.what)}\n")
    if error.todo:
        sys.stderr.write(f"  {shown(error.todo)}\n")
    return error.exit_code
