"""An actor of Ray on a machine that trains: it starts `stillroom` there as a process of its own, and says how that goes.

The process must not outlive the actor, which Ray ends with the driver, the machine's Ray or the cluster: the system kills it
with its parent. What it prints goes to a file without a name, which the driver asks for piece by piece.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass

from stillroom.core.errors import StillroomError

PROCESS = "stillroom.cli.ray_node"
"""The module that the process runs: one of a package above this one."""
PIECE_BYTES = 1 << 16
"""How much of the output is answered at once."""
DIES_WITH_PARENT = 1
"""``PR_SET_PDEATHSIG`` of Linux."""


@dataclass(frozen=True)
class Part:
    """What a machine is to do of a run.

    Attributes:
        run: The run's folder.
        until: The last stage; None does all.
        quiet: Whether nothing is drawn.
        rank: The machine's number, from 0.
        count: Machines.
        host: Address of machine 0.
        port: Where they meet there.
        workers: Processes that train on each.
        parent: The actor's process.
        answer: Descriptor of the file for the error that the process ends with.
    """

    run: str
    until: str | None
    quiet: bool
    rank: int
    count: int
    host: str
    port: int
    workers: int
    parent: int = 0
    answer: int = 0

    @classmethod
    def read(cls, text: str) -> Part:
        """Back from the command line."""
        return cls(**json.loads(text))

    def written(self, parent: int, answer: int) -> str:
        """For the command line."""
        return json.dumps(asdict(self) | {"parent": parent, "answer": answer})


@dataclass(frozen=True)
class Seen:
    """How a machine's process goes.

    Attributes:
        text: What it printed since it was asked before.
        code: Its exit code, negative where a signal ended it; None while it runs, or more text is to come.
        error: Class, message and advice of the error that it ended with, where that is one of ours.
    """

    text: str
    code: int | None = None
    error: tuple[str, str, str] | None = None


class Machine:
    """An actor: one machine's part of a run. Each method answers at once."""

    def __init__(self) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the actor
        self._answer = tempfile.TemporaryFile()  # noqa: SIM115 - likewise
        self._read = 0
        self._child: subprocess.Popen[bytes] | None = None

    def place(self) -> tuple[str, int]:
        """This machine's address, as Ray knows it, and a port that is free here."""
        from ray.util import get_node_ip_address

        host = str(get_node_ip_address())  # type: ignore[no-untyped-call]
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as found:
            found.bind((host, 0))
            return host, found.getsockname()[1]

    def start(self, part: Part, threads: str | None) -> str:
        """Start its process; this machine's name.

        Args:
            part: What it is to do.
            threads: `OMP_NUM_THREADS` of the driver. Ray sets it for its workers, and the process is none of them.
        """
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        if threads is not None:
            environment["OMP_NUM_THREADS"] = threads
        answer = self._answer.fileno()
        self._child = subprocess.Popen(
            [sys.executable, "-m", PROCESS, part.written(os.getpid(), answer)],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            pass_fds=(answer,),
            env=environment,
            start_new_session=True,
        )
        return socket.gethostname()

    def look(self) -> Seen:
        """How it goes."""
        assert self._child is not None
        # Asked first: what it printed before its end is there then.
        code = self._child.poll()
        piece = os.pread(self._output.fileno(), PIECE_BYTES, self._read)
        if code is None:
            piece = piece[: piece.rfind(b"\n") + 1] or (piece if len(piece) == PIECE_BYTES else b"")
        self._read += len(piece)
        text = piece.decode(errors="replace")
        if code is None or len(piece) == PIECE_BYTES:
            return Seen(text)
        found = os.pread(self._answer.fileno(), 1 << 20, 0)
        return Seen(text, code, tuple(json.loads(found)) if found else None)

    def stop(self) -> None:
        """SIGTERM: it saves and ends."""
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()

    def end(self) -> None:
        """Kill it and all that it has started."""
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()


def end_with(parent: int) -> None:
    """Have the system kill this process when the one that started it has ended (Linux, where clusters of Ray are)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def answer(part: Part, error: StillroomError) -> None:
    """On the machine: write down the error that its process ends with."""
    os.write(part.answer, json.dumps([type(error).__name__, error.what, error.todo]).encode())
