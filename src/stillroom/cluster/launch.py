"""Starts the processes that train together, by torch elastic, and waits for them.

The driver keeps the run's lock, its record and the terms; the processes are started for one stage and end with it. One that
is killed has all of them started again from the newest checkpoint, a few times; one that ends with an error of ours ends them
all. The owner's switch stops them as it stops engines. On several machines each has a driver that starts its own processes:
see :mod:`stillroom.cluster.nodes`.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillroom.cluster.nodes import Nodes
from stillroom.core import files
from stillroom.core.errors import EnvironmentProblem, StillroomError, Terminated, told, translate
from stillroom.core.progress import Progress
from stillroom.recipe.recipe import Recipe
from stillroom.runs.run import Run, Stage
from stillroom.switch import Places, Switch
from stillroom.switch.engines import Registration
from stillroom.training.group import Group, Sharding, end_process
from stillroom.training.refusals import require_group, require_group_s_checkpoint

RESTARTS = 3
DIVIDE_FROM_BYTES = 8e9
"""A student whose stored weights are larger is divided among the processes; a smaller one is held whole by each."""
SAVE_SECONDS = 600
"""What processes have for their step and its checkpoint when SIGTERM comes; torch elastic alone would kill them after 30. Who
sends the signal has a limit too."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
END_SECONDS = 30
"""How long a process that has said its error waits for its end: the agent looks several times per second."""
TERMINATED_SECONDS = 1
"""The same where all of them stop after a checkpoint: an agent that sent SIGTERM waits until they have ended."""
ELASTIC_LOGGERS = tuple(
    f"torch.distributed.elastic.{name}"
    for name in ("multiprocessing.api", "agent.server.api", "multiprocessing.redirects")
)
NOTES = "notes.json"
"""In the stage's scratch folder: what rank 0 wants in the stage's record."""


