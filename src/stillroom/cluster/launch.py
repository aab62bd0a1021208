"""Starts the processes that train together, by torch elastic, and waits for them.

The driver keeps the run's lock, its record and the terms; the processes are started for one stage and end with it. One that
is killed has all of them started again from the newest checkpoint, a few times.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

from stillroom.core import errors, files
from stillroom.core.errors import EnvironmentProblem, StillroomError, Terminated
from stillroom.core.progress import Progress
from stillroom.runs.run import Run, Stage
from stillroom.training.group import Group, Sharding

RESTARTS = 3
DIVIDE_FROM_BYTES = 8e9
"""A student whose stored weights are larger is divided among the processes; a smaller one is held whole by each."""
SAVE_SECONDS = 600
"""What processes have for their step and its checkpoint when SIGTERM comes; torch elastic alone would kill them after 30. Who
sends the signal has a limit too."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
NOTES = "notes.json"
"""In the stage's scratch folder: what rank 0 wants in the stage's record."""


def train_together(run: Run, stage: Stage, workers: int, progress: Progress, sharding: Sharding | None = None) -> None:
    """Train a stage in several processes on this machine.

    Raises:
        EnvironmentProblem: The processes died more often than they are started again.
        Terminated: SIGTERM; a checkpoint was written.
        StillroomError: What one of them said.
    """
    from torch.distributed.elastic.multiprocessing import SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if sharding is None:
        large = files.folder_bytes(run.stage("shrink").path / "model") > DIVIDE_FROM_BYTES
        sharding = "full" if large else "replicate"
    progress.say(f"  {workers} processes ({'weights whole in each' if sharding == 'replicate' else 'weights divided'})")
    stage.scratch.mkdir(parents=True, exist_ok=True)
    (stage.scratch / NOTES).unlink(missing_ok=True)
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "TORCHELASTIC_ERROR_FILE")}
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    # Torch elastic puts its own in place and leaves them there, where the stages after this one do not expect them.
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in SIGNALS} if main else {}
    known = {field.name for field in dataclasses.fields(LaunchConfig)}
    more: dict[str, Any] = {"shutdown_timeout": SAVE_SECONDS} if "shutdown_timeout" in known else {}
    with tempfile.TemporaryDirectory(prefix="stillroom-workers-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=workers,
            run_id=f"stillroom-{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=RESTARTS,
            monitor_interval=0.2,
            start_method="spawn",
            log_line_prefix_template="",
            logs_specs=_logs(Path(logs), Std.ALL),
            **more,
        )
        try:
            answers: dict[int, Any] = elastic_launch(config, work)(
                str(run.path.absolute()), stage.name, sharding, progress.quiet
            )
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise Terminated(
                f"Stopped by SIGTERM in the stage `{stage.name}`.",
                "A checkpoint was written; the same command goes on.",
            ) from None
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise EnvironmentProblem(
                f"{run.path}: process {rank} of the stage `{stage.name}` ended with code {failure.exitcode}, and again after "
                f"{RESTARTS} new starts: {_last_line(Path(logs)) or failure.message}",
                "The same command goes on from the newest checkpoint; --workers 1 trains in one process.",
            ) from None
        finally:
            for number, handler in handlers.items():
                if handler is not None:
                    signal.signal(number, handler)
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
    for answer in answers.values():
        if answer is not None:
            raise _error(*answer)
    stage.notes.update(files.read_json(stage.scratch / NOTES))


def work(path: str, name: str, sharding: Sharding, quiet: bool) -> tuple[str, str, str] | None:
    """What each process does: its part of a stage. Returns an error that all of them had."""
    from stillroom.training.stage import run_in_group

    group = Group.join(sharding)
    run = Run.open(path)
    stage = run.stage(name)
    try:
        run_in_group(run, stage, Progress(quiet or not group.first), group)
    except (errors.TrainingDiverged, errors.Terminated, errors.UsageError) as error:
        # All processes have the same one: to start again would not help.
        return (type(error).__name__, error.what, error.todo)
    if group.first:
        files.write_json(stage.scratch / NOTES, stage.notes)
    group.barrier()
    group.leave()
    return None


def _logs(folder: Path, std: Any) -> Any:
    """Outputs of the processes in files; what rank 0 says is shown."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std

    return DefaultLogsSpecs(log_dir=str(folder), redirects=std, tee={0: Std.ERR})


def _last_line(folder: Path) -> str:
    """The last line that a process wrote to stderr."""
    for path in sorted(folder.rglob("stderr.log"), key=lambda path: -path.stat().st_mtime):
        lines = path.read_text(errors="replace").strip().splitlines()
        if lines:
            return lines[-1][:300]
    return ""


def _error(kind: str, what: str, todo: str) -> StillroomError:
    found = getattr(errors, kind, EnvironmentProblem)
    error: StillroomError = found(what, todo)
    return error
