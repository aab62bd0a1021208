"""Runs a recipe's stages in order; what is finished and still holds is skipped."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom import switch
from stillroom.core import files, memory
from stillroom.core.errors import DiskFull, OutOfMemory, RecipeError, RunError, StillroomError, TermsRefused, translate
from stillroom.core.progress import Progress
from stillroom.core.telemetry import turn_off
from stillroom.recipe.reading import load_recipe, recipe_of, with_overrides
from stillroom.recipe.recipe import Recipe
from stillroom.runs.known import NAME as SHORTCUT
from stillroom.runs.run import HISTORY, ORIGIN, SECRET, AnyPath, Callback, Run, keep_summary
from stillroom.runs.stages import (
    ROUTES,
    TEXTS,
    StageSpec,
    inputs_of,
    made_from_if_there,
    recipe_digest,
    sections_of,
    stages_of,
    with_needs,
)

if TYPE_CHECKING:
    from stillroom.cluster.cluster import Cluster
    from stillroom.teachers.units import PartDone

RUNS = "runs"
"""The folder that holds runs, beside a recipe."""
SPARE_BYTES = 64 << 20
"""Free disk space without which no stage is begun."""


AnyRecipe = str | os.PathLike[str] | Mapping[str, Any] | Recipe | Run
"""What a verb takes: a recipe's file, a run's folder, a dict, a recipe, or a run."""


def recipe_and_root(
    source: AnyRecipe, root: AnyPath | None = None, overrides: Mapping[str, Any] | None = None
) -> tuple[Recipe, Path]:
    """The recipe that is meant, and the folder that holds its run.

    Without ``root`` that is ``runs`` beside the recipe's file (in the working directory for a recipe that is no file), or
    ``runs`` in the working directory where that already holds a run of this name.

    Raises:
        RecipeError: There is none, or a key or value of it is wrong.
    """
    existing = _existing(source)
    if existing is not None:
        recipe = existing.recipe
    elif isinstance(source, Recipe):
        recipe = source
    elif isinstance(source, Mapping):
        recipe = recipe_of(source)
    else:
        recipe = load_recipe(source)
    if overrides:
        recipe = with_overrides(recipe, overrides)
    if existing is not None:
        return recipe, existing.path.parent
    if root is not None:
        return recipe, Path(root)
    here = Path(RUNS)
    if isinstance(source, (Recipe, Mapping)):
        return recipe, here
    beside = Path(source).parent / RUNS
    if _holds_run(here / recipe.name) and not _holds_run(beside / recipe.name):
        # One that another recipe of this name made is not meant.
        origin = Run(here / recipe.name, recipe).origin
        if origin is None or origin == Path(source).absolute():
            return recipe, here
    return recipe, beside


def _holds_run(folder: Path) -> bool:
    return (folder / "recipe.yaml").is_file()


def _existing(source: AnyRecipe) -> Run | None:
    """The run that a source is, or whose folder it names; None where it is a recipe.

    Raises:
        RunError: It is a folder with a recipe of the user's, and not a run: no stage is written there.
    """
    if isinstance(source, Run):
        # Its recipe may have been written anew since; what is to be said of it and what it did stay.
        again = Run.open(source)
        again.notices = [*source.notices, *(notice for notice in again.notices if notice not in source.notices)]
        again.done = source.done
        again.is_new, again.made_root = source.is_new, source.made_root
        source.notices = []
        return again
    given: object = source
    if not isinstance(given, (Recipe, Mapping, str, os.PathLike)):
        from stillroom.corpus.documents import kind_of

        raise RecipeError(
            f"The recipe is {kind_of(given)}.",
            "Give the path of a recipe's file or of a run's folder, a dict, a Recipe or a Run.",
        )
    if isinstance(source, (Recipe, Mapping)) or not (_holds_run(Path(source)) or (Path(source) / ORIGIN).is_file()):
        return None
    found = Run.open(source)
    if not (found.path / "events.jsonl").is_file() and found.path.resolve().name != found.recipe.name:
        raise RunError(
            f"{found.path} holds a recipe, and is not the folder of a run.",
            f"Give the recipe itself: {found.path / 'recipe.yaml'}",
        )
    return found


def opened(
    source: AnyRecipe,
    root: AnyPath | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_stage: Callback | None = None,
    on_step: Callback | None = None,
) -> Run:
    """The run that is meant, made where it does not exist yet. Errors as in :func:`recipe_and_root`."""
    with _translated(Path(root or RUNS)):
        turn_off()
        made = _existing(source)
        if made is None:
            recipe, folder = recipe_and_root(source, root, overrides)
            recipe, notice = _seed_kept(recipe, folder)
            made = Run.create(recipe, folder)
            made.notices += notice
            if not isinstance(source, (Recipe, Mapping)):
                made.came_from(Path(source))
                if (
                    root is None
                    and folder == Path(RUNS)
                    and folder.absolute() != (Path(source).parent / RUNS).absolute()
                ):
                    made.notices.append(f"a run of this name is in {made.path}: it goes on there")
        elif overrides:
            made.change(with_overrides(made.recipe, overrides))
        made.listen(on_stage, on_step)
        return made


def _seed_kept(recipe: Recipe, root: Path) -> tuple[Recipe, list[str]]:
    """A run that was begun with a seed goes on with it where the recipe says nothing of one: 0.1.0 took 0 without a word."""
    kept = root / recipe.name
    if recipe.seed is not None or not (kept / "recipe.yaml").is_file():
        return recipe, []
    try:
        before = Run.open(kept)
    except StillroomError:
        return recipe, []
    if before.recipe.seed is None or not any(before.stage(spec.name).record for spec in stages_of(before.recipe)):
        return recipe, []
    return recipe.model_copy(update={"seed": before.recipe.seed}), [
        f"it was begun with `seed: {before.recipe.seed}` and goes on with it; for a secret of its own, give the "
        "run another `name`"
    ]


def run(
    recipe: AnyRecipe,
    root: AnyPath | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    until: str | None = None,
    quiet: bool = False,
    on_stage: Callback | None = None,
    on_step: Callback | None = None,
    cluster: Cluster | None = None,
    secret: AnyPath | None = None,
) -> Run:
    """Do a recipe's whole path, or go on with it: what :func:`stillroom.run` does."""
    with _translated(Path(root or RUNS)):
        made = opened(recipe, root, overrides, on_stage, on_step)
        others = contextlib.nullcontext() if cluster is None else cluster.led()
        with others, made.locked(), _nothing_left_of_a_refusal(made):
            if secret is not None:
                made.adopt_secret(Path(secret))
            if until is not None:
                _require_stage(made, until)
            whole = _do(made, until, Progress(quiet, switch.require_on), cluster)
        if cluster is not None and not whole:
            # Machine 0 of the cluster takes the lock.
            cluster.finish(made, until, Progress(quiet))
    return made


