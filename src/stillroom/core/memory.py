"""Resident memory: measuring its peak, and giving freed memory back to the system."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator


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


CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Variables of the two caches of matrix products in bfloat16: oneDNN's, one a process, and that of PyTorch's bridge to it, one
a thread."""
FEWEST_KERNELS, MOST_KERNELS = 192, 1024
"""Products that either cache keeps at least, for what a process may do later, and if nothing else is said."""
TOKENS_PER_KERNEL = 6
"""Tokens of a forward pass for each shape of its attention: a document brings four, and few have less than 24 tokens."""
KERNELS_PER_SHARE = 16
"""Shapes of a thread's share of the tokens: those of four products forward and eight back, and of the loss."""
SHARE_TOKENS = 128
"""Tokens of a thread's share at least."""


def keep_few_kernels(tokens: int, threads: int) -> None:
    """Limit how many matrix products in bfloat16 are kept ready for their next use on a CPU.

    Each takes half a megabyte, and they are kept by their shapes. Documents have all lengths, so that every training step
    brings some 40 new shapes, of which hardly one comes again: the quickstart's trainings came to hold a gigabyte of them, and
    so did all that came after in that process. What one forward and backward pass uses has to fit, because every layer uses it
    again.

    To be called before anything is computed: both libraries read it once. What the user's environment says counts.

    Args:
        tokens: Of a forward pass.
        threads: That compute.
    """
    for name in CACHES:
        os.environ.setdefault(name, str(kernels_kept(tokens, threads)))


def kernels_kept(tokens: int, threads: int) -> int:
    """How many products are kept for forward passes of so many tokens."""
    shares = max(1, min(threads, tokens // SHARE_TOKENS))
    wanted = tokens // TOKENS_PER_KERNEL + KERNELS_PER_SHARE * shares
    return min(MOST_KERNELS, max(FEWEST_KERNELS, wanted))


def release_memory() -> None:
    """Give freed memory back to the system, where its C library can, and a GPU's to its driver: what follows is measured and
    limited by what is held.
    """
    import ctypes
    import gc

    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    # Blocks that PyTorch keeps for itself count as taken where a later stage, or another process, asks how much is free.
    torch = sys.modules.get("torch")
    with contextlib.suppress(AttributeError):
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        if torch is not None and torch.backends.mps.is_available():
            torch.mps.empty_cache()


@contextlib.contextmanager
def settling() -> Iterator[Callable[[], None]]:
    """Leave what is there at some moments out of the search for garbage (:func:`release_memory`) until the body ends.

    Each search goes through every object, which takes half a second among all that PyTorch and transformers make when they are
    imported, and a run searches 17 times.

    Yields:
        What is to be called right after a search, where what is there stays. Where the caller has objects of its own left out
        (:func:`gc.freeze`), it does nothing: at the end they could not be told apart.
    """
    import gc

    if gc.get_freeze_count():
        yield lambda: None
        return
    try:
        yield gc.freeze
    finally:
        gc.unfreeze()


def resident() -> int:
    """Resident memory of this process, in bytes."""
    import psutil

    found: int = psutil.Process(os.getpid()).memory_info().rss
    return found


class Trimmer:
    """Gives freed memory back when a loop has come to hold more than its first steps did.

    Tensors of changing sizes leave holes between them, and the C library keeps those (:func:`keep_freed_memory`): a training of
    150 steps grew from 2.4 to 3.8 GB, and would have gone on. Giving memory back makes the next step ask for it again, so it is
    done at a growth of ``ALLOWED``, and not before ``APART`` steps have gone, or so much time that giving back took less than
    ``SHARE`` of it: long steps leave many holes each. What the step after it holds is what the loop then needs: a loop that
    needs more gets more, and what it holds never adds up.

    Args:
        measure: Resident memory in bytes.
        release: Gives memory back.
        clock: Seconds.
    """

    SETTLED = 1
    """Steps until a loop holds what a step needs, from its beginning and from each time that memory was given back. Further
    ones leave holes.
    """
    ALLOWED = 1.15
    """Resident memory over that of those steps, from which on it is given back."""
    APART = 8
    """Steps between two times, where these are short."""
    SHARE = 0.02
    """Of the time between two, what the first of them took at most, where steps are long."""

    def __init__(
        self,
        measure: Callable[[], int] = resident,
        release: Callable[[], None] = release_memory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._measure = measure
        self._release = release
        self._clock = clock
        self._due = 0.0
        self._steps = 0
        self._level = 0.0
        self._apart = self.SETTLED

    def __call__(self) -> bool:
        """To be called after every step; whether memory was given back."""
        self._steps += 1
        held = self._measure()
        if self._steps <= self.SETTLED:
            self._level = max(self._level, held)
            return False
        early = self._steps < self._apart and self._clock() < self._due
        if early or held <= self.ALLOWED * self._level:
            return False
        self._steps, self._level, self._apart = 0, 0.0, self.APART
        begun = self._clock()
        self._release()
        ended = self._clock()
        self._due = ended + (ended - begun) / self.SHARE
        return True
