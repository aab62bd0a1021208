"""The order of the stages, and what each depends on. Knows nothing of how a stage does its work."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom import files
from stillroom.errors import DiskFull, OutOfMemory, RunError, translate
from stillroom.progress import Progress
from stillroom.recipe import Recipe, load_recipe
from stillroom.run import AnyPath, Run, Stage

StageFunction = Callable[[Run, Stage, Progress], None]
SPARE_BYTES = 64 << 20
"""Room on the disk without which no stage is begun."""


@dataclass(frozen=True)
class StageSpec:
    """A stage: where its function is, and what its result depends on.

    Attributes:
        name: Name of the stage and of its folder.
        function: ``module:function`` inside ``stillroom``, imported when it is needed.
        sections: Parts of the recipe that it reads.
        needs: Stages whose output it reads.
        teacher: Whether it opens the teacher.
        gated: Whether it uses the teacher, so that the terms have to allow it.
    """

    name: str
    function: str
    sections: tuple[str, ...]
    needs: tuple[str, ...] = ()
    teacher: bool = False
    gated: bool = False

    def load(self) -> StageFunction:
        """Import the function."""
        module, _, name = self.function.partition(":")
        function: StageFunction = getattr(importlib.import_module(f"stillroom.{module}"), name)
        return function


STAGES: tuple[StageSpec, ...] = (
    StageSpec("corpus", "corpus.stage:run_stage", ("corpus",), teacher=True),
    StageSpec(
        "capture", "teacher.stage:run_stage", ("teacher", "capture", "compute"), ("corpus",), teacher=True, gated=True
    ),
    StageSpec(
        "shrink", "student.stage:run_stage", ("teacher", "student", "compute"), ("corpus",), teacher=True, gated=True
    ),
    StageSpec(
        "distill", "train.stage:run_distill", ("distill", "compute"), ("corpus", "capture", "shrink"), gated=True
    ),
    StageSpec(
        "baseline", "train.stage:run_baseline", ("distill", "compute"), ("corpus", "capture", "shrink"), gated=True
    ),
    StageSpec("export", "export.stage:run_stage", ("export", "compute"), ("corpus", "shrink", "distill")),
    StageSpec(
        "evaluate",
        "evaluate.stage:run_stage",
        ("teacher", "evaluate", "compute"),
        ("corpus", "shrink", "distill", "baseline"),
        teacher=True,
    ),
)


def stages_of(recipe: Recipe) -> list[StageSpec]:
    """The stages that a recipe asks for, in order."""
    return [spec for spec in STAGES if spec.name != "baseline" or recipe.baseline]


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
        from stillroom.intake.terms import pass_gate

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
        files.release_memory()
        _check_room(made, spec.name)
        progress.say(f"{spec.name}")
        with stage.working(inputs, made.recipe.seed):
            spec.load()(made, stage, progress)
        shutil.rmtree(stage.path / "checkpoints", ignore_errors=True)
    if until is None:
        from stillroom.evaluate.floors import require_bounds

        require_bounds(finish(made), str(made.path / "report.html"))


def _with_needs(specs: list[StageSpec], name: str) -> list[StageSpec]:
    """A stage and everything that it needs, in order."""
    by_name = {spec.name: spec for spec in specs}
    wanted = {name}
    queue = [name]
    while queue:
        for need in by_name[queue.pop()].needs:
            if need in by_name and need not in wanted:
                wanted.add(need)
                queue.append(need)
    return [spec for spec in specs if spec.name in wanted]


def inputs_of(made: Run, spec: StageSpec) -> dict[str, str]:
    """Digests of everything that a stage's result depends on."""
    sections = made.recipe.model_dump(mode="json", include={*spec.sections, "seed"})
    inputs = {"recipe": files.digest_json(sections)}
    if spec.teacher:
        from stillroom.teacher.load import teacher_identity

        inputs |= teacher_identity(made.recipe.teacher)
    for need in spec.needs:
        if need != "baseline" or made.recipe.baseline:
            inputs[need] = made.stage(need).output_digest
    return inputs


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