def _asking(cluster: Cluster, stages: list[StageSpec]) -> Callable[[], None]:
    """What is asked whenever the first of these stages reports progress: the switch, and whether other machines go on."""

    def ask() -> None:
        switch.require_on()
        cluster.ask(spec.name for spec in stages)

    return ask


def _paid_for(made: Run) -> bool:
    """Whether a run's folder has what was written or spent before any stage was finished."""
    texts = made.stage("write").path / TEXTS
    return any(texts.glob("*")) or any(made.path.glob("spending*.jsonl"))


@contextlib.contextmanager
def _nothing_left_of_a_refusal(made: Run, locked: bool = True) -> Iterator[None]:
    """Remove the folder that this call made for a run, where the body is refused before a stage is finished.

    What was written or paid for by then stays.

    Args:
        made: The run.
        locked: Whether the body holds its lock; otherwise nothing is removed while another process does.
    """
    try:
        yield
    except TermsRefused:
        # The record of the refusal stays.
        raise
    except (StillroomError, OSError):
        done = any(made.stage(spec.name).record for spec in stages_of(made.recipe))
        if made.is_new and not done and not _paid_for(made):
            with contextlib.suppress(RunError), contextlib.nullcontext() if locked else made.locked():
                made.remove()
        raise


def run_stage(
    source: AnyRecipe,
    name: str,
    root: AnyPath | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    quiet: bool = False,
    on_stage: Callback | None = None,
    on_step: Callback | None = None,
) -> Run:
    """Do one stage of a run, and what it needs.

    Raises:
        RunError: The recipe has no such stage.
    """
    made = opened(source, root, overrides, on_stage, on_step)
    with _translated(made.path), made.locked(), _nothing_left_of_a_refusal(made):
        _require_stage(made, name)
        _do(made, name, Progress(quiet, switch.require_on))
    return made


