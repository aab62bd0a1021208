"""The stage `evaluate`: the recipe's metrics of teacher, shrunk, student and baseline.

What is measured is kept in the run's folder ``measures``, a file a metric, and outlives the stage: a changed recipe
repeats only the metrics that it touches.
"""

from __future__ import annotations

from typing import Any

from stillroom.core import files
from stillroom.core.errors import RunError, UsageError
from stillroom.core.progress import Progress
from stillroom.evaluation.bench import Bench, bench_of
from stillroom.evaluation.floors import check_bounds
from stillroom.evaluation.measures import do_measures, finished_besides
from stillroom.evaluation.metric import Result
from stillroom.evaluation.original import kl_to_originals
from stillroom.evaluation.registry import require_metrics
from stillroom.models.compute import prepare
from stillroom.runs.run import Run, Stage
from stillroom.runs.stages import not_finished, require_one_result
from stillroom.teachers.several import any_endpoint


def run_stage(run: Run, stage: Stage, progress: Progress) -> None:
    """Measure; what an earlier process finished is not measured again."""
    bench = bench_of(run, progress, prepare(run.recipe.compute, run.recipe.public_seed))
    files.remove_leftovers(bench.folder)
    # First, when no model is in memory yet; the teacher that it leaves there is the next that is needed.
    originals = kl_to_originals(run, bench)
    results = do_measures(bench, run.recipe.evaluate.measures)
    found = gather(results, bench) | ({"kl_to_original": originals} if originals else {})
    files.write_json(stage.path / "evaluation.json", found)


def measure_only(run: Run, names: list[str], progress: Progress) -> dict[str, Result]:
    """Do some metrics of a run whose student is made, whatever its recipe asks for.

    Raises:
        UsageError: A name is not a metric's, or the metric is not for such a student.
        RunError: The student is not made yet, or of an earlier result of another stage.
    """
    require_metrics(names)
    if "tasks" in names and not run.recipe.evaluate.tasks.asks:
        raise UsageError(
            "The recipe names no tasks, so that there is nothing to measure.",
            "Add `evaluate: {tasks: {names: […]}}` to it (docs/tasks.md), or leave `tasks` out of --only.",
        )
    if "drafter" in names and run.recipe.student_with_own_tokenizer is not None:
        raise UsageError(
            "The metric `drafter` needs a student with the teacher's tokenizer, and this one has its own.",
            "Leave it out of --only.",
        )
    if run.stage("distill").record is None:
        raise RunError(f"{run.path}: the student is not trained yet.", f"Do it: stillroom distill {run.path}")
    # An endpoint's lists are evaluated from; a teacher that is here is opened again, whatever became of its cache.
    for name in ("corpus", "shrink", *(("capture",) if any_endpoint(run.recipe) else ())):
        if run.stage(name).record is None:
            raise not_finished(run, name)
    for name in ("distill", "baseline") if run.recipe.baseline else ("distill",):
        require_one_result(run, name)
    bench = bench_of(run, progress, prepare(run.recipe.compute, run.recipe.public_seed))
    return do_measures(bench, names)


def gather(results: dict[str, Result], bench: Bench) -> dict[str, Any]:
    """What the summary and the report are made of. A recipe cannot leave `fidelity` and `cost` out: they are its head."""
    fidelity, cost = results["fidelity"], results.get("cost", {"models": {}})
    return {
        "models": {name: cost["models"].get(name, {}) | fidelity["models"][name] for name in bench.names},
        "compared": fidelity["compared"],
        "paired": fidelity["paired"],
        "documents": fidelity["documents"],
        "effective_documents": fidelity["effective_documents"],
        "enough": fidelity["enough"],
        "interval": fidelity["interval"],
        "seed": bench.seed,
        "expansion": round(fidelity["tokens"]["student"] / fidelity["tokens"]["teacher"], 5),
        "bounds": check_bounds(bench.config, results),
        "measures": results,
    }


def extras(run: Run) -> dict[str, Result]:
    """Results of metrics that were done beside the recipe's and still hold for the run's models."""
    import torch

    return finished_besides(bench_of(run, Progress(quiet=True), torch.device("cpu")), run.recipe.evaluate.measures)
