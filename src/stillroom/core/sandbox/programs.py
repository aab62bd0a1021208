"""Programs that a model wrote, run in a child that can neither reach the network, nor write files, nor start programs.

On Linux the kernel itself refuses (seccomp, set before the program is read): sockets, opening files for writing, changing
or removing files, starting other programs or processes, signals to others, namespaces, tracing. Memory, processor
time, output and open files are limited, the environment is empty, the folder is a fresh one that may not be written to.
Reading files stays possible, and nothing of what is read can leave but one word. Elsewhere nothing is run.
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from stillroom.core.errors import EnvironmentProblem
from stillroom.core.sandbox.child import isolated
from stillroom.core.sandbox.seccomp import MACHINES

CHILD = "stillroom.core.sandbox.programs_child"


@dataclass(frozen=True)
class Limits:
    """What a program may use: processor seconds (its wall time is twice that) and bytes of address space."""

    seconds: float = 5.0
    memory_bytes: int = 512 << 20


def require_sandbox() -> None:
    """Refuse where programs cannot be kept in.

    Raises:
        EnvironmentProblem: This is not Linux on a processor whose calls are known.
    """
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        raise EnvironmentProblem(
            f"Programs that models write are only run on Linux ({', '.join(MACHINES)}); this is {platform.platform()}.",
            "Leave tasks with code out of the recipe, or measure them on such a machine.",
        )


def run_program(program: str, limits: Limits) -> str:
    """Run a program in the sandbox.

    Args:
        program: Python source.
        limits: What it may use.

    Returns:
        ``passed`` where it ran to its end, else ``failed`` (an error, or it left early) or ``timeout``.

    Raises:
        EnvironmentProblem: This machine has no sandbox.
    """
    require_sandbox()
    # A word that a program cannot write by chance. One that looks for it in this very child can (see docs/tasks.md).
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="stillroom-sandbox-") as folder:
        process = subprocess.Popen(
            isolated(CHILD, str(limits.seconds), str(limits.memory_bytes)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
            close_fds=True,
        )
        try:
            output, _ = process.communicate(
                f"{word}\n{program}".encode(errors="replace"), timeout=2 * limits.seconds + 2
            )
        except subprocess.TimeoutExpired:
            return "timeout"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
    if output.endswith(word.encode()):
        return "passed"
    if b"the sandbox could not be closed" in output:
        raise EnvironmentProblem(
            "This system does not let a process give up its rights (seccomp), so no program was run.",
            "Leave tasks with code out of the recipe, or measure them elsewhere.",
        )
    return "timeout" if process.returncode == -signal.SIGXCPU else "failed"
