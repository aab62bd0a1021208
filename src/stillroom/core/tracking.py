"""Metrics to TensorBoard, Weights & Biases or MLflow, when the recipe asks for it.

Everything that a run writes into ``events.jsonl`` with a step goes there too, as ``stage/name``. The trackers are the user's
own packages and go by their own settings (``WANDB_MODE``, ``MLFLOW_TRACKING_URI``); nothing is sent anywhere unless asked for.
A tracker that fails in the middle is left alone from then on, with a warning: training goes on.

The trackers of accelerate are not used: they cannot start without its ``PartialState`` (tried with 1.15), which decides the
device of the whole process before the recipe's ``compute.device`` is read, and where ``RANK`` is set waits for the other
processes. Where MLflow writes, and that stages have steps of their own, would have to be said here all the same.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from stillroom.core.errors import EnvironmentProblem, MissingDependency, StillroomError, first_line

Tracker = Literal["tensorboard", "wandb", "mlflow"]
Log = Callable[[dict[str, float], int], None]


def open_trackers(names: tuple[Tracker, ...], run: Path) -> list[Log]:
    """Functions that log metrics at a step.

    Args:
        names: Which trackers.
        run: The run's folder; its name is the run's name there.

    Raises:
        MissingDependency: A tracker is not installed.
        EnvironmentProblem: A tracker does not start.
    """
    return [_open(name, run) for name in names]


def _open(name: Tracker, run: Path) -> Log:
    try:
        log = _OPENERS[name](run)
    except StillroomError:
        raise
    except Exception as error:
        raise EnvironmentProblem(
            f"The tracker `{name}` does not start: {first_line(error)}",
            "See to its settings, or take it out of the recipe's `track`.",
        ) from error
    failed = False

    def careful(numbers: dict[str, float], step: int) -> None:
        nonlocal failed
        if failed:
            return
        try:
            log(numbers, step)
        except Exception as error:
            failed = True
            warnings.warn(
                f"The tracker `{name}` failed and gets no more numbers: {first_line(error).removesuffix('.')}",
                stacklevel=2,
            )

    return careful


def metrics_of(stage: str, values: dict[str, Any]) -> tuple[dict[str, float], int] | None:
    """The numbers of an event and its step; None for an event without them."""
    step = values.get("step")
    if not isinstance(step, int) or isinstance(step, bool):
        return None
    prefix = f"{stage}/validation_" if values.get("event") == "validation" else f"{stage}/"
    numbers = {
        f"{prefix}{key}": float(value)
        for key, value in values.items()
        if key != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return (numbers, step) if numbers else None


def _tensorboard(run: Path) -> Log:
    _require("tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run / "tensorboard"))

    def log(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log


def _wandb(run: Path) -> Log:
    wandb = _require("wandb", "wandb")
    tracked = wandb.init(project="stillroom", name=run.name, dir=str(run), resume="allow", reinit="finish_previous")

    def log(numbers: dict[str, float], step: int) -> None:
        # Stages have steps of their own, so that the step is a metric like others.
        tracked.log(numbers | {"step": step})

    return log


def _mlflow(run: Path) -> Log:
    mlflow = _require("mlflow", "mlflow")
    if not mlflow.is_tracking_uri_set():
        mlflow.set_tracking_uri(f"sqlite:///{(run / 'mlflow.db').absolute().as_posix()}")
    mlflow.set_experiment("stillroom")
    if mlflow.active_run() is None:
        mlflow.start_run(run_name=run.name)

    def log(numbers: dict[str, float], step: int) -> None:
        mlflow.log_metrics(numbers, step=step)

    return log


_OPENERS: dict[str, Callable[[Path], Log]] = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}


def _require(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingDependency(
            f"The recipe tracks metrics with `{module}`, which is not installed.",
            f"Install it (pip install {package}), or take it out of `track`.",
        ) from None
