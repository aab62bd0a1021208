"""Programs that a model wrote, run in a child that can neither reach the network, nor write files, nor start programs.

On Linux the kernel itself refuses (seccomp, set before the program is read): sockets, opening files for writing, changing
or removing files, starting other programs or processes, signals to others, namespaces, tracing. Memory, CPU
time, output and open files are limited, the environment is empty, the folder is a fresh one that may not be written to.
Reading files stays possible, and nothing of what is read can leave but the result. Elsewhere nothing is run.

Whether it is right is decided in another such process (:func:`run_program`).
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from stillroom.core.errors import EnvironmentProblem, RecipeError
from stillroom.core.sandbox.child import isolated
from stillroom.core.sandbox.programs_child import NOT_PLAIN, SERVE
from stillroom.core.sandbox.seccomp import MACHINES

CHILD = "stillroom.core.sandbox.programs_child"


@dataclass(frozen=True)
class Limits:
    """What a program may use: CPU seconds (its wall time is twice that) and bytes of address space."""

    seconds: float = 5.0
    memory_bytes: int = 512 << 20


def require_sandbox() -> None:
    """Refuse where programs cannot be kept in.

    Raises:
        EnvironmentProblem: This is not Linux on a CPU whose calls are known.
    """
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        raise EnvironmentProblem(
            f"Programs that models write are only run on Linux ({', '.join(MACHINES)}); this is {platform.platform()}.",
            "Leave tasks with code out of the recipe, or measure them on such a machine.",
        )


def run_program(program: str, limits: Limits, checks: str | None = None, before: str = "") -> str:
    """Run a program in the sandbox, and evaluate it in another.

    What the program defines is called from a second, equally confined process, where the checks run and nothing of the
    program does: it gets the arguments, answers with plain data, and sees neither the checks nor the result.

    Args:
        program: Python source, what a model wrote with what it continues.
        limits: What it may use; the same again for the checks.
        checks: Python source that evaluates what the program defines. None are the ``assert`` statements it ends with.
        before: Trusted source whose names the program cannot replace; see :func:`settled`.

    Returns:
        ``passed`` where program and checks ran to their end, else ``failed`` (an error, or it left early) or ``timeout``.
        A program without checks has nothing to be evaluated by but that it says it came to its end.

    Raises:
        EnvironmentProblem: This machine has no sandbox.
        RecipeError: The checks hand the program something that is no plain data.
    """
    require_sandbox()
    if checks is None:
        program, checks = _asserts(program)
    word = secrets.token_hex(16)
    arguments = (str(limits.seconds), str(limits.memory_bytes))
    with tempfile.TemporaryDirectory(prefix="stillroom-sandbox-") as folder, contextlib.ExitStack() as held:

        def start(*how: str, passed: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                isolated(CHILD, *arguments, *how),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={},
                start_new_session=True,
                pass_fds=passed,
            )
            held.callback(_end, process)
            return process

        program_runs = start(SERVE)
        assert program_runs.stdin is not None
        assert program_runs.stdout is not None
        replies, requests = program_runs.stdout.fileno(), program_runs.stdin.fileno()
        judge = start(str(replies), str(requests), passed=(replies, requests))
        with contextlib.suppress(BrokenPipeError):
            program_runs.stdin.write(json.dumps(program).encode() + b"\n")
            program_runs.stdin.flush()
        program_runs.stdin.close()
        program_runs.stdout.close()
        try:
            output, _ = judge.communicate(
                f"{word}\n{json.dumps([before, checks])}".encode(), timeout=2 * limits.seconds + 2
            )
        except subprocess.TimeoutExpired:
            return "timeout"
        if output == word.encode():
            return "passed"
        with contextlib.suppress(subprocess.TimeoutExpired):
            program_runs.wait(1)
    if output == b"the sandbox could not be closed":
        raise EnvironmentProblem(
            "This system does not let a process give up its rights (seccomp), so no program was run.",
            "Leave tasks with code out of the recipe, or measure them elsewhere.",
        )
    if output.startswith(NOT_PLAIN):
        kind = output.removeprefix(NOT_PLAIN).decode(errors="replace")
        raise RecipeError(
            f"A task's test hands a value of the type `{kind}` to a model's program, which runs in another process.",
            "Let the test call it with plain data: numbers, texts, bytes, lists, tuples, sets, dictionaries.",
        )
    return "timeout" if -signal.SIGXCPU in (judge.returncode, program_runs.returncode) else "failed"


def settled(before: str) -> str:
    """The part of a source in front of an answer that the answer does not continue: all but its last statement."""
    lines = before.splitlines(keepends=True)
    while lines:
        try:
            tree = ast.parse("".join(lines))
        except SyntaxError:
            # The open statement begins where a line is not indented.
            while lines and (lines.pop()[:1].isspace()):
                pass
            if not lines:
                return ""
            with contextlib.suppress(SyntaxError):
                ast.parse("".join(lines))
                return "".join(lines)
            continue
        if tree.body and isinstance(tree.body[-1], ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            tree.body.pop()
        return ast.unparse(tree)
    return ""


def _asserts(program: str) -> tuple[str, str]:
    """A program without the assertions it ends with, and those."""
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return program, ""
    last = len(tree.body)
    while last and isinstance(tree.body[last - 1], ast.Assert):
        last -= 1
    if last == len(tree.body):
        return program, ""
    kept, checks = ast.Module(tree.body[:last], []), ast.Module(tree.body[last:], [])
    return ast.unparse(kept), ast.unparse(checks)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(BrokenPipeError):
            if stream is not None:
                stream.close()