def measure_only(
    source: AnyRecipe, names: list[str], root: AnyPath | None = None, *, quiet: bool = False
) -> tuple[Run, dict[str, Any]]:
    """Do some metrics of a run whose student is made: :func:`stillroom.evaluation.stage.measure_only`."""
    from stillroom.evaluation.stage import measure_only as measure

    made = opened(source, root)
    with _translated(made.path), made.locked(), _nothing_left_of_a_refusal(made):
        return made, measure(made, names, Progress(quiet, switch.require_on))


def capture_part(
    source: AnyRecipe,
    part: str,
    root: AnyPath | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> PartDone:
    """Capture one of several equal parts of a run's units, such as ``3/64``, beside other processes that do the others.

    The run is not locked, and nothing of it is written but units of its cache: its corpus has to be finished before.

    Raises:
        UsageError: The part is none, or the teacher is behind an endpoint.
        RunError: The corpus is not finished, or was made of something else than the recipe says now.
        TermsRefused: A licence does not allow it.
    """
    from stillroom.teachers.endpoint.stage import require_no_units
    from stillroom.teachers.units import Share
    from stillroom.teachers.units import capture_part as capture_share
    from stillroom.terms.gate import require_allowed, run_verdict

    share = Share.parse(part)
    made = opened(source, root, overrides)
    spec = next(spec for spec in stages_of(made.recipe) if spec.name == "corpus")
    with _translated(made.path), _nothing_left_of_a_refusal(made, locked=False):
        require_no_units(made.recipe, f"--part {part}")
        _limit_kernels(made.recipe)
        if not made.stage("corpus").holds(inputs_of(made, spec)):
            raise RunError(
                f"{made.path}: the corpus is not finished, and parts of it cannot be captured.",
                f"Make it first, once: stillroom corpus {made.path}",
            )
        require_allowed(run_verdict(made))
        return capture_share(made, share, Progress(quiet, switch.require_on))


def _require_stage(made: Run, name: str) -> None:
    names = [spec.name for spec in stages_of(made.recipe)]
    if name not in names:
        raise RunError(f"{made.path}: this recipe has no stage `{name}`.", f"Its stages: {', '.join(names)}.")


def finish(made: Run) -> dict[str, Any]:
    """Write ``summary.json`` and ``report.html`` of a finished run again; returns the summary."""
    from stillroom.reporting.report import write_report
    from stillroom.reporting.summary import write_summary

    summary = write_summary(made)
    write_report(made, summary)
    return summary


def _do(made: Run, until: str | None, progress: Progress, cluster: Cluster | None = None) -> bool:
    """Do the stages that are wanted; returns whether none of them is left to other machines."""
    from stillroom.evaluation.floors import require_measurable
    from stillroom.evaluation.registry import check_names
    from stillroom.planning.paths import require_paths

    for notice in made.notices:
        progress.say(f"{made.recipe.name}: {notice}")
    made.notices.clear()
    if made.set_damaged_secret_aside():
        progress.say(f"{made.path}: the run's secret was damaged; it is moved to {SECRET}.damaged")
    made.draw_secret()
    _mend(made, progress)
    check_names(made.recipe.evaluate.measures)
    require_measurable(made.recipe)
    require_paths(made.recipe)
    _limit_kernels(made.recipe)
    from stillroom.teachers.endpoint.stage import require_no_units, require_possible
    from stillroom.training.refusals import require_group, require_rounds

    require_possible(made.recipe)
    if cluster is not None and cluster.ray is not None:
        require_no_units(made.recipe, f"--ray {cluster.ray}")
    require_rounds(made.recipe)
    if cluster is not None:
        require_group(made.recipe, cluster.workers, cluster.machines, here=cluster.trains_here)
    specs = stages_of(made.recipe)
    wanted = specs if until is None else with_needs(specs, until)
    if any(spec.gated for spec in wanted):
        # Before anything is spent, and every time: what is allowed today may be forbidden tomorrow.
        from stillroom.terms.gate import pass_gate

        pass_gate(made)
    if made.recipe.write is not None:
        from stillroom.students.turns import require_turns

        require_turns(made.recipe)
    _require_objective(made, wanted)
    _require_copies(made, wanted)
    _require_for_the_rest(made, wanted)
    if cluster is not None:
        cluster.meet(made)
    here = wanted if cluster is None else cluster.here(wanted)
    whole = len(here) == len(wanted)
    redone = False
    with memory.settling() as settle:
        for number, spec in enumerate(here):
            if cluster is not None:
                progress.ask = _asking(cluster, here[number:])
            redone = _do_stage(made, spec, progress, redone, settle, cluster, alone=until == spec.name or not whole)
    made.known.save()
    if until is None and whole:
        from stillroom.evaluation.floors import require_bounds

        require_bounds(finish(made), str(made.path / "report.html"))
    return whole


def _limit_kernels(recipe: Recipe) -> None:
    """Keep as many matrix products ready as the recipe's training uses again; all of the library's where that is not known."""
    from stillroom.training.batch_size import forward_tokens

    corpus = recipe.corpus
    if corpus.train_tokens is not None:
        tokens = forward_tokens(recipe.distill, corpus.train_tokens, corpus.sequence_length)
        memory.keep_few_kernels(tokens, recipe.compute.threads or os.cpu_count() or 1)


def _damaged_cache(made: Run) -> str:
    """How a cache that is stored outside the run's folder is damaged, in words; one inside is looked at as every output is."""
    from stillroom.core.errors import CacheDamaged, SignalError
    from stillroom.core.store import is_url
    from stillroom.signals.cache.reader import damages_of

    folder = made.recipe.capture.path
    if folder is None or is_url(folder):
        return ""
    folders = [Path(folder)]
    try:
        if made.recipe.teachers:
            routes = files.read_json(made.stage("capture").path / ROUTES)["routes"]
            folders = [Path(folder) / entry["folder"] for entry in routes]
        return ", ".join([damage for each in folders for damage in damages_of(each, made.known.digest)][:3])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{ROUTES} cannot be read: {type(error).__name__}"
    except (CacheDamaged, SignalError) as error:
        return str(error.args[0])


def _do_stage(
    made: Run,
    spec: StageSpec,
    progress: Progress,
    redone: bool,
    settle: Callable[[], None],
    cluster: Cluster | None = None,
    *,
    alone: bool = False,
) -> bool:
    """Do a stage, unless it is finished and still holds; returns whether a finished stage was done again so far. ``alone``:
    none that needs the recipe's device is to be done after it here; ``settle`` is called where what is in memory stays
    (:func:`stillroom.core.memory.settling`).
    """
    stage = made.stage(spec.name)
    inputs, found, sections = inputs_of(made, spec), made_from_if_there(made, spec), sections_of(made, spec)
    lost = _damaged_cache(made) if spec.name == "capture" and stage.record is not None else ""
    if not lost and stage.holds(inputs):
        progress.say(f"{spec.name}: done before")
        record = stage.record or {}
        if "files" in inputs and "sections" not in record and spec.name not in made.known.made_from:
            progress.say(
                f"  it was finished by version {record.get('version')}, which kept no digests of the files that it read: "
                "whether they changed before today cannot be told; from now on changes are noticed"
            )
            made.known.remember(spec.name, found)
        return redone
    # And whenever it reports progress.
    switch.require_on()
    why = stage.why_again(inputs, sections, found) or lost
    if spec.name != "corpus":
        from stillroom.planning.plan import begin_with_plan

        # By now the text is counted, and nothing that takes long was done.
        begin_with_plan(made, progress.quiet)
    elif stage.record is None:
        from stillroom.models.compute import require_device
        from stillroom.planning.counting import check_student

        if not alone:
            # A corpus for a cluster with GPUs may be made where there is none.
            require_device(made.recipe.compute)
        check_student(made.recipe)
    memory.release_memory()
    settle()
    _check_room(made, spec.name)
    if why:
        if not redone:
            keep_summary(made)
        redone = True
        gone = spec.name == "corpus" and any(name not in found for name in made.known.made_from.get("corpus", {}))
        kept = stage.next_in_history()
        if spec.name == "corpus":
            progress.say(f"{spec.name}: {why}: {spec.again}; what it counted before is kept in {kept}")
        else:
            progress.say(f"{spec.name}: {why}: {spec.again}; the previous result is kept in {kept}")
        if gone:
            progress.say(
                "  text that is gone from the sources is gone from the corpus, from what the cache is read for, and from the "
                f"manifest; models made with it are still in {made.path / HISTORY}: remove that folder to be rid of them"
            )
    else:
        progress.say(f"{spec.name}{': going on' if stage.is_begun(inputs) else ''}")
    try:
        with stage.working(
            inputs, made.recipe.public_seed, spec.keeps, sections=sections, made_from=found, beside=spec.beside
        ):
            function = spec.load() if cluster is None else cluster.function(spec)
            with progress.at_work():
                function(made, stage, progress)
    except KeyboardInterrupt:
        # What the user is told; see `stillroom.cli`.
        steps = [event["step"] for event in made.events(spec.name) if "step" in event]
        raise KeyboardInterrupt(
            f"step {steps[-1]} of the stage `{spec.name}`" if steps else f"the stage `{spec.name}`"
        ) from None
    return redone


def _mend(made: Run, progress: Progress) -> None:
    """Move away what is where a run's own files have to be, and remove files that can only be written again."""
    for name in ("plan.json", "summary.json", "report.html", "report.md", "events.jsonl", ORIGIN, SHORTCUT):
        path = made.path / name
        if path.is_dir():
            files.make_way(path)
            progress.say(f"{made.path}: {name} was a folder; it is moved away, and the file is written again")
    for name in ("measures", HISTORY):
        path = made.path / name
        if path.exists() and not path.is_dir():
            files.make_way(path, folder=True)
            progress.say(f"{made.path}: {name} was a file; it is moved away")
    for path in [made.path / "plan.json", *(made.path / "measures").rglob("*.json")]:
        if path.is_dir():
            files.make_way(path)
        elif path.is_file():
            try:
                if isinstance(files.read_json(path), dict):
                    continue
            except (ValueError, RecursionError):
                pass
            path.unlink()
            progress.say(f"{path} was damaged: removed; what it held is worked out again")


def _require_objective(made: Run, wanted: list[StageSpec]) -> None:
    """Refuse an objective that cannot learn from what is captured for it, before anything is spent.

    One that another package adds may also be missing or broken here. What is finished needs no objective, and neither does a
    capture alone.
    """
    for spec in wanted:
        if spec.name in ("distill", "baseline"):
            record = made.stage(spec.name).record
            if record is None or record["inputs"].get("recipe") != recipe_digest(made, spec):
                from stillroom.training.losses.registry import require_fit

                config = made.recipe.distill
                if spec.name == "baseline":
                    # It learns from the text alone, and is validated by forward KL.
                    config = config.model_copy(update={"objective": "forward_kl"})
                require_fit(config, made.recipe.capture, made.recipe.student)


def _require_for_the_rest(made: Run, wanted: list[StageSpec]) -> None:
    """Refuse to begin without what a stage still to be done needs: packages, an endpoint's key, what is measured by."""
    from stillroom.evaluation.registry import require_askable
    from stillroom.planning.needs import missing_needs, require_needs
    from stillroom.teachers.endpoint.stage import require_keys

    todo = _still_to_do(made, wanted)
    if todo:
        require_needs(need for need in missing_needs(made.recipe) if need.stage in todo | {"run"})
        require_keys(made, todo)
    if "evaluate" in todo:
        require_askable(made.recipe)


def _still_to_do(made: Run, wanted: list[StageSpec]) -> set[str]:
    """Stages that are not finished, by name. What a stage depends on can be told as far as those before it are done."""
    todo: set[str] = set()
    for spec in wanted:
        if todo or not made.stage(spec.name).holds(inputs_of(made, spec)):
            todo.add(spec.name)
    return todo


def _require_copies(made: Run, wanted: list[StageSpec]) -> None:
    """Refuse a store for copies of checkpoints that cannot be used, before anything is spent."""
    where = made.recipe.distill.checkpoint_copy
    if where is not None and any(made.stage(spec.name).record is None for spec in wanted if "distill" in spec.sections):
        from stillroom.core.store import open_store, probe

        probe(open_store(where))


def _check_room(made: Run, name: str) -> None:
    """Refuse to begin a stage for which there is too little disk or memory, by the plan where one was kept."""
    import psutil

    from stillroom.planning.plan import planned_needs

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
            "Free some disk space and give the same command again: finished stages are kept.",
        )
    held = psutil.Process().memory_info().rss
    available = limits.memory_bytes or psutil.virtual_memory().available + held
    # A plan is right to a fifth; what may just fit is tried.
    if needs and needs["memory_bytes"] * (1.0 if limits.memory_bytes else 0.8) > available:
        raise OutOfMemory(
            f"The stage `{name}` needs about {needs['memory_bytes'] / 1e9:.1f} GB of memory, and there are "
            f"{available / 1e9:.1f} GB.",
            "Close other programs, lower `distill.micro_batch_tokens`, or choose a smaller student; then give the same "
            "command again: finished stages are kept.",
        )


@contextlib.contextmanager
def _translated(where: Path) -> Iterator[None]:
    """Turn low-level failures of the body into errors that a user can act on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        yield
    except Exception as error:
        named = isinstance(error, OSError) and error.filename
        known = translate(error, "" if named else str(where))
        if known is None or known is error:
            raise
        raise known from error