def train_together(
    run: Run,
    stage: Stage,
    workers: int,
    progress: Progress,
    sharding: Sharding | None = None,
    nodes: Nodes | None = None,
) -> None:
    """Train a stage in several processes on this machine, and on the others where there are several.

    Args:
        run: The run.
        stage: One that trains.
        workers: Processes on this machine.
        progress: Says how it goes.
        sharding: How the student is shared; None decides by its size.
        nodes: The machines.

    Raises:
        EnvironmentProblem: The processes died more often than they are started again.
        SwitchedOff: The owner's switch is off, or was turned off meanwhile: the newest checkpoint is kept.
        Terminated: SIGTERM.
        StillroomError: What one of them said.
    """
    from torch.distributed.elastic.multiprocessing import SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig

    from stillroom.cluster import agent

    places = Places.of_user()
    switch = Switch(places)
    switch.require_on()
    leads = nodes is None or nodes.first
    require_group_s_checkpoint(stage.scratch, workers, nodes.node.count if nodes is not None else 1)
    words: Any = multiprocessing.get_context("spawn").SimpleQueue()

    def check() -> None:
        try:
            if not words.empty():
                raise told(*words.get())
            switch.require_on()
        except StillroomError as error:
            # Before the processes here are killed: those of other machines must not be started again because of that.
            if nodes is not None:
                nodes.tell(error)
            raise
        if nodes is not None:
            nodes.ask()

    if sharding is None:
        large = files.folder_bytes(run.stage("shrink").path / "model") > DIVIDE_FROM_BYTES
        sharding = sharding_of(large, workers, 1 if nodes is None else nodes.node.count)
    how = {"replicate": "weights whole in each", "full": "weights divided", "hybrid": "weights divided on each machine"}
    where = f"{workers}" if nodes is None else f"{nodes.node.count} machines: {nodes.node.count * workers}"
    progress.say(f"  {where} processes ({how[sharding]})")
    if leads:
        stage.scratch.mkdir(parents=True, exist_ok=True)
        (stage.scratch / NOTES).unlink(missing_ok=True)
    if nodes is not None and leads:
        nodes.begin(stage.name, sharding)
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "TORCHELASTIC_ERROR_FILE", agent.OWN_STORE)}
    os.environ[agent.OWN_STORE] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    # Torch elastic puts its own in place and leaves them there, where the stages after this one do not expect them.
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in SIGNALS} if main else {}
    known = {field.name for field in dataclasses.fields(LaunchConfig)}
    more: dict[str, Any] = {"shutdown_timeout": SAVE_SECONDS} if "shutdown_timeout" in known else {}
    with tempfile.TemporaryDirectory(prefix="stillroom-workers-") as logs:
        config = LaunchConfig(
            min_nodes=1 if nodes is None else nodes.node.count,
            max_nodes=1 if nodes is None else nodes.node.count,
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

        def died(rank: int, code: int) -> None:
            why = _last_line(_last_words(Path(logs)))
            progress.say(
                f"  process {rank} ended with code {code}{f' ({why})' if why else ''}: all are started again from the newest "
                "checkpoint"
            )

        try:
            arguments = (str(run.path.absolute()), stage.name, sharding, progress.quiet, words, places)
            meeting = None
            if nodes is not None:
                name = f"{stage.name}-{nodes.stages}"
                meeting = agent.NodesRendezvous(nodes.connect(), name, nodes.node, check)
            with _quiet_elastic():
                agent.launch(config, work, arguments, check, died, meeting)
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            check()
            # None of them was in its steps yet, or any more.
            raise Terminated(
                f"Stopped by SIGTERM in the stage `{stage.name}`.",
                "The same command goes on from the newest checkpoint.",
            ) from None
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            last = _last_words(Path(logs))
            kept = _kept(last, stage.scratch / f"process-{rank}.txt")
            raise EnvironmentProblem(
                f"{run.path}: process {rank} of the stage `{stage.name}` ended with code {failure.exitcode}, and again after "
                f"{RESTARTS} new starts: {_last_line(last) or failure.message}",
                (f"All that it said is in {kept}. " if kept else "")
                + "The same command goes on from the newest checkpoint; --workers 1 trains in one process.",
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
    if leads:
        stage.notes.update(files.read_json(stage.scratch / NOTES))


def sharding_of(large: bool, workers: int, nodes: int) -> Sharding:
    """How processes share a student.

    Args:
        large: Whether it is too large for each to hold it whole.
        workers: Processes on each machine.
        nodes: Machines.
    """
    if not large:
        return "replicate"
    # Parts are exchanged in every layer, which within a machine is faster; one process there has no other to divide with.
    return "hybrid" if nodes > 1 and workers > 1 else "full"


def serve(path: Path, recipe: Recipe, nodes: Nodes, progress: Progress) -> None:
    """On another node than 0: train each stage that node 0 begins, until it ends.

    Args:
        path: The run's folder, which node 0 makes and writes.
        recipe: The recipe, as this node was given it.
        nodes: The machines.
        progress: Says how it goes.

    Raises:
        StillroomError: What any node ended with.
    """
    node = nodes.node
    progress.say(f"node {node.rank} of {node.count}: waits for node 0 at {node.host}:{node.port}")
    with nodes.joined():
        Switch(Places.of_user()).require_on()
        require_group(recipe, node.workers, node.count)
        nodes.fit(path)
        progress.say(f"node {node.rank}: works for {path}")
        while (found := nodes.next_stage()) is not None:
            name, sharding = found
            progress.say(name)
            made = Run.open(path)
            train_together(made, made.stage(name), node.workers, progress, sharding, nodes)


def work(path: str, name: str, sharding: Sharding, quiet: bool, words: Any, places: Places) -> None:
    """What each process does: its part of a stage.

    Args:
        path: The run's folder.
        name: The stage.
        sharding: How the student is shared.
        quiet: Whether nothing is drawn.
        words: A queue that takes the error that it ends with, where that is one of ours.
        places: The switch's.
    """
    try:
        # Written down before the switch is asked: see `stillroom.switch.engines`.
        with contextlib.closing(Registration(places, "engine", f"{name} of {Path(path).name}")):
            Switch(places).require_on()
            _take_part(path, name, sharding, quiet)
    except Exception as error:
        named = isinstance(error, OSError) and error.filename
        known = translate(error, "" if named else path)
        if known is None:
            # Of another process that is gone, or a fault: all are started again. Which of the two, the agent hears; what is
            # written to stderr would be shown before that.
            _fault_file().write_text(traceback.format_exc(), encoding="utf-8")
            end_process(1)
        words.put((type(known).__name__, known.what, known.todo))
        # What others wait for from this process must not fail before the agent has heard why.
        time.sleep(TERMINATED_SECONDS if isinstance(known, Terminated) else END_SECONDS)
        end_process(known.exit_code)
    atexit.register(end_process)


def _take_part(path: str, name: str, sharding: Sharding, quiet: bool) -> None:
    from stillroom.training.stage import run_in_group

    group = Group.join(sharding)
    run = Run.open(path)
    stage = run.stage(name)
    run_in_group(run, stage, Progress(quiet or not group.first), group)
    if group.first:
        files.write_json(stage.scratch / NOTES, stage.notes)
    group.barrier()
    group.leave()


def _logs(folder: Path, std: Any) -> Any:
    """Outputs of the processes in files; what rank 0 says is shown."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std

    return DefaultLogsSpecs(log_dir=str(folder), redirects=std, tee={0: Std.ERR})


FAULT = "fault.txt"
"""Beside the file into which torch elastic has a process write its error: the traceback of an error that is not ours."""


def _fault_file() -> Path:
    return Path(os.environ["TORCHELASTIC_ERROR_FILE"]).with_name(FAULT)


def _last_words(folder: Path) -> str:
    """The newest error that a process had, or what it wrote to stderr."""
    for name in (FAULT, "stderr.log"):
        for path in sorted(folder.rglob(name), key=lambda path: -path.stat().st_mtime):
            if text := path.read_text(encoding="utf-8", errors="replace").strip():
                return text
    return ""


def _last_line(words: str) -> str:
    """The last line of that."""
    return words.rpartition("\n")[2][:300]


def _kept(words: str, file: Path) -> Path | None:
    """The file, with all of that in it; None where there is nothing to write, or it cannot be written."""
    if not words:
        return None
    try:
        files.write_text(file, words + "\n")
    except OSError:
        return None
    return file


@contextlib.contextmanager
def _quiet_elastic() -> Iterator[None]:
    """Torch elastic says of a process that ended, with a traceback of its own, what is said here in a line; with the
    environment variable LOGLEVEL, which is PyTorch's, it says all.
    """
    loggers = [] if "LOGLEVEL" in os.environ else [logging.getLogger(name) for name in ELASTIC_LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
