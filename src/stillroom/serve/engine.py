"""A GGUF model in a child process of its own, by llama.cpp (xllamacpp). Knows nothing of runs or packages.

The parent never holds the model. Whatever happens in the child, the parent gets an answer or an error, and it can end
the child at any time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from stillroom.errors import EngineFailed

START_SECONDS = 120.0
STOP_SECONDS = 2.0


@dataclass(frozen=True)
class EngineOptions:
    """How a model is run.

    Attributes:
        context: Tokens of context.
        threads: Threads; None takes the processor's cores but one, at most eight.
        batch: Tokens a prefill step; small steps make stopping quick.
    """

    context: int = 2048
    threads: int | None = None
    batch: int = 256


class Engine:
    """One model in one child process. Use it as a context manager, or call :meth:`stop`.

    Args:
        path: A GGUF file.
        options: How it is run.

    Raises:
        EngineFailed: The child did not start, or the file cannot be loaded.
    """

    def __init__(self, path: Path, options: EngineOptions | None = None) -> None:
        options = options or EngineOptions()
        self.path = path
        # The child starts fresh: nothing of this process, its threads or its files, is copied into it.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._stop = context.Event()
        self._process = context.Process(
            target=_child,
            args=(theirs, self._stop, str(path), options),
            daemon=True,
            name=f"stillroom-engine-{path.name}",
        )
        with _importable_main():
            self._process.start()
        theirs.close()
        kind, value = self._receive(START_SECONDS)
        if kind != "ready":
            self.stop()
            raise EngineFailed(
                f"{path}: the runtime could not load the model: {value}", "Check that the file is a whole GGUF."
            )

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Process number of the child."""
        return self._process.pid

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """One completion of a prompt, in the words of the OpenAI API; not streamed."""
        self._send("complete", body)
        return self._answer()

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """One chat completion, in the words of the OpenAI API; not streamed."""
        self._send("chat", body)
        return self._answer()

    def stream(self, messages: list[dict[str, str]], **options: Any) -> Iterator[str]:
        """A chat's answer, piece by piece. Closing the iterator stops the model at its next token."""
        self._stop.clear()
        self._send("chat", {"messages": messages, "stream": True, **options})
        finished = False
        try:
            while True:
                kind, value = self._receive(None)
                if kind == "chunk":
                    for choice in value.get("choices", ()):
                        text = choice.get("delta", {}).get("content")
                        if text:
                            yield text
                    if "error" in value:
                        finished = True
                        self._drain()
                        raise EngineFailed(
                            f"The model did not answer: {_reason(value)}", "Shorten the conversation, or start anew."
                        )
                elif kind == "done":
                    finished = True
                    return
                else:
                    finished = True
                    raise EngineFailed(f"The model did not answer: {value}", "Start it again.")
        finally:
            if not finished:
                self._stop.set()
                with contextlib.suppress(EngineFailed):
                    self._drain()

    def stop(self) -> None:
        """End the child: first asked, then killed."""
        self._stop.set()
        if self._process.is_alive():
            with contextlib.suppress(OSError, BrokenPipeError):
                self._connection.send(("quit", None))
            self._process.join(STOP_SECONDS)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
        self._connection.close()

    def _drain(self) -> None:
        while self._receive(START_SECONDS)[0] == "chunk":
            pass

    def _send(self, kind: str, body: dict[str, Any]) -> None:
        try:
            self._connection.send((kind, body))
        except (OSError, ValueError):
            raise self._died() from None

    def _answer(self) -> dict[str, Any]:
        kind, value = self._receive(None)
        if kind != "answer" or "error" in value:
            reason = _reason(value) if isinstance(value, dict) else value
            raise EngineFailed(f"The model did not answer: {reason}", "Shorten the prompt, or start it again.")
        result: dict[str, Any] = value
        return result

    def _receive(self, seconds: float | None) -> tuple[str, Any]:
        try:
            if seconds is not None and not self._connection.poll(seconds):
                raise EngineFailed(
                    f"{self.path}: the runtime said nothing for {seconds:.0f} seconds.", "Start it again."
                )
            message: tuple[str, Any] = self._connection.recv()
        except (EOFError, OSError):
            raise self._died() from None
        return message

    def _died(self) -> EngineFailed:
        self._process.join(STOP_SECONDS)
        return EngineFailed(
            f"{self.path}: the runtime process ended (exit code {self._process.exitcode}).",
            "The file may be damaged or memory too small; `stillroom chat` with the F16 file tells which.",
        )


def default_threads() -> int:
    """Cores but one, at most eight: a busy core slows llama.cpp more than a missing one."""
    return max(1, min(8, (os.cpu_count() or 2) - 1))


def _reason(value: dict[str, Any]) -> str:
    error = value.get("error", value)
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


@contextlib.contextmanager
def _importable_main() -> Iterator[None]:
    """Keep the child from running the parent's program again: it needs this module only."""
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    main.__spec__ = None
    if file is not None:
        del main.__file__
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


def _child(connection: Connection, stop: Any, path: str, options: EngineOptions) -> None:
    """The child's life: load, answer until told to quit or until the parent is gone."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # llama.cpp reports its loading on stderr; what matters comes back as a message.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        server = _load(path, options)
    except Exception as error:
        connection.send(("failed", str(error) or type(error).__name__))
        return
    connection.send(("ready", None))
    while True:
        try:
            kind, body = connection.recv()
        except (EOFError, OSError):
            return
        if kind == "quit":
            return
        handle = server.handle_chat_completions if kind == "chat" else server.handle_completions
        try:
            if body.get("stream"):

                def deliver(chunk: Any) -> bool:
                    connection.send(("chunk", chunk))
                    return bool(stop.is_set())

                handle(body, deliver)
                connection.send(("done", None))
            else:
                connection.send(("answer", handle(body)))
        except (BrokenPipeError, EOFError):
            return
        except Exception as error:
            connection.send(("failed", str(error) or type(error).__name__))


def _load(path: str, options: EngineOptions) -> Any:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.n_ctx = options.context
    parameters.n_batch = parameters.n_ubatch = options.batch
    parameters.n_parallel = 1
    threads = options.threads or default_threads()
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    for processor in (parameters.cpuparams, parameters.cpuparams_batch):
        # Waiting threads sleep: spinning ones starve each other on a busy machine.
        processor.poll = 0
    parameters.cache_ram_mib = 0
    parameters.warmup = False
    # The library opens a port of its own on loopback; a key that nobody knows closes it.
    parameters.api_keys = [secrets.token_hex(32)]
    parameters.endpoint_slots = False
    parameters.ui = False
    return xllamacpp.Server(parameters)
