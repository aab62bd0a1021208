"""Capture on Ray: actors that each hold the teacher, and a queue of units that survives the loss of any of them.

Ray's own retries are not used: it waits for ever for an actor that cannot come back when a node is lost and nothing is spare.
Here a unit of an actor that died goes back to the queue, and a successor gets units only once it answers. Near the end slow
units are given to idle workers a second time; the first result counts. Both are safe because a unit is put once, under a name
of its content.

Workers need the run's folder, the teacher and the cache at the same paths (a shared file system), or the cache in an object
store.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import signal
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from stillroom import switch
from stillroom.cluster.sigterm import raised_by_sigterm
from stillroom.core.errors import EnvironmentProblem, SignalError, StillroomError, Terminated, UsageError
from stillroom.core.extras import require
from stillroom.core.memory import release_memory
from stillroom.core.progress import Progress, Task
from stillroom.runs.run import Run
from stillroom.teachers.units import Units, open_units

if TYPE_CHECKING:
    import psutil

TRIES = 3
"""How often a unit may fail by an error of its own, and how often in a row a worker may fail to start."""
AHEAD = 2
"""Units that a worker has at the same time: one that it works on and one that waits."""
STRAGGLER = 2.0
"""A unit that takes so many times the median is given to a second worker, where one is idle."""
PATIENCE = 120.0
"""Seconds for which workers may fail to start because of the cluster: Ray offers a node that is gone until it has noticed."""
PAUSE = 3.0
"""Seconds before the next worker is asked for after such a failure."""
START_SECONDS = 120
"""Seconds that the processes of a cluster on this machine are given to start."""
STARTS = 3
"""How often a cluster on this machine is started where it does not answer in time."""
POLL_SECONDS = 0.5
OBJECT_STORE_BYTES = 100 << 20
"""Ray's object store of a local cluster: a unit is two numbers in and a few hundred bytes out."""


class Work(Protocol):
    """What the queue gives to a worker by its name."""

    @property
    def name(self) -> str:
        """Unlike any other's."""
        ...


class Capturer:
    """An actor: the teacher, and the units of a run."""

    def __init__(self, path: str) -> None:
        self._units = open_units(Run.open(path))
        self._by_name = {unit.name: unit for unit in self._units.units}

    def ready(self) -> int:
        """Its process, once the teacher is loaded."""
        return os.getpid()

    def make(self, name: str) -> tuple[int, bool]:
        """Capture a unit; its process, and whether it was first."""
        unit = self._by_name.get(name)
        if unit is None:
            raise SignalError(
                f"The cache was sealed while units of it were made: the unit {name[:12]}… is not one of it any more.",
                "Give the same command again: it goes on with what is missing.",
            )
        return os.getpid(), self._units.make(unit)


@dataclass
class Counts:
    """What happened."""

    units: int = 0
    put_back: int = 0
    doubled: int = 0
    not_first: int = 0
    hired: int = 0
    pids: set[int] = field(default_factory=set)


def capture_on_ray(run: Run, address: str, workers: int | None, progress: Progress) -> Counts:
    """Make every unit of a run's capture that is not done, on a Ray cluster.

    Args:
        run: The run; its corpus is finished.
        address: Of the cluster, ``auto``, or ``local``.
        workers: Workers at most; None takes one per GPU, or else per core.
        progress: Draws the bar.

    Raises:
        SwitchedOff: The owner's switch was turned off: the workers are stopped.
        EnvironmentProblem: The cluster cannot be reached, or workers cannot start on it.
        StillroomError: What a unit failed with, more than once.
    """
    switch.require_on()
    units = open_units(run)
    todo = units.missing()
    if not todo:
        return Counts()
    tokens = {unit.name: units.tokens(unit) for unit in units.units}
    # The driver needs the teacher's identity alone; its weights are the workers'.
    del units.teacher
    release_memory()
    with (
        connected(address, workers) as ray,
        progress.task("capture", total=sum(tokens[unit.name] for unit in todo)) as task,
    ):
        count, gpus = _places(ray, workers)
        return Queue(ray, str(run.path.absolute()), todo, min(count, len(todo)), gpus, task, tokens, progress).work()


