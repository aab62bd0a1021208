"""Requests are prepared in processes of their own: whatever is long to read or to compile holds up no one else.

Python runs one thread at a time, and reading a body of four megabytes, or compiling a schema of three thousand branches, holds
the interpreter: every stream, every other client and the switch would wait for it. A process that prepares is confined as one
that renders templates is, has a limit of CPU time for each job, takes the jobs of each client in turn, and is in the switch's
list: ``off`` ends it as it ends engines.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import time
from collections import Counter
from typing import Any

from stillroom.core.errors import EngineFailed
from stillroom.core.sandbox.child import isolated
from stillroom.serving import handed
from stillroom.serving.problems import Refused
from stillroom.serving.queues import FairQueue
from stillroom.switch.engines import PREPARER, Registration
from stillroom.switch.state import Switch

SMALL_BODY = 1 << 14
"""Bytes of a body that is read where it arrives: less work than to hand it over."""
WALL_SECONDS = 60.0
"""After this time a process is ended even if it did little: the machine may be busy, so it is long."""
IDLE_SECONDS = 300.0
MOST_WAITING = 64
"""Jobs of one client that may wait."""
_TIMED_OUT = (-27, -24)
"""Exit codes of a process that its timer ended (SIGPROF, SIGXCPU)."""
_STOPPED = (-15, -9)


class _Process:
    """One process that prepares."""

    def __init__(self, switch: Switch) -> None:
        ours, theirs = socket.socketpair()
        command = isolated(PREPARER, str(switch.places.state), installed_packages=True)
        environment = {"PATH": os.environ.get("PATH", ""), "MALLOC_ARENA_MAX": "1", "LC_ALL": "C.UTF-8"}
        with theirs:
            self.process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd="/",
            )
        self._socket = ours
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.StreamReader | None = None
        self._registration: Registration | None = None
        self.used = time.monotonic()
        try:
            self._registration = Registration(switch.places, "preparer", "requests", self.process.pid)
            # Written down first, looked at second: off does it the other way round.
            switch.require_on()
        except BaseException:
            self.end()
            raise

    async def ask(self, data: bytes) -> bytes:
        """A job's result.

        Raises:
            EOFError, OSError: It has ended.
        """
        if self._writer is None or self._reader is None:
            self._reader, self._writer = await asyncio.open_unix_connection(sock=self._socket)
        self._writer.write(len(data).to_bytes(4, "big") + data)
        await self._writer.drain()
        answer = await self._reader.readexactly(int.from_bytes(await self._reader.readexactly(4), "big"))
        self.used = time.monotonic()
        return answer

    def end(self, seconds: float = 0.05) -> int | None:
        """End it, if it has not ended by itself after some seconds; how it did, None where it had to be ended."""
        if self._writer is not None:
            self._writer.close()
        else:
            self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            # Its end of the connection is closed before it can be waited for.
            self.process.wait(seconds)
        code: int | None = self.process.poll()
        if code is None:
            self.process.kill()
            self.process.wait()
        if self._registration is not None:
            self._registration.close()
            self._registration = None
        return code


class _Stopped(EngineFailed):
    """A process was ended by somebody else."""


class Preparing:
    """Does jobs of :mod:`.preparing_child` in a few processes, each client's in turn.

    Args:
        switch: The switch that governs them.
        most: How many processes there may be; None takes the CPU's cores but one, at most four.
    """

    def __init__(self, switch: Switch, most: int | None = None) -> None:
        self.switch = switch
        self.most = most or max(1, min(4, (os.cpu_count() or 2) - 1))
        self._idle: list[_Process] = []
        self._busy: Counter[str] = Counter()
        self._queue = FairQueue(
            lambda: self._busy,
            lambda _: self._busy.total() < self.most,
            MOST_WAITING,
            f"{MOST_WAITING} requests are being prepared already.",
        )
        self._tasks: set[asyncio.Task[Any]] = set()

    async def do(self, owner: str, job: str, *arguments: Any) -> Any:
        """A job's result.

        Raises:
            Refused: The client's request cannot be taken.
            QueueFull: As many jobs of this client wait as may.
            SwitchedOff: The switch is off.
            EngineFailed: The process was ended by somebody else.
        """
        self.switch.require_on()
        async with self._queue.turn(owner):
            self._busy[owner] += 1
        # A client that goes away leaves the process at work: to end it and start another costs more than to wait for its end.
        task = asyncio.ensure_future(self._work(owner, job, arguments))
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()

    async def _work(self, owner: str, job: str, arguments: tuple[Any, ...]) -> Any:
        try:
            data = handed.written([job, *arguments])
            try:
                answer = await self._asked(data)
            except _Stopped:
                # It was ended from outside, and has nothing to do with the request: once more.
                answer = await self._asked(data)
            result = handed.read(answer)
            if result[0] == "refused":
                raise Refused(*result[1:])
            return result[1]
        finally:
            self._busy[owner] -= 1
            if not self._busy[owner]:
                del self._busy[owner]
            await self._queue.given_back()

    async def _asked(self, data: bytes) -> bytes:
        process = None
        while process is None and self._idle:
            process = self._idle.pop()
            if process.process.poll() is not None:
                # It was ended while no one asked, as all are when the switch is off.
                await asyncio.to_thread(process.end)
                process = None
        if process is None:
            process = await asyncio.to_thread(_Process, self.switch)
        lives = process.process.poll() is None
        try:
            async with asyncio.timeout(WALL_SECONDS):
                answer = await process.ask(data)
        except (EOFError, OSError, TimeoutError) as error:
            # Its connection ends before it can be waited for, on a busy machine long before.
            code = await asyncio.to_thread(process.end, 0.05 if isinstance(error, TimeoutError) else 5.0)
            self.switch.require_on()
            if isinstance(error, TimeoutError) or (lives and code in _TIMED_OUT):
                raise Refused(400, "invalid_request", "The request takes too long to be read.") from None
            if code in _STOPPED or not lives:
                raise _Stopped("The process that prepares requests was ended.", "Ask again.") from None
            raise Refused(400, "invalid_request", "The process that read this request ended over it.") from None
        except BaseException:
            await asyncio.to_thread(process.end)
            raise
        self._idle.append(process)
        return answer

    async def warm(self) -> None:
        """Have a process ready."""
        with contextlib.suppress(Exception):
            await self.do("", "read", "SessionName", b'{"name": "x"}')

    async def tend(self) -> None:
        """Give up processes that no one uses, or that have ended."""
        now = time.monotonic()
        for process in [*self._idle]:
            if process.process.poll() is not None or now - process.used > IDLE_SECONDS:
                self._idle.remove(process)
                await asyncio.to_thread(process.end)

    def close(self) -> None:
        """End all of them."""
        for process in self._idle:
            process.end()
        self._idle.clear()
