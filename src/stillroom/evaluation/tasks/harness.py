"""Tasks of lm-evaluation-harness by their own names, as an extra.

The harness makes the requests and evaluates the answers; a thin class of its kind passes them to our :class:`Speaker`.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from stillroom.core import files
from stillroom.core.errors import RecipeError, translate
from stillroom.core.extras import require
from stillroom.evaluation.answers import Speaker
from stillroom.recipe.task_data import files_of_folder

METRICS = ("exact_match", "pass@1", "acc", "acc_norm", "em", "f1")
"""Which number says whether an item is right, by preference; it must be 0 or 1 for each."""


def require_names(names: list[str], include: Path | None = None) -> None:
    """Refuse names that no task has.

    Args:
        names: Tasks or groups of them.
        include: A folder with more of them.

    Raises:
        MissingDependency: The harness is not installed.
        RecipeError: A name is not known, or the folder is missing.
    """
    known = set(_manager(names[0], include).all_tasks)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise RecipeError(
            f"`evaluate.tasks.names`: {', '.join(unknown)}: no such task.",
            "Built in are humaneval, bfcl_simple, bfcl_irrelevance and reasoning_gym/GENERATOR; `lm-eval ls tasks` lists "
            "those of lm-evaluation-harness.",
        )


def folder_digest(include: Path) -> str:
    """Changes when a file of the folder does, or data elsewhere that its tasks name."""
    return files.digest_json(
        [[path.as_posix(), files.digest_file(include / path)] for path in files_of_folder(include)]
    )


def run_task(name: str, speaker: Speaker, limit: int | None, seed: int, include: Path | None = None) -> dict[str, Any]:
    """One of the harness's tasks (or group of them), or one of the folder ``include``.

    Returns:
        By task: ``metric``, ``digest`` of what was asked and, in the order of the data, ``items`` with ``right``. Where a
        task looks for answers by several filters, the first one counts, and ``metric`` names it. ``cut`` is how many
        prompts of all of them lost their beginning, for want of context.

    Raises:
        RecipeError: The task has no number that says of each item whether it is right, or its data is not available.
    """
    manager = _manager(name, include)
    import lm_eval

    adapter = _adapter()(speaker)
    try:
        output: Any = lm_eval.simple_evaluate(
            model=adapter,
            tasks=[name],
            limit=limit,
            log_samples=True,
            bootstrap_iters=0,
            task_manager=manager,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except Exception as error:
        known = translate(error, name)
        if known is not None:
            raise known from None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecipeError(
            f"The task `{name}` of lm-evaluation-harness cannot be done: {reason}",
            "Its data may have to be fetched first, on a machine with network.",
        ) from error
    found = {}
    for task, logged in output["samples"].items():
        # One line for each document and filter.
        filters = list(dict.fromkeys(str(sample.get("filter", "none")) for sample in logged))
        samples = [sample for sample in logged if str(sample.get("filter", "none")) == filters[0]]
        if len({sample["doc_id"] for sample in samples}) < len(samples):
            raise RecipeError(
                f"The task `{task}` of lm-evaluation-harness counts a problem more than once.",
                "Its items could not be paired: leave it out.",
            )
        metric = next((m for m in METRICS if samples and all(s.get(m) in (0, 1) for s in samples)), None)
        if metric is None:
            raise RecipeError(
                f"The task `{task}` has no number that says of each item whether it is right.",
                f"Tasks with one of these are taken: {', '.join(METRICS)}.",
            )
        ordered = sorted(samples, key=lambda sample: int(sample["doc_id"]))
        asked = json.dumps([[sample["doc"], sample["target"]] for sample in ordered], sort_keys=True, default=str)
        found[task] = {
            "metric": metric if len(filters) < 2 else f"{metric} ({filters[0]})",
            "cut": adapter.cut,
            "digest": files.digest_bytes(asked.encode()),
            "items": [{"right": bool(sample[metric])} for sample in ordered],
        }
    return found


def _manager(name: str, include: Path | None) -> Any:
    require(
        "tasks",
        f"The task `{name}` is neither built in nor a file; lm-evaluation-harness, which may know it, is not installed.",
    )
    from lm_eval.tasks import TaskManager

    if include is not None and not include.is_dir():
        raise RecipeError(f"`evaluate.tasks.include_path`: there is no folder {include}.", "Check the path.")
    return TaskManager(include_path=str(include) if include else None)


@functools.cache
def _adapter() -> Any:
    """The class, made when the harness is there."""
    from lm_eval.api.model import LM

    class StillroomLM(LM):  # type: ignore[misc]
        """Passes the harness's requests to a speaker."""

        def __init__(self, speaker: Speaker) -> None:
            super().__init__()
            self.speaker = speaker
            self.cut = 0

        @property
        def tokenizer_name(self) -> str:
            """For the harness's cache of requests."""
            return "stillroom"

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:  # noqa: ARG002
            """Log-likelihood of each continuation, and whether it is the greedy one."""
            found = self.speaker.log_likelihoods([request.args for request in requests])
            self.cut += sum(self.speaker.cut)
            return found

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
            """Log-likelihood of each text."""
            return [self.speaker.rolling(request.args[0]) for request in requests]

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
            """Greedy continuations."""
            found: list[str] = [""] * len(requests)
            groups: dict[tuple[tuple[str, ...], int], list[int]] = {}
            for index, request in enumerate(requests):
                settings = dict(request.args[1])
                until = settings.get("until") or ()
                stops = (until,) if isinstance(until, str) else tuple(until)
                groups.setdefault((stops, int(settings.get("max_gen_toks") or 256)), []).append(index)
            for (stops, limit), indices in groups.items():
                answers = self.speaker.write([requests[index].args[0] for index in indices], limit, stops)
                self.cut += sum(self.speaker.cut)
                for index, answer in zip(indices, answers, strict=True):
                    found[index] = answer.text
            return found

    return StillroomLM
