"""Not one byte of an answer after the receipt: a thread that looks at the switch, and cuts what has not left yet.

``off`` writes the switch and then waits for a lock that the server holds for as long as any byte of an answer may still go
out: until the answer has ended and its connection's buffers, those of the system as well, are empty. A client that does
not read keeps them full; a client that has read everything is told that it is off. What is left after that is cut off: the
connection is reset, which throws away what the system holds of it. All of that is a thread's work, since the loop that
serves requests may be busy, and nothing that it waits for may hold up the switch.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from stillroom.switch import stopping
from stillroom.switch.engines import Registration
from stillroom.switch.places import Places
from stillroom.switch.state import Switch

LOOK_SECONDS = 0.01
"""Between two looks while something is answered: with half of it the looks took a fiftieth of a core."""
IDLE_SECONDS = 0.05
"""Between two looks while nothing is."""
TELL_SECONDS = 0.05
"""How long answers whose clients have read everything so far have to tell them that it is off."""
OFF_SECONDS = 0.3
"""How long engines may run after the switch was seen to be off: ``off`` stops them itself, and its receipt names them; a policy
that appears, or a damaged state, has no one to do it."""
TRANSPORT = "stillroom.transport"
"""The key of a request's scope that has its transport."""
_UNSENT = 0x894B
"""SIOCOUTQNSD (Linux): bytes that the system holds and has not sent. What was sent is with the client's machine, or on its way;
that it was acknowledged says no more, and comes up to 40 ms late."""


def remember_transport(scope: MutableMapping[str, Any], send: object) -> None:
    """Write the transport of a request into its scope, where the server (uvicorn) shows it."""
    scope[TRANSPORT] = getattr(getattr(send, "__self__", None), "transport", None)


class ServerLine(Registration):
    """A server's line. Its lock is held by :class:`Hush`, for all answers together."""

    def __init__(self, places: Places) -> None:
        super().__init__(places, "server", "server")
        self._held = False

    def hold(self, wanted: bool) -> None:
        """Take the lock that ``off`` waits for, or let go of it."""
        if wanted != self._held:
            fcntl.flock(self._stream, fcntl.LOCK_SH if wanted else fcntl.LOCK_UN)
            self._held = wanted

    @contextlib.contextmanager
    def delivering(self) -> Iterator[None]:
        """Within an answer that was announced (:meth:`Hush.answering`) the lock is held already."""
        yield


class _Answer:
    """One answer on its way, and a handle of its own on the connection: numbers of closed ones are used again."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.done = False
        self.handle: int | None = None
        found = transport.get_extra_info("socket") if transport is not None else None
        self.tcp = found is not None and found.family in (socket.AF_INET, socket.AF_INET6)
        if found is not None and found.fileno() >= 0:
            with contextlib.suppress(OSError):
                self.handle = os.dup(found.fileno())

    def left(self) -> bool:
        """Whether every byte so far was sent to the client's machine."""
        if self.transport is None or self.handle is None:
            return True
        if self.transport.get_write_buffer_size():
            return False
        if not sys.platform.startswith("linux"):
            return self.done
        try:
            waiting = struct.unpack("i", fcntl.ioctl(self.handle, _UNSENT, b"\0\0\0\0"))[0]
        except OSError:
            return True
        return bool(waiting == 0)

    def cut(self, loop: asyncio.AbstractEventLoop) -> None:
        """Reset the connection: nothing more goes out, and what the system still holds of it is thrown away."""
        if self.handle is None:
            return
        if self.tcp:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.handle)) as found:
                found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if sys.platform.startswith("linux"):
                # To connect to "unspecified" is to disconnect at once (tcp_disconnect), no matter who else has a handle.
                ctypes.CDLL(None).connect(self.handle, struct.pack("H14x", socket.AF_UNSPEC), 16)
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self.transport.abort)

    def close(self) -> None:
        """Give the handle back."""
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None


class Hush:
    """Sees that nothing goes out once the switch is off, and that engines end where no one else sees to it.

    Args:
        switch: The switch; looked at by a reader of this thread's own.
        line: The server's line in the list of what runs.
        tell: Called in the loop with whether the switch is on, whenever that changes.
    """

    def __init__(self, switch: Switch, line: ServerLine, tell: Callable[[bool], None]) -> None:
        self._switch = Switch(switch.places)
        self._line = line
        self._tell = tell
        self._answers: set[_Answer] = set()
        self._mutex = threading.Lock()
        self._ended = threading.Event()
        self._begun = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._off: float | None = None
        self._stopped = 0.0
        self.cuts = 0

    def start(self) -> None:
        """Begin to look; called in the loop that serves."""
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, name="switch", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._begun.set()
        if self._thread is not None:
            self._thread.join(1)
        with self._mutex:
            for answer in self._answers:
                answer.close()
            self._answers.clear()

    @contextlib.contextmanager
    def answering(self, scope: MutableMapping[str, Any]) -> Iterator[None]:
        """Around all of an answer that a model made. Look at the switch inside: ``off`` does it the other way round."""
        self.start()
        answer = _Answer(scope.get(TRANSPORT))
        with self._mutex:
            self._line.hold(True)
            self._answers.add(answer)
        self._begun.set()
        try:
            yield
        finally:
            answer.done = True
            with self._mutex:
                self._forget(answer for answer in [*self._answers] if answer.done and answer.left())

    def _forget(self, answers: Any) -> None:
        for answer in answers:
            self._answers.discard(answer)
            answer.close()
        if not self._answers:
            self._line.hold(False)

    def _run(self) -> None:
        while not self._ended.is_set():
            if self._answers:
                time.sleep(LOOK_SECONDS)  # one system call; to wait for an event with a limit takes several
            else:
                self._begun.wait(IDLE_SECONDS)
                self._begun.clear()
            try:
                self.step()
            except Exception:
                # Nothing that goes wrong here may end the watch; what cannot be looked at counts as off.
                with contextlib.suppress(Exception):
                    self._silence(time.monotonic(), at_once=True)

    def step(self) -> None:
        """One look."""
        now, on = time.monotonic(), self._switch.is_on()
        if on == (self._off is not None):
            self._off = None if on else now
            with contextlib.suppress(RuntimeError):
                if self._loop is not None:
                    self._loop.call_soon_threadsafe(self._tell, on)
        if on:
            if self._answers:
                with self._mutex:
                    self._forget(answer for answer in [*self._answers] if answer.done and answer.left())
            return
        self._silence(now)
        if self._off is not None and now - self._off > OFF_SECONDS and now - self._stopped > OFF_SECONDS:
            self._stopped = now
            stopping.stop_engines(self._switch)

    def _silence(self, now: float, at_once: bool = False) -> None:
        with self._mutex:
            late = at_once or (self._off is not None and now - self._off > TELL_SECONDS)
            finished = [answer for answer in self._answers if answer.done and answer.left()]
            # Who has not read what was sent cannot be told anything either: it would come behind the rest.
            cut = [answer for answer in self._answers if answer not in finished and (late or not answer.left())]
            for answer in cut:
                self.cuts += 1
                if self._loop is not None:
                    answer.cut(self._loop)
            self._forget([*finished, *cut])
