"""SIGTERM as an error, where more has to be ended than this process."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from stillroom.core.errors import Terminated


@contextlib.contextmanager
def raised_by_sigterm(error: Terminated) -> Iterator[None]:
    """Have SIGTERM raise an error while the body runs; what it meant before, it means afterwards.

    Args:
        error: What is raised, in the main thread. In another thread nothing is changed.

    Raises:
        Terminated: SIGTERM.
    """

    def stop(*_: Any) -> None:
        raise error

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
