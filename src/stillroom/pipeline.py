"""The order of the stages, and what each depends on. Knows nothing of how a stage does its work."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from stillroom.core import files, memory
from stillroom.core.errors import DiskFull, OutOfMemory, RunError, translate
from stillroom.core.progress import Progress
from stillroom.recipe.reading import load_recipe
from stillroom.recipe.recipe import Recipe
from stillroom.runs.run import AnyPath, Run
from stillroom.runs.stages import _with_needs, inputs_of, stages_of

SPARE_BYTES = 64 << 20
"""Room on the disk without which no stage is begun."""


def run(
    recipe: str | Path | Recipe, root: str | Path = "runs", *, until: str | None = None, quiet: bool = False
) -> Run:
    """Do a recipe's whole path, or go on with it.

    Finished stages whose inputs still hold are skipped; one that was cut off is resumed.

    Args:
        recipe: A recipe's file, or a recipe.
        root: The folder that holds runs.
        until: The last stage to do; all of them without it.
        quiet: Draw no progress.

    Returns:
        The run, with ``summary.json`` and ``report.html`` in its folder when all stages are done.

    Raises:
        StillroomError: With a message for the user; nothing that was finished is lost.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    progress = Progress(quiet)
    root = Path(root)
    with _translated(root):
        made = Run.create(loaded, root)
        with made.locked():
            _do(made, until, progress)
    return made


def run_stage(folder: AnyPath, name: str, *, quiet: bool = False) -> Run:
    """Do one stage of an existing run, and what it needs."""
    made = Run.open(folder)
    names = [spec.name for spec in stages_of(made.recipe)]
    if name not in names:
        raise RunError(f"{made.path}: this recipe has no stage `{name}`.", f"Its stages: {', '.join(names)}.")
    with _translated(made.path), made.locked():
        _do(made, name, Progress(quiet))
    return made


def capture(folder: AnyPath, *, quiet: bool = False) -> Run:
    """Do the stage `capture` of a run (its folder, or the run), and what it needs."""
    return run_stage(folder, "capture", quiet=quiet)


def shrink(folder: AnyPath, *, quiet: bool = False) -> Run:
    """Do the stage `shrink` of a run (its folder, or the run), and what it needs."""
    return run_stage(folder, "shrink", quiet=quiet)


def distill(folder: AnyPath, *, quiet: bool = False) -> Run:
    """Do the stage `distill` of a run (its folder, or the run), and what it needs."""
    return run_stage(folder, "distill", quiet=quiet)


def evaluate(folder: AnyPath, *, quiet: bool = False) -> Run:
    """Do the stage `evaluate` of a run (its folder, or the run), and what it needs."""
    return run_stage(folder, "evaluate", quiet=quiet)


def export(folder: AnyPath, *, quiet: bool = False) -> Run:
    """Do the stage `export` of a run (its folder, or the run), and what it needs."""
    return run_stage(folder, "export", quiet=quiet)


def report(folder: AnyPath) -> dict[str, Any]:
    """Write ``summary.json`` and ``report.html`` of a finished run again; returns the summary."""
    return finish(Run.open(folder))


def finish(made: Run) -> dict[str, Any]:
    """Write ``summary.json`` and ``report.html`` of a finished run again; returns the summary."""
    from stillroom.evaluate.report import write_report
    from stillroom.evaluate.summary import write_summary

    summary = write_summary(made)
    write_report(made, summary)
    return summary


def _do(made: Run, until: str | None, progress: Progress) -> None:
    from stillroom.plan import begin_with_plan

    specs = stages_of(made.recipe)
    wanted = specs if until is None else _with_needs(specs, until)
    if any(spec.gated for spec in wanted):
        # Before anything is spent, and every time: what is allowed today may be forbidden tomorrow.
        from stillroom.terms.gate import pass_gate

        pass_gate(made)
    for spec in wanted:
        stage = made.stage(spec.name)
        inputs = inputs_of(made, spec)
        if stage.holds(inputs):
            progress.say(f"{spec.name}: done before")
            continue
        if spec.name != "corpus" and not progress.quiet:
            # By now the text is counted, and nothing that takes long was done.
            begin_with_plan(made)
        memory.release_memory()
        _check_room(made, spec.name)
        progress.say(f"{spec.name}")
        with stage.working(inputs, made.recipe.seed):
            spec.load()(made, stage, progress)
        shutil.rmtree(stage.path / "checkpoints", ignore_errors=True)
    if until is None:
        from stillroom.evaluate.floors import require_bounds

        require_bounds(finish(made), str(made.path / "report.html"))


def _check_room(made: Run, name: str) -> None:
    """Refuse to begin a stage for which there is too little disk or memory, by the plan where one was kept."""
    import psutil

    from stillroom.plan import planned_needs

    needs = planned_needs(made, name) or {}
    limits = made.recipe.limits
    wants = needs.get("disk_bytes", 0)
    free = shutil.disk_usage(made.path).free
    allowed = free if limits.disk_bytes is None else limits.disk_bytes - files.folder_bytes(made.path)
    if free < SPARE_BYTES or min(free, allowed) < wants:
        free = min(free, allowed)
        wanted = f", and about {needs['disk_bytes'] / 2**20:,.0f} MiB are needed" if needs else ""
        raise DiskFull(
            f"{made.path}: only {max(0, free) / 2**20:,.0f} MiB are free{wanted}: too little to begin the stage `{name}`.",
            "Free some room and give the same command again: finished stages are kept.",
        )
    held = psutil.Process().memory_info().rss
    memory = limits.memory_bytes or psutil.virtual_memory().available + held
    # A plan is right to a fifth; what may just fit is tried.
    if needs and needs["memory_bytes"] * (1.0 if limits.memory_bytes else 0.8) > memory:
        raise OutOfMemory(
            f"The stage `{name}` needs about {needs['memory_bytes'] / 1e9:.1f} GB of memory, and there are "
            f"{memory / 1e9:.1f} GB.",
            "Close other programs, lower `distill.micro_batch_tokens`, or choose a smaller student; then give the same "
            "command again: finished stages are kept.",
        )


class _translated:  # noqa: N801 - used like a function
    """Turn low-level failures of the body into errors that a user can act on."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def __enter__(self) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None or isinstance(error, KeyboardInterrupt):
            return
        place = "" if isinstance(error, OSError) and error.filename else str(self.where)
        known = translate(error, place)
        if known is not None and known is not error:
            raise known from error
