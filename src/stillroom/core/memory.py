"""Resident memory: measuring its peak, and giving freed memory back to the system."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable


class MemoryMeter:
    """Peak resident memory of this process while the body runs, in bytes (sampled every 20 ms)."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> MemoryMeter:
        import psutil

        process = psutil.Process(os.getpid())
        self.peak = process.memory_info().rss

        def watch() -> None:
            while not self._stop.wait(0.02):
                self.peak = max(self.peak, process.memory_info().rss)

        self._thread = threading.Thread(target=watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()


def keep_freed_memory() -> None:
    """Have glibc keep what tensors free for the next ones, whichever thread frees them; else every step asks the system for its
    memory page by page.

    :func:`release_memory` gives it back.
    """
    import ctypes

    # The names' numbers are of glibc's malloc.h; larger thresholds are refused there.
    trim_threshold, mmap_threshold, arenas = -1, -3, -8
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(mmap_threshold, 32 << 20)
        # Threads otherwise get heaps of 64 MB each of their own, into which few of our tensors fit side by side, and what one
        # thread frees is of no use to another.
        library.mallopt(arenas, 1)
        library.mallopt(trim_threshold, (1 << 31) - 1)


def release_memory() -> None:
    """Give freed memory back to the system, where its C library can: what follows is measured and limited by what is held."""
    import ctypes
    import gc

    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident() -> int:
    """Resident memory of this process, in bytes."""
    import psutil

    found: int = psutil.Process(os.getpid()).memory_info().rss
    return found


class Trimmer:
    """Gives freed memory back when a loop has come to hold more than its first steps did.

    Tensors of changing sizes leave holes between them, and the C library keeps those (:func:`keep_freed_memory`): a training of
    150 steps grew from 2.4 to 3.8 GB, and would have gone on. Giving memory back makes the next step ask for it again, so it is
    done at a growth of ``ALLOWED``, and less often where that comes at once again.

    Args:
        measure: Resident memory in bytes.
        release: Gives memory back.
    """

    SETTLED = 3
    """Steps until a loop holds what a step needs."""
    ALLOWED = 1.15
    """Resident memory over that of the first steps, from which on it is given back."""
    APART = 8
    """Steps between two times at least, else the limit was too low for this loop, and rises."""

    def __init__(self, measure: Callable[[], int] = resident, release: Callable[[], None] = release_memory) -> None:
        self._measure = measure
        self._release = release
        self._steps = self._last = 0
        self._level = 0.0

    def __call__(self) -> bool:
        """To be called after every step; whether memory was given back."""
        self._steps += 1
        held = self._measure()
        if self._steps <= self.SETTLED:
            self._level = max(self._level, held)
            return False
        if held <= self.ALLOWED * self._level:
            return False
        if self._last and self._steps - self._last < self.APART:
            self._level *= self.ALLOWED
        self._last = self._steps
        self._release()
        return True
