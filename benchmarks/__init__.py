"""Programs that measure, and print what they measured as JSON. Never part of a test."""

from __future__ import annotations

import signal
import sys
from types import FrameType, TracebackType

_trace = sys.excepthook


def _tell(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """What a user can mend is told in its own words; anything else is a fault here, with all that Python knows of it."""
    # Here, since programs in peers' environments, which have no Stillroom, read this file too.
    from stillroom.core.errors import translate

    # What Ctrl-C means differs from a command's: not every benchmark keeps what it has done.
    found = None if isinstance(error, KeyboardInterrupt) else translate(error)
    if found is None:
        _trace(kind, error, where)
    else:
        sys.stderr.write(f"{found}\n")


def _end(number: int, _where: FrameType | None) -> None:
    """End by an error, so that what was begun is ended too: other processes, folders for a while."""
    sys.exit(128 + number)


if sys.argv[0] == "-m":  # so it is while Python looks for the program that is asked for
    sys.excepthook = _tell
    signal.signal(signal.SIGTERM, _end)
