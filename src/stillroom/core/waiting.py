"""Waiting for an open file, whatever its number: ``select`` takes none above 1,023."""

from __future__ import annotations

import select


def readable(handle: int, seconds: float) -> bool:
    """Wait until an open file can be read (or has ended), at most for a while.

    Args:
        handle: Number of the open file: a pipe, a socket, or the handle of a process.
        seconds: The longest wait; what is negative is no wait.
    """
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))