@contextlib.contextmanager
def connected(address: str, workers: int | None = None) -> Iterator[Any]:
    """Ray, connected to a cluster while the body runs. It sends no usage statistics and opens no dashboard.

    Raises:
        UsageError: Authentication of Ray was turned off.
        EnvironmentProblem: There is no cluster at the address.
        Terminated: SIGTERM, while the body runs.
    """
    require("cluster", "--ray needs {}, which is not installed.")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"].lower() == "disabled":
        raise UsageError(
            "RAY_AUTH_MODE=disabled: anyone who reaches the cluster's port could run code on it.",
            "Unset it, and give every node the same token: RAY_AUTH_TOKEN_PATH.",
        )
    folder: str | None = None
    if address == "local":
        if "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        # Ray gives its own processes 30 and 60 seconds, which is too little where the machine is busy.
        os.environ.setdefault("RAY_raylet_start_wait_time_s", str(START_SECONDS))
        os.environ.setdefault("RAY_DASHBOARD_STARTUP_TIMEOUT_S", str(START_SECONDS))
        # Short, because names of sockets in it are limited to 107 bytes.
        folder = tempfile.mkdtemp(prefix="sr-ray-")
    import ray

    _read_token_again()
    with contextlib.ExitStack() as stack:
        if folder is not None:
            stack.callback(_clear, folder)
        try:
            with _own_sigterm():
                if folder is not None:
                    _start(ray, workers or os.cpu_count() or 1, folder)
                else:
                    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__).strip()
            if folder is not None:
                raise EnvironmentProblem(
                    f"--ray local: Ray did not start on this machine: {first[:300]}",
                    "A busy machine is hard on it: give the same command again, or leave --ray out.",
                ) from None
            raise EnvironmentProblem(
                f"--ray {address}: there is no Ray cluster that answers: {first[:300]}",
                "Check the address and the token (RAY_AUTH_TOKEN_PATH), or use --ray local.",
            ) from None
        # Actors belong to their driver: they end with it, on every node.
        stack.callback(ray.shutdown)
        stack.enter_context(raised_by_sigterm(Terminated("Stopped by SIGTERM.", "The same command goes on.")))
        yield ray


def _read_token_again() -> None:
    """Ray keeps the first token that a process read, and its servers take the environment's: after a change none answered."""
    with contextlib.suppress(ImportError):  # internal to Ray, and not in every release
        from ray import _raylet

        loader: Any = getattr(_raylet, "AuthenticationTokenLoader", None)
        if loader is not None:
            loader.instance().reset_cache()


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """What SIGTERM means before the body runs, it means afterwards: Ray gives it a handler of its own, which would stay."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


SLOW = ("timed out", "Failed to start GCS")
"""What Ray says where its processes did not come up in time."""


def _start(ray: Any, cores: int, folder: str) -> None:
    """A cluster on this machine, tried several times: Ray's node waits 15 seconds for its agents and no longer (ray#65983)."""
    for left in reversed(range(STARTS)):
        try:
            ray.init(
                num_cpus=cores,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=folder,
            )
        except Exception as error:
            ray.shutdown()
            _end(folder)
            if not left or not any(sign in str(error) for sign in SLOW):
                raise
        else:
            return


def processes_in(folder: str) -> Iterator[psutil.Process]:
    """Ray's processes of a cluster in a folder: each was given a path in it as the value of an option. A program whose command
    line only mentions the folder is none of them.

    Raises:
        ValueError: The folder is not a full path: any program's word could be one of its names.
    """
    import psutil

    if not folder.startswith(os.sep):
        raise ValueError(f"the folder of a cluster has to be a full path, and not {folder}")
    value = re.compile("|".join(rf"--[\w-]+={re.escape(path)}(?:/|$)" for path in {folder, os.path.realpath(folder)}))
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(value.match(part) for part in process.cmdline()):
                yield process


def _end(folder: str) -> None:
    """End what a start that failed has left: Ray forgets the processes that came up."""
    import psutil

    for process in processes_in(folder):
        with contextlib.suppress(psutil.Error):
            process.kill()


def _clear(folder: str) -> None:
    """Remove the folder of a cluster on this machine, and what still runs in it."""
    _end(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _places(ray: Any, workers: int | None) -> tuple[int, int]:
    """Workers that the cluster takes, and GPUs of each."""
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0))
    count = gpus or int(there.get("CPU", 1))
    return max(1, count if workers is None else min(workers, count)), 1 if gpus else 0


@dataclass
class _Flight:
    """A unit that an actor has."""

    actor: Any
    unit: Work
    since: float


