"""A server in a process of its own, with a switch of its own, for measurements.

Run as ``python -m benchmarks.serving [--stuck FILE] MODEL FOLDER PARALLEL CONTEXT BATCH [KEY…]``; prints its port.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.switch.places import Places


@dataclass
class Serving:
    """A running server.

    Attributes:
        process: Its process.
        port: Where it listens, on loopback.
        places: Its switch's files.
        keys: Its keys; requests are made with the first.
        name: What its only model is called; empty until it was asked (:meth:`model`).
    """

    process: subprocess.Popen[str]
    port: int
    places: Places
    keys: list[str] = field(default_factory=list)
    name: str = ""

    def head(self) -> dict[str, str]:
        """The headers by which it knows us."""
        return {"Authorization": f"Bearer {self.keys[0]}"} if self.keys else {}

    def model(self) -> str:
        """The name of the only model, which some APIs want in every request."""
        if not self.name:
            self.name = str(self.ask("GET", "/v1/models")[1]["data"][0]["id"])
        return self.name

    def connect(self, seconds: float = 120) -> http.client.HTTPConnection:
        """A connection to it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def ask(self, method: str, path: str, body: Any = None, seconds: float = 120) -> tuple[int, dict[str, Any]]:
        """One request; status and answer."""
        connection = self.connect(seconds)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), self.head())
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"{}")
        finally:
            connection.close()

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[tuple[float, dict[str, Any]]]:
        """The events of a streamed answer, with the time when each arrived."""
        connection = self.connect()
        try:
            connection.request("POST", path, json.dumps({**body, "stream": True}), self.head())
            response = connection.getresponse()
            if response.status != 200:
                raise RuntimeError(f"{response.status}: {response.read()[:300]!r}")
            while line := response.readline():
                if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                    yield time.perf_counter(), json.loads(line[6:])
                elif line.startswith(b"data: [DONE]"):
                    yield time.perf_counter(), {"done": True}
        finally:
            connection.close()

    def wait(self, seconds: float = 60) -> None:
        """Until it is healthy, has ended, or the time is up."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if self.ask("GET", "/health")[0] == 200:
                    return
            time.sleep(0.05)


def free_port() -> int:
    """A port on loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(
    model: Path,
    folder: Path,
    parallel: int,
    context: int,
    batch: int = 256,
    keys: Sequence[str] = (),
    stuck: Path | None = None,
) -> Iterator[Serving]:
    """A server for as long as the block lasts.

    While the file `stuck` is there, the server's check of its models does not return, as behind a slow mirror.
    """
    words = [*(["--stuck", str(stuck)] if stuck is not None else [])]
    words += [str(model), str(folder), str(parallel), str(context), str(batch), *keys]
    with started("benchmarks.serving", words, folder, keys) as made:
        yield made


@contextlib.contextmanager
def started(module: str, words: Sequence[str], folder: Path, keys: Sequence[str] = ()) -> Iterator[Serving]:
    """A module's server for as long as the block lasts: it prints its port and ends with us (:func:`end_with_parent`)."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        made = Serving(process, port, Places.under(folder), list(keys))
        made.wait()
        yield made
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def check_while(stuck: Path) -> None:
    """Have this process's server check its models often, and let a check last as long as a file is there."""
    from stillroom.serving import pool
    from stillroom.serving.models import OpenedModel

    def recheck(self: OpenedModel) -> None:  # noqa: ARG001 - a method's
        while stuck.exists():
            with contextlib.suppress(OSError):
                stuck.with_suffix(".seen").touch()
            time.sleep(0.05)

    pool.RECHECK_SECONDS = 0.1
    OpenedModel.recheck = recheck  # type: ignore[method-assign]


def end_with_parent() -> None:
    """End this process when the one that started it has ended, however it ended: the pipe between them closes."""

    def wait() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def main(model: str, folder: str, parallel: str, context: str, batch: str = "256", *keys: str) -> None:
    """Serve until told to end."""
    from stillroom.runtime.engine import EngineOptions
    from stillroom.serving.app import Limits, Service
    from stillroom.serving.models import open_model
    from stillroom.serving.pool import Pool, ServedModel
    from stillroom.serving.running import run
    from stillroom.switch.state import Switch

    if model == "--stuck":
        check_while(Path(folder))
        model, folder, parallel, context, batch, *rest = parallel, context, batch, *keys
        keys = tuple(rest)
    end_with_parent()
    port = free_port()
    switch = Switch(Places.under(Path(folder)))
    options = EngineOptions(context=int(context), parallel=int(parallel), batch=int(batch))
    served = ServedModel(open_model(model), options, switch, queue=32)
    service = Service(Pool([served]), switch, Limits(keys=list(keys)))
    print(port, flush=True)
    run(service, "127.0.0.1", port)


if __name__ == "__main__":
    main(*sys.argv[1:])
