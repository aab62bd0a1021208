"""Worker threads that each compute on their own share of the CPU.

PyTorch splits every single operation over the threads of a process, and each waits for the slowest: thousands of times
a step. Where one core is shared with another program, every such wait costs a time slice. Work that is split once, into
shares that hardly wait for each other, has no such waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
_lock = threading.Lock()
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def split(count: int, least: int) -> int:
    """Shares for ``count`` tokens: one a thread of PyTorch's, each of at least ``least`` tokens."""
    return max(1, min(torch.get_num_threads(), count // least))


def run_together(shares: int, work: Callable[[int], T]) -> list[T]:
    """Run ``work(0)`` to ``work(shares - 1)`` at the same time, each with its part of PyTorch's threads.

    Args:
        shares: How many; a single one runs on the calling thread.
        work: Takes the share's number. Autograd records what it does where it records on the calling thread.

    Returns:
        The results in order.

    Raises:
        BaseException: Of the first share that failed. A share that only stopped because another failed raises
            :class:`Abandoned`, which is not reported.
    """
    if shares == 1:
        return [work(0)]
    recording, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def run(share: int) -> T:
        with torch.inference_mode(inference), torch.set_grad_enabled(recording):
            return work(share)

    # Shares wait for each other, so all of them must run: two callers take turns.
    with _lock:
        pool = _pool(shares)
        futures: list[Future[T]] = []
        try:
            while len(futures) < shares:
                futures.append(pool.submit(run, len(futures)))
        finally:
            # After an interrupt between two of them none waits for one that never begins.
            while len(futures) < shares:
                futures.append(pool.submit(run, len(futures)))
        failures = [failure for future in futures if (failure := future.exception()) is not None]
    if failures:
        raise next((failure for failure in failures if not isinstance(failure, Abandoned)), failures[0])
    return [future.result() for future in futures]


def _pool(shares: int) -> ThreadPoolExecutor:
    """Threads that compute with their part of PyTorch's threads."""
    whole = torch.get_num_threads()
    key = (shares, max(1, whole // shares))
    if key not in _pools:
        started = threading.Barrier(shares)

        def begin() -> None:
            with _beginning:
                torch.set_num_threads(key[1])
                # A thread takes the number of the process at its first operation; here, while it is this one.
                torch.ones(1).add_(torch.get_num_threads())
            started.wait()

        pool = ThreadPoolExecutor(shares, "stillroom-share")
        for future in [pool.submit(begin) for _ in range(shares)]:
            future.result()
        # Setting it on a thread sets it for all threads to come.
        torch.set_num_threads(whole)
        _pools[key] = pool
    return _pools[key]


_beginning = threading.Lock()


class Abandoned(Exception):
    """Another share failed; this one stopped waiting for it."""


class Milestones:
    """What shares tell each other: that something is done."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._reached: set[Hashable] = set()
        self._failed = False

    def reach(self, milestone: Hashable) -> None:
        """Say that it is done."""
        with self._changed:
            self._reached.add(milestone)
            self._changed.notify_all()

    def wait(self, milestone: Hashable) -> None:
        """Wait until it is done.

        Raises:
            Abandoned: Another share failed before.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failed or milestone in self._reached)
            if self._failed:
                raise Abandoned

    def fail(self) -> None:
        """Say that this share failed: no one waits any longer."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()
