"""Training on the machines of a Ray cluster.

Ray gives machines, and says which of them are gone; all else is what `--nodes` does without it. The driver asks for a placement
group, an actor in each bundle starts this machine's part of the run as a process (:mod:`stillroom.cluster.ray_machine`), and
machine 0's goes through the stages that are left. Where a machine is lost, all are started again from the newest checkpoint, a
few times; an error of ours ends them all, and becomes the driver's.

Ray's own retries are not used here either: it waits for ever for an actor that cannot come back.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from stillroom import switch
from stillroom.cluster.launch import SAVE_SECONDS
from stillroom.cluster.ray_capture import NEVER_STARTED, PATIENCE, PAUSE, cause_of, connected, is_own
from stillroom.cluster.ray_machine import Machine, Part, Seen
from stillroom.core.errors import EnvironmentProblem, Interrupted, StillroomError, Terminated, told
from stillroom.core.plain import shown
from stillroom.core.progress import Progress, say
from stillroom.runs.run import Run

STARTS_AGAIN = 3
"""How often all are started again because a machine was lost."""
POLL_SECONDS = 0.5
SETTLE_SECONDS = 90.0
"""What the other machines have to end, or Ray to notice that one is gone, once a process has ended with an error: what it
says may be of a machine that was lost."""
SILENT_SECONDS = 180.0
"""A machine whose actor does not answer for so long is lost, whatever Ray says."""
RETURN_SECONDS = 900.0
"""How long it is waited for machines that the cluster does not have."""
SAY_SECONDS = 60.0
LEAVE_SECONDS = 30.0
"""What the others have to end once machine 0 has ended well."""
END_SECONDS = 15.0
"""What actors have to kill their processes, before they are killed with them."""


def require_machines(address: str, count: int, workers: int) -> None:
    """Refuse, before anything is spent, a cluster that is too small.

    Args:
        address: Of the cluster, or ``auto``.
        count: Machines that are to train.
        workers: Processes on each.

    Raises:
        EnvironmentProblem: It has too few machines with so many GPUs (or cores, where it has no GPU), or does not answer.
    """
    with connected(address) as ray:
        _require(ray, address, count, workers)


def train_on_ray(run: Run, address: str, count: int, workers: int, until: str | None, progress: Progress) -> None:
    """Do what is left of a run on machines of a Ray cluster; it is not locked meanwhile by this process.

    Args:
        run: The run; its folder is at the same path on all machines.
        address: Of the cluster, or ``auto``.
        count: Machines.
        workers: Processes that train on each: one per GPU, or core where the cluster has no GPU.
        until: The last stage; None does all.
        progress: Says how it goes.

    Raises:
        SwitchedOff: The owner's switch was turned off: all processes are killed.
        Terminated: SIGTERM: they saved and ended.
        Interrupted: Ctrl-C, likewise.
        EnvironmentProblem: Machines are missing, or were lost too often.
        StillroomError: What a machine's process ended with.
    """
    switch.require_on()
    with connected(address) as ray, _asked_to_stop() as asked:
        kind = _require(ray, address, count, workers)
        _Training(ray, run, count, workers, kind, until, progress, asked).work()


def _fitting(ray: Any, workers: int, kind: str) -> int:
    """Machines that have so many GPUs or cores."""
    return sum(node["Alive"] and node["Resources"].get(kind, 0) >= workers for node in ray.nodes())


def _require(ray: Any, address: str, count: int, workers: int) -> str:
    """What the processes take one of: ``GPU`` or ``CPU``. Errors as of :func:`require_machines`."""
    kind = "GPU" if ray.cluster_resources().get("GPU", 0) >= 1 else "CPU"
    found = _fitting(ray, workers, kind)
    if found < count:
        there = sum(node["Alive"] for node in ray.nodes())
        each = f"{workers} {'GPU' if kind == 'GPU' else 'core'}{'s' * (workers > 1)}"
        raise EnvironmentProblem(
            f"--nodes {count}: machines of the Ray cluster ({address}) that have {each} or more, one for each process: {found} "
            f"of {there}.",
            "Add machines to it, or give a smaller --nodes or --workers.",
        )
    return kind


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """A list that SIGTERM and SIGINT add to while the body runs; a second Ctrl-C raises."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def hear(number: int, _: Any) -> None:
        if number == signal.SIGINT and seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Member:
    """A machine, as the driver knows it."""

    rank: int
    actor: Any
    name: str = ""
    asked: Any = None
    asked_at: float = 0.0
    code: int | None = None
    error: tuple[str, str, str] | None = None
    lost: str = ""
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=20))

    @property
    def is_over(self) -> bool:
        return self.code is not None or bool(self.lost)

    def ended_with(self) -> StillroomError:
        """The error that its process ended with."""
        if self.error is not None:
            return told(*self.error)
        last = next((line.strip() for line in reversed(self.tail) if line.strip()), "it printed nothing")
        return EnvironmentProblem(
            f"Node {self.rank} ({self.name}) ended with code {self.code}: {last[:300]}",
            "Is this version of Stillroom installed there, and the run's folder at the same path?",
        )


