"""CPU seconds of a process tree: measured, spent up to a limit, and predicted from a smaller run.

Imports nothing of Stillroom, so that processes in environments of their own use it too. A budget is in CPU seconds, user and
system, of a process and all that it started: it does not depend on what else the machine does.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

THREADS = 2
"""Threads of everything that is compared; ten minutes are 10 · 60 · 2 CPU seconds."""
SAMPLE_SECONDS = 0.25
SAMPLE_SHARE = 0.02
"""Of one core, at most, for looking at a tree of processes: more would slow the command that is measured."""


def cpu_seconds(minutes: float) -> float:
    """The budget of so many minutes on all threads."""
    return minutes * 60 * THREADS


def tree_seconds(pid: int | None = None) -> float:
    """CPU seconds of a process and of all processes below it, those that ended and were waited for among them."""
    root = psutil.Process(pid)
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        # The children of a process's own record are those that ended; the others are counted themselves.
        total += times.user + times.system + getattr(times, "children_user", 0) + getattr(times, "children_system", 0)
    return total


def own_peak_bytes() -> int:
    """The most memory that this process has held, in bytes.

    On Linux ``ru_maxrss`` of a process begins with what the one that started it held; ``VmHWM`` is of this program alone.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass
class Budget:
    """CPU seconds that this process may spend.

    Attributes:
        seconds: All of them.
        spent_before: What was spent on its behalf elsewhere (pruning, say).
        begun: CPU seconds of the tree when the budget begins; what was spent until then is set-up.
    """

    seconds: float
    spent_before: float = 0.0
    begun: float = field(default_factory=tree_seconds)
    _steps: list[float] = field(default_factory=list)

    @property
    def spent(self) -> float:
        """CPU seconds so far, with those spent elsewhere."""
        return self.spent_before + tree_seconds() - self.begun

    @property
    def share(self) -> float:
        """How much of it is spent, 0 to 1."""
        return min(1.0, self.spent / self.seconds)

    def another(self) -> bool:
        """Note that a step has ended; whether one more of usual length still fits."""
        self._steps.append(self.spent)
        recent = self._steps[-8:]
        usual = statistics.median(b - a for a, b in itertools.pairwise(recent)) if len(recent) > 1 else 0.0
        return recent[-1] + usual <= self.seconds


def rate_factor(share: float, warmup: float = 0.05) -> float:
    """Learning rate as a share of its peak after a share of the budget: up in a line, then down in a line to zero."""
    if share < warmup:
        return max(share / warmup, 0.01)
    return max(0.0, (1.0 - share) / (1.0 - warmup))


@dataclass(frozen=True)
class Cost:
    """CPU seconds of a run over its tokens, as a line.

    Attributes:
        fixed: What a run takes without any token.
        per_token: What each training token takes.
    """

    fixed: float
    per_token: float

    @classmethod
    def of(cls, spent: float, stages: Mapping[str, float], linear: Sequence[str], tokens: int) -> Cost:
        """The line through one run.

        Args:
            spent: Its CPU seconds.
            stages: Wall seconds of its stages; CPU seconds are shared out in their proportion.
            linear: Stages whose time grows with the tokens; all else is fixed.
            tokens: Its training tokens.
        """
        total = sum(stages.values())
        grows = spent * sum(stages.get(name, 0.0) for name in linear) / total
        return cls(spent - grows, grows / tokens)

    @classmethod
    def through(cls, first: tuple[int, float], second: tuple[int, float]) -> Cost:
        """The line through two runs, each its tokens and CPU seconds."""
        per_token = (second[1] - first[1]) / (second[0] - first[0])
        return cls(first[1] - per_token * first[0], per_token)

    def tokens(self, seconds: float, multiple: int = 1024) -> int:
        """The most tokens, a multiple, that fit; at least one multiple, even where nothing fits."""
        fit = (seconds - self.fixed) / self.per_token if self.per_token > 0 else 0.0
        return max(1, math.floor(fit / multiple)) * multiple


@dataclass(frozen=True)
class Spent:
    """What a command took.

    Attributes:
        cpu_seconds: Of its process tree.
        wall_seconds: By the clock.
        peak_bytes: Greatest sum of the tree's proportional (elsewhere resident) memory, sampled four times a second, or as
            often as takes 2 % of one core.
        load: Mean of the machine's load average over one minute, at the same samples.
        returncode: Its exit code.
    """

    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int
    load: float
    returncode: int


def tree_bytes(pid: int) -> int:
    """Memory of a process tree; pages that processes share count once where the system tells."""
    total = 0
    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0
    for process in processes:
        try:
            if len(processes) > 1 and hasattr(process, "memory_full_info"):
                full = process.memory_full_info()
                total += getattr(full, "pss", full.rss)
            else:
                total += process.memory_info().rss
        except psutil.Error:
            continue
    return total


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a process that leads a session of its own, with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None, log: Path | None = None) -> Spent:
    """Run a command on ``THREADS`` threads, measured with all processes that it starts.

    Args:
        command: What is run.
        environment: Variables besides this process's own.
        log: Takes standard output and standard error; without it they are shown.
    """
    threads = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    begun = time.monotonic()
    with open(log or os.devnull, "ab") as stream:
        process = subprocess.Popen(
            [str(word) for word in command],
            env=os.environ | threads | dict(environment or {}),
            stdout=stream if log else None,
            stderr=subprocess.STDOUT if log else None,
            start_new_session=True,
        )
    peak, seen, loads, usage = 0, 0.0, [os.getloadavg()[0]], None
    try:
        while True:
            pid, status, found = os.wait4(process.pid, os.WNOHANG)
            if pid:
                usage = found
                process.returncode = os.waitstatus_to_exitcode(status)
                break
            looking = time.thread_time()
            peak = max(peak, tree_bytes(process.pid))
            with contextlib.suppress(psutil.Error):
                seen = max(seen, tree_seconds(process.pid))
            loads.append(os.getloadavg()[0])
            time.sleep(max(SAMPLE_SECONDS, (time.thread_time() - looking) / SAMPLE_SHARE))
    except BaseException:
        end_group(process)
        raise
    # The system's own record has all that was waited for, to the end; a process that nobody waited for is in the samples.
    spent = max(usage.ru_utime + usage.ru_stime, seen)
    return Spent(spent, time.monotonic() - begun, peak, statistics.mean(loads), process.returncode)
