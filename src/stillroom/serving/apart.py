"""Runs the switch's `off` in a fork of the server: one thread, an interpreter of its own.

`off` makes some hundreds of short calls to the system. In a thread it has to wait for the interpreter after each of them,
which others hold meanwhile: with a busy server those waits add up to ten times the work itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from stillroom.core.errors import EngineFailed, NotWritable, StillroomError
from stillroom.core.waiting import readable

SECONDS = 6.0
"""Longer than `off` ever takes (:data:`stillroom.switch.stopping.DEADLINE_SECONDS`). A fork that is silent for so long is given
up."""
_ERRORS: dict[str, type[StillroomError]] = {kind.__name__: kind for kind in (EngineFailed, NotWritable)}


def run_apart(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What some work gives, done in a fork of this process; here, where the system gives no fork or it says nothing.

    Args:
        work: Gives what JSON can hold, and needs no other thread.

    Raises:
        NotWritable, EngineFailed: As the work raised it.
    """
    answer = _forked(work) if sys.platform.startswith("linux") else None
    if answer is None:
        return work()
    if "error" in answer:
        raise _ERRORS[answer["error"]](answer["what"], answer["todo"])
    done: dict[str, Any] = answer["done"]
    return done


def _forked(work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    try:
        reading, writing = os.pipe()
    except OSError:
        return None
    try:
        pid = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        return None
    if pid == 0:
        _child(work, writing)
    os.close(writing)
    data = b""
    try:
        while readable(reading, SECONDS) and (piece := os.read(reading, 1 << 16)):
            data += piece
    finally:
        os.close(reading)
        if not data:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    try:
        found: dict[str, Any] = json.loads(data)
    except ValueError:
        return None
    return found


def _child(work: Callable[[], dict[str, Any]], writing: int) -> None:
    """Do it, say it, and end without a look back: nothing here is this process's own."""
    try:
        try:
            answer: dict[str, Any] = {"done": work()}
        except (NotWritable, EngineFailed) as error:
            answer = {"error": type(error).__name__, "what": error.what, "todo": error.todo}
        data = json.dumps(answer).encode()
        while data:
            data = data[os.write(writing, data) :]
    finally:
        os._exit(0)