class _Lost(Exception):
    """A machine is gone."""


class _NotBegun(Exception):
    """Actors do not start because of the cluster."""


class _Training:
    """Starts the machines' processes until they have ended."""

    def __init__(
        self,
        ray: Any,
        run: Run,
        count: int,
        workers: int,
        kind: str,
        until: str | None,
        progress: Progress,
        asked: Sequence[int],
    ) -> None:
        self.ray = ray
        self.run = run
        self.count = count
        self.workers = workers
        self.kind = kind
        self.until = until
        self.progress = progress
        self.asked = asked
        self.actor_class = ray.remote(
            num_cpus=0 if kind == "GPU" else workers,
            num_gpus=workers if kind == "GPU" else 0,
            max_restarts=0,
            max_task_retries=0,
        )(Machine)
        self.members: list[_Member] = []

    def work(self) -> None:
        """Until the run is done. Errors as of :func:`train_on_ray`."""
        lost: list[str] = []
        failing: float | None = None
        while True:
            with self._group() as group:
                try:
                    self._start(group)
                    failing = None
                    self._watch()
                    return
                except _NotBegun as error:
                    # Ray offers a machine that is gone until it has noticed.
                    now = time.monotonic()
                    failing = now if failing is None else failing
                    if now - failing > PATIENCE:
                        raise EnvironmentProblem(
                            f"--nodes {self.count}: actors cannot start on the Ray cluster: {error}", NEVER_STARTED
                        ) from None
                    time.sleep(PAUSE)
                    continue
                except _Lost as error:
                    lost.append(str(error))
                finally:
                    self._end()
            if len(lost) > STARTS_AGAIN:
                raise EnvironmentProblem(
                    f"{self.run.path}: machines were lost {len(lost)} times: {'; '.join(lost)}.",
                    "The same command goes on from the newest checkpoint.",
                )
            say(f"{lost[-1]}: starting again from the newest checkpoint ({len(lost)} of {STARTS_AGAIN})")

    @contextlib.contextmanager
    def _group(self) -> Iterator[Any]:
        """A placement group with a bundle on each of so many machines, which it is waited for."""
        bundles = [{self.kind: self.workers} for _ in range(self.count)]
        group = self.ray.util.placement_group(bundles, strategy="STRICT_SPREAD")
        try:
            enough = spoke = time.monotonic()
            while not group.wait(POLL_SECONDS):
                self._go_on()
                now = time.monotonic()
                found = _fitting(self.ray, self.workers, self.kind)
                enough = now if found >= self.count else enough
                if now - enough > RETURN_SECONDS:
                    raise EnvironmentProblem(
                        f"--nodes {self.count}: the Ray cluster has had {found} such machines for {RETURN_SECONDS / 60:.0f} "
                        "minutes.",
                        "The same command goes on from the newest checkpoint, with a smaller --nodes too.",
                    )
                if now - spoke > SAY_SECONDS:
                    say(f"  waits for {self.count} machines of the Ray cluster, which has {found}")
                    spoke = now
            yield group
        finally:
            self.ray.util.remove_placement_group(group)

    def _go_on(self) -> None:
        """Refuse to go on where nothing runs yet."""
        switch.require_on()
        if self.asked:
            raise self._stopped("The same command goes on.")

    def _stopped(self, todo: str) -> Interrupted:
        if self.asked[0] == signal.SIGINT:
            return Interrupted("Stopped.", todo)
        return Terminated("Stopped by SIGTERM.", todo)

    def _start(self, group: Any) -> None:
        """Start the processes of all machines."""
        strategy = self.ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        self.members = []
        for rank in range(self.count):
            where = strategy(placement_group=group, placement_group_bundle_index=rank)
            self.members.append(_Member(rank, self.actor_class.options(scheduling_strategy=where).remote()))
        first = self.members[0]
        ((host, port),) = self._answers([first.actor.place.remote()])
        path, quiet = str(self.run.path.absolute()), self.progress.quiet
        parts = [
            Part(path, self.until, quiet, rank, self.count, host, port, self.workers) for rank in range(self.count)
        ]
        threads = os.environ.get("OMP_NUM_THREADS")
        names = self._answers(
            [member.actor.start.remote(part, threads) for member, part in zip(self.members, parts, strict=True)]
        )
        for member, name in zip(self.members, names, strict=True):
            member.name = name
        each = f"{self.workers} {'GPU' if self.kind == 'GPU' else 'core'}{'s' * (self.workers > 1)}"
        self.progress.say(f"on Ray: {self.count} machines with {each} each: {', '.join(names)}")

    def _answers(self, references: list[Any]) -> list[Any]:
        """What actors answer that are starting."""
        begun = spoke = time.monotonic()
        while True:
            self._go_on()
            ready, _ = self.ray.wait(references, num_returns=len(references), timeout=POLL_SECONDS)
            now = time.monotonic()
            try:
                found = [self.ray.get(reference) for reference in ready]
            except self.ray.exceptions.RayError as error:
                if is_own(self.ray, error):
                    raise cause_of(error, "A machine of the Ray cluster cannot start its part") from None
                raise _NotBegun(_last_line(error)) from None
            if len(ready) == len(references):
                return found
            if now - begun > RETURN_SECONDS:
                raise EnvironmentProblem(
                    f"--nodes {self.count}: actors did not start on all machines within {RETURN_SECONDS / 60:.0f} minutes.",
                    NEVER_STARTED,
                )
            if now - spoke > SAY_SECONDS:
                say("  waits for actors to start on the machines of the Ray cluster")
                spoke = now

    def _watch(self) -> None:
        """Until machine 0 has ended well.

        Raises:
            _Lost: A machine is gone.
            StillroomError: As of :func:`train_on_ray`.
        """
        stopping: float | None = None
        ended: list[_Member] = []
        settled: float | None = None
        while True:
            switch.require_on()
            if self.asked and stopping is None:
                stopping = time.monotonic()
                self.progress.say("stopping: the processes save a checkpoint; Ctrl-C again kills them")
                for member in self.members:
                    member.actor.stop.remote()
            self._look()
            now = time.monotonic()
            if self.members[0].code == 0:
                self._see_off(now + LEAVE_SECONDS)
                return
            over = all(member.is_over for member in self.members)
            if stopping is not None:
                if over or now - stopping > SAVE_SECONDS + LEAVE_SECONDS:
                    raise self._saved()
                continue
            if gone := [member.lost for member in self.members if member.lost]:
                raise _Lost(gone[0])
            ended += [member for member in self.members if member.code and member not in ended]
            if not ended:
                continue
            settled = now + SETTLE_SECONDS if settled is None else settled
            if killed := [member for member in ended if (member.code or 0) < 0]:
                name = signal.Signals(-(killed[0].code or 0)).name
                raise _Lost(f"the process of node {killed[0].rank} ({killed[0].name}) was killed by {name}")
            if over or now > settled:
                # Machine 0 hears of what the others end with, unless it still waits for them.
                raise min(ended, key=lambda member: (member.error is None, member.rank > 0)).ended_with()

    def _look(self) -> None:
        """Ask all machines how it goes, and pass on what machine 0 printed."""
        begun = time.monotonic()
        for member in self.members:
            if member.asked is None and not member.is_over:
                member.asked, member.asked_at = member.actor.look.remote(), begun
        waiting = {member.asked: member for member in self.members if member.asked is not None}
        ready: list[Any] = []
        if waiting:
            ready, _ = self.ray.wait(list(waiting), num_returns=len(waiting), timeout=POLL_SECONDS)
        for reference in ready:
            member = waiting[reference]
            member.asked = None
            try:
                self._heard(member, self.ray.get(reference))
            except self.ray.exceptions.RayTaskError as error:
                raise cause_of(error, f"Node {member.rank} ({member.name}) cannot say how it goes") from None
            except self.ray.exceptions.RayError as error:
                member.lost = f"node {member.rank} ({member.name}) was lost ({_last_line(error)})"
        for member in self.members:
            if member.asked is not None and time.monotonic() - member.asked_at > SILENT_SECONDS:
                member.asked = None
                member.lost = (
                    f"node {member.rank} ({member.name}) was lost (no answer for {SILENT_SECONDS:.0f} seconds)"
                )
        time.sleep(max(0.0, begun + POLL_SECONDS - time.monotonic()))

    def _heard(self, member: _Member, seen: Seen) -> None:
        lines = seen.text.splitlines()
        member.tail.extend(lines)
        if member.rank == 0:
            for line in lines:
                say(shown(line))
        member.code, member.error = seen.code, seen.error

    def _see_off(self, until: float) -> None:
        """Let the others end, now that machine 0 has."""
        while not all(member.is_over for member in self.members) and time.monotonic() < until:
            self._look()

    def _saved(self) -> StillroomError:
        """What all ended with after SIGTERM."""
        for member in self.members:
            if member.error is not None and isinstance(error := member.ended_with(), Terminated):
                return error if self.asked[0] == signal.SIGTERM else Interrupted("Stopped.", error.todo)
        if self.members[0].error is not None:
            return self.members[0].ended_with()
        return self._stopped("The same command goes on from the newest checkpoint.")

    def _end(self) -> None:
        """Kill what is left of all processes, and the actors."""
        asked = [member.actor.end.remote() for member in self.members if not member.lost]
        if asked:
            self.ray.wait(asked, num_returns=len(asked), timeout=END_SECONDS)
        for member in self.members:
            self.ray.kill(member.actor)
        self.members = []


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip()[:200].rstrip(".") if lines else type(error).__name__
