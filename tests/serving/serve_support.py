"""What tests of serving share: a tiny model in a GGUF file, and a server in a thread."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from stillroom.runtime.engine import EngineOptions
from stillroom.serving.app import Limits, Service
from stillroom.serving.mark import Marking
from stillroom.serving.models import OpenedModel
from stillroom.serving.pool import Pool, ServedModel
from stillroom.serving.request_log import RequestLog
from stillroom.serving.running import settings
from stillroom.serving.sessions import SessionStore
from stillroom.switch import Places, Switch


@dataclass
class Running:
    """A server in a thread of this process."""

    port: int
    service: Service
    switch: Switch

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """One request: status, answer, headers. Bytes are sent as they are."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            text = response.read()
            found = {name.lower(): value for name, value in response.getheaders()}
            is_json = found.get("content-type", "").startswith("application/json")
            return response.status, json.loads(text) if is_json else text.decode(), found
        finally:
            connection.close()

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Events of a stream; {"done": True} for its proper end."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", path, json.dumps({**body, "stream": True}))
            response = connection.getresponse()
            if response.status != 200:
                yield {"status": response.status, **json.loads(response.read())}
                return
            while line := response.readline():
                if line.startswith(b"data: "):
                    yield {"done": True} if line.startswith(b"data: [DONE]") else json.loads(line[6:])
        finally:
            connection.close()

    def chat(self, text: str, **options: Any) -> tuple[int, Any]:
        """One chat completion: status and answer."""
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, "seed": 1, **options}
        status, answer, _ = self.ask("POST", "/v1/chat/completions", body)
        return status, answer


@contextlib.contextmanager
def running(
    models: list[Path],
    folder: Path,
    *,
    parallel: int = 2,
    context: int = 512,
    queue: int = 4,
    limits: Limits | None = None,
    memory: int | None = None,
    idle: float | None = None,
    marking: Marking | None = None,
    request_log: RequestLog | None = None,
    drafter: Path | None = None,
) -> Iterator[Running]:
    """A server for as long as the block lasts, under a switch of its own."""
    switch = Switch(Places.under(folder / "switch"))
    options = EngineOptions(context=context, parallel=parallel, threads=1, drafter=drafter)
    passport = {"kind": "file", "signature": {"state": "unsigned file"}}
    served = [
        ServedModel(OpenedModel(path, path.stem, path, _passport=passport), options, switch, queue) for path in models
    ]
    sessions = SessionStore(switch.places.data / "sessions", keyring=False)
    service = Service(Pool(served, memory, idle), switch, limits or Limits(), sessions, marking, request_log)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = settings(service, "127.0.0.1", port)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    try:
        yield Running(port, service, switch)
    finally:
        server.should_exit = True
        thread.join(20)