class Queue:
    """Gives units to actors until all are done. A class below it says what a worker is and what becomes of its results."""

    worker: ClassVar[type] = Capturer

    def __init__(
        self,
        ray: Any,
        given: str,
        todo: Sequence[Work],
        workers: int,
        gpus: int,
        task: Task,
        tokens: dict[str, int],
        progress: Progress,
    ) -> None:
        self.ray = ray
        self.given = given
        self.queue = deque(todo)
        self.left = {unit.name for unit in todo}
        self.workers = workers
        self.task = task
        self.tokens = tokens
        self.progress = progress
        self.counts = Counts(units=len(todo))
        self.actor_class = ray.remote(num_cpus=0 if gpus else 1, num_gpus=gpus, max_restarts=0, max_task_retries=0)(
            self.worker
        )
        self.pool: list[Any] = []
        self.coming: dict[Any, Any] = {}
        self.flying: dict[Any, _Flight] = {}
        self.took: list[float] = []
        self.failed: dict[str, int] = {}
        self.failed_starts = 0
        self.failing_since = 0.0
        self.hire_at: list[float] = []

    def work(self) -> Counts:
        """Until every unit is done."""
        for _ in range(self.workers):
            self._hire()
        alone = time.monotonic()
        while self.left:
            switch.require_on()
            self._hire_again()
            self._give()
            asked = [*self.flying, *self.coming]
            if not asked:
                time.sleep(POLL_SECONDS)
                continue
            ready, _ = self.ray.wait(asked, num_returns=1, timeout=POLL_SECONDS)
            for reference in ready:
                if reference in self.coming:
                    self._arrived(reference)
                else:
                    self._came_back(reference)
            if self.pool:
                alone = time.monotonic()
            elif time.monotonic() - alone > 60:
                self.progress.say("  no worker answers; waiting for a place on the cluster")
                alone = time.monotonic()
        return self.counts

    def _hire(self) -> None:
        actor = self.actor_class.remote(self.given)
        self.coming[actor.ready.remote()] = actor
        self.counts.hired += 1

    def _hire_again(self) -> None:
        """Workers whose start failed, after a pause."""
        due = [at for at in self.hire_at if at <= time.monotonic()]
        self.hire_at = [at for at in self.hire_at if at not in due]
        for _ in due:
            self._hire()

    def _give(self) -> None:
        """Units to workers that are free; where none waits, slow ones a second time."""
        for actor in self.pool:
            mine = sum(flight.actor is actor for flight in self.flying.values())
            while self.queue and mine < AHEAD:
                unit = self.queue.popleft()
                if unit.name in self.left:
                    self._send(actor, unit)
                    mine += 1
            if not self.queue and not mine and (slow := self._slowest()) is not None:
                self.counts.doubled += 1
                self._send(actor, slow)

    def _send(self, actor: Any, unit: Work) -> None:
        self.flying[actor.make.remote(unit.name)] = _Flight(actor, unit, time.monotonic())

    def _slowest(self) -> Work | None:
        """The unit that one worker has had longest, where that is long for a unit."""
        copies: dict[str, int] = {}
        for flight in self.flying.values():
            copies[flight.unit.name] = copies.get(flight.unit.name, 0) + 1
        one = [
            flight for flight in self.flying.values() if copies[flight.unit.name] == 1 and flight.unit.name in self.left
        ]
        if not one or not self.took:
            return None
        oldest = min(one, key=lambda flight: flight.since)
        waited = time.monotonic() - oldest.since
        return oldest.unit if waited > STRAGGLER * statistics.median(self.took) else None

    def _arrived(self, reference: Any) -> None:
        actor = self.coming.pop(reference)
        try:
            self.counts.pids.add(self.ray.get(reference))
        except self.ray.exceptions.RayError as error:
            now = time.monotonic()
            self.failing_since = now if not self.failed_starts else self.failing_since
            self.failed_starts += 1
            if self.failed_starts > TRIES * self.workers:
                # An error of the worker's own is the same every time. One of the cluster may pass, and others go on meanwhile.
                if is_own(self.ray, error):
                    raise cause_of(error, "Workers cannot start on the cluster") from None
                if not self.pool and now - self.failing_since > PATIENCE:
                    raise cause_of(error, "Workers cannot start on the cluster", NEVER_STARTED) from None
            self.hire_at.append(now if is_own(self.ray, error) else now + PAUSE)
            return
        self.failed_starts = 0
        self.pool.append(actor)

    def _came_back(self, reference: Any) -> None:
        flight = self.flying.pop(reference)
        name = flight.unit.name
        try:
            result = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            self.failed[name] = self.failed.get(name, 0) + 1
            if self.failed[name] >= TRIES:
                raise cause_of(error, f"The unit {name[:12]}… failed {TRIES} times") from None
            self.queue.append(flight.unit)
            return
        except self.ray.exceptions.RayError:
            # Its process or its node is gone.
            if name in self.left:
                self.counts.put_back += 1
                self.queue.append(flight.unit)
            if any(actor is flight.actor for actor in self.pool):
                self.pool = [actor for actor in self.pool if actor is not flight.actor]
                self._hire()
            return
        self.took.append(time.monotonic() - flight.since)
        self._keep(name, result)
        if name in self.left:
            self.left.remove(name)
            self.task.advance(self.tokens[name])

    def _keep(self, _name: str, result: Any) -> None:
        """What a worker gave back of a unit; it may come twice."""
        self.counts.not_first += not result[1]


NEVER_STARTED = (
    "Check that every node was started with RAY_AUTH_MODE=token and the token of this machine, can reach this machine, "
    "and has Stillroom and the run's folder; see Ray's logs on the nodes."
)


def is_own(ray: Any, error: Any) -> bool:
    """Whether a worker's start failed by an error of its code, and not by the cluster."""
    return isinstance(error, ray.exceptions.RayTaskError) or bool(getattr(error, "actor_init_failed", False))


def cause_of(error: Any, what: str, todo: str = "See Ray's logs on the node.") -> StillroomError:
    """A worker's own error where it is one of ours."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, StillroomError):
        return cause
    lines = str(error).strip().splitlines()
    return EnvironmentProblem(f"{what}: {lines[-1][:300] if lines else type(error).__name__}", todo)


__all__ = ["Capturer", "Counts", "Queue", "Units", "capture_on_ray", "connected"]
