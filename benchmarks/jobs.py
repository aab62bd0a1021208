"""Calls in processes of their own, a few at a time, none of which outlives the benchmark that began it."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def together(calls: Sequence[Callable[[], Any]], jobs: int, begin: Callable[[], None] | None = None) -> list[Any]:
    """What the calls return, in order.

    When one fails, or this process is told to end, the others are ended at once: a benchmark that is begun again must not write
    beside them.

    Args:
        calls: What is called; it has to travel to another process.
        jobs: Processes at a time.
        begin: Called in each of them first.
    """
    context = multiprocessing.get_context("spawn")
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(jobs, context, _begin, (begin,)) as pool:
        try:
            waiting = [pool.submit(call) for call in calls]
            return [one.result() for one in waiting]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                if process not in others:
                    process.kill()
                    process.join()
            raise


def _begin(begin: Callable[[], None] | None) -> None:
    """End with the process that began this one, also where that was killed and could end nothing itself."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()
    if begin is not None:
        begin()
