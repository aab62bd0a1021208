"""Resident memory: measuring its peak, and giving freed memory back to the system."""

from __future__ import annotations

import contextlib
import os
import threading


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
    """Have glibc keep what tensors free for the next ones; else every step asks the system for its memory page by page.

    :func:`release_memory` gives it back.
    """
    import ctypes

    # The names' numbers are of glibc's malloc.h; larger thresholds are refused there.
    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(mmap_threshold, 32 << 20)
        library.mallopt(trim_threshold, (1 << 31) - 1)


def release_memory() -> None:
    """Give freed memory back to the system, where its C library can: what follows is measured and limited by what is held."""
    import ctypes
    import gc

    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
