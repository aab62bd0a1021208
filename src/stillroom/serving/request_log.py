"""A log of requests, only where the owner asks for one: metadata, in a file of bounded size on this machine.

`stillroom guard intake` reads it. A line says when, from which network, under which key, and what was asked for in numbers.
Of a request that is refused before a model sees it, such as one without a valid key, it says when, from which network, and the
status. Keys, end users and clients' names are digests under a secret beside the file; addresses are reduced to their network.
Texts are in it only where the owner asked for that too.
"""

from __future__ import annotations

import asyncio
import collections
import hashlib
import ipaddress
import json
import os
import secrets
import sys
import threading
import time
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillroom.core import files
from stillroom.core.errors import UsageError
from stillroom.core.strict_json import NotStrict, read_strict

PATHS = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/api/chat", "/api/generate",
)  # fmt: skip
"""Wherever a model answers."""
FILE_BYTES, FILES = 64 << 20, 8
"""Size at which the file is set aside, and how many of these are kept."""
QUEUED = 1024
"""Lines that wait for the disk before requests wait for them."""
PAUSE = 0.02
"""Seconds between two looks whether fewer lines wait."""
PATIENCE = 60.0
"""Seconds that closing waits for a disk that takes no line."""


class RequestLog:
    """Writes lines, on a thread of its own: a slow disk holds up no answer.

    Args:
        path: The file.
        texts: Whether messages are written too.

    Raises:
        UsageError: The file cannot be written.
    """

    def __init__(self, path: Path, *, texts: bool = False) -> None:
        self.path = path
        self.texts = texts
        self._failed = False
        self._lines: collections.deque[bytes] = collections.deque()
        self._changed = threading.Condition()
        self._closing = False
        secret = path.with_name(path.name + ".secret")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not secret.exists():
                handle = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(handle, "wb") as stream:
                    stream.write(secrets.token_bytes(32))
            self._secret = secret.read_bytes()[:32]
            # What a server that was killed had begun to write takes no line with it.
            files.append(path, b"\n" if files.is_cut_off(path) else b"")
        except OSError as error:
            raise UsageError(
                f"--request-log {path}: cannot be written ({error.strerror}).", "Name another file."
            ) from None
        if len(self._secret) != 32:
            raise UsageError(
                f"{secret} is not a request log's secret (32 bytes).", "Remove it, and a new one is drawn."
            )
        self._thread = threading.Thread(target=self._work, name="request log", daemon=True)
        self._thread.start()

    def digest(self, text: str) -> str:
        """What stands for a name: equal ones are seen to be equal, and no more."""
        return hashlib.blake2b(text.encode("utf-8", "replace"), key=self._secret, digest_size=8).hexdigest()

    def write(self, record: dict[str, Any]) -> None:
        """Have a line appended; a disk that is full is said once, and serving goes on."""
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        with self._changed:
            self._lines.append(line)
            self._changed.notify_all()

    async def write_in_turn(self, record: dict[str, Any]) -> None:
        """As :meth:`write`, once fewer than ``QUEUED`` lines wait: the request does, and no other one. No line is lost, also
        where the request is cancelled meanwhile.
        """
        try:
            while len(self._lines) >= QUEUED:
                await asyncio.sleep(PAUSE)
        finally:
            self.write(record)

    def _work(self) -> None:
        """Append lines until there are none and the log is closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closing)
                if not self._lines:
                    return
                line = self._lines[0]
            self._append(line)
            with self._changed:
                self._lines.popleft()
                self._changed.notify_all()

    def _append(self, line: bytes) -> None:
        try:
            size = self.path.stat().st_size if self.path.exists() else 0
            if size and size + len(line) > FILE_BYTES:
                for number in range(FILES - 1, 0, -1):
                    older = self.path.with_name(f"{self.path.name}.{number}")
                    if older.exists():
                        older.replace(self.path.with_name(f"{self.path.name}.{number + 1}"))
                self.path.replace(self.path.with_name(f"{self.path.name}.1"))
            files.append(self.path, line)
            self._failed = False
        except OSError as error:
            if not self._failed:
                self._failed = True
                sys.stderr.write(f"The request log {self.path} cannot be written: {error}\n")

    def close(self) -> None:
        """Return when all lines are in the file; a disk that takes none for ``PATIENCE`` seconds loses them, and that is
        said.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            left = len(self._lines)
            while left and self._changed.wait(PATIENCE):
                left = len(self._lines)
        if left:
            sys.stderr.write(f"The request log {self.path} lost its last {left:,} lines: the disk took none.\n")
            return
        self._thread.join()


class LoggedRequests:
    """Passes requests on, and writes a line when each was answered."""

    def __init__(self, app: ASGIApp, log: RequestLog) -> None:
        self.app = app
        self.log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and look on."""
        if scope["type"] != "http" or scope.get("method") != "POST" or scope["path"] not in PATHS:
            await self.app(scope, receive, send)
            return
        body = bytearray()
        status = 0
        began, clock = time.time(), time.perf_counter()

        async def heard() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                body.extend(message.get("body", b""))
            return message

        async def said(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, heard, said)
        finally:
            record = _record(self.log, scope, bytes(body))
            record |= {
                "time": round(began, 6),
                "status": status,
                "latency_ms": round((time.perf_counter() - clock) * 1000),
            }
            await self.log.write_in_turn(record)


def usage_of(scope: Scope) -> dict[str, int]:
    """Where the tokens of a request are counted, whether the client is told or not: ``prompt_tokens`` and
    ``completion_tokens``.
    """
    found: dict[str, int] = scope.setdefault("state", {}).setdefault("usage", {})
    return found


def _record(log: RequestLog, scope: Scope, body: bytes) -> dict[str, Any]:
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    admitted = "owner" in scope.get("state", {})
    # What the guard refused is no account's, and a key that is not valid here may be one of somewhere else.
    key = headers.get(b"authorization", "").partition(" ")[2].strip() if admitted else ""
    client = scope.get("client")
    record: dict[str, Any] = {"log": "stillroom", "path": scope["path"]}
    if key:
        record["key"] = log.digest(key)
    network = _network(client[0]) if client else None
    if network:
        record["ip"] = network
        if admitted and not key:
            # Without keys, a client's network is the nearest thing to an account.
            record["account"] = f"network {log.digest(network)}"
    if headers.get(b"user-agent"):
        record["user_agent"] = log.digest(headers[b"user-agent"])
    asked = _asked(scope["path"], _object(body))
    for name in ("n", "temperature", "max_tokens"):
        if isinstance(asked.get(name), int | float) and not isinstance(asked[name], bool):
            record[name] = asked[name]
    if isinstance(asked.get("model"), str):
        record["model"] = asked["model"][:200]
    record |= {
        "logprobs": bool(asked.get("logprobs") or asked.get("top_logprobs")),
        "tools": bool(asked.get("tools")),
        "stream": bool(asked.get("stream")),
        "seeded": asked.get("seed") is not None,
    }
    if isinstance(asked.get("user"), str):
        record["end_user"] = log.digest(asked["user"])
    messages = asked.get("messages")
    if isinstance(messages, list):
        record["turns"] = sum(isinstance(message, dict) and message.get("role") == "user" for message in messages)
    if log.texts:
        record |= {name: asked[name] for name in ("messages", "prompt") if name in asked}
    return record | usage_of(scope)


def _asked(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """A request of any of the APIs in the words of OpenAI's completions."""
    made = dict(body)
    if path == "/v1/responses":
        said = body.get("input")
        items = [{"role": "user", "content": said}] if isinstance(said, str) else said
        told = (
            [{"role": "system", "content": body["instructions"]}] if isinstance(body.get("instructions"), str) else []
        )
        made["messages"] = [*told, *(items if isinstance(items, list) else [])]
        made["max_tokens"] = body.get("max_output_tokens", body.get("max_tokens"))
    elif path.startswith("/api/"):
        options = body["options"] if isinstance(body.get("options"), dict) else {}
        made |= {name: options[name] for name in ("temperature", "seed") if name in options}
        made["max_tokens"] = options.get("num_predict", body.get("max_tokens"))
        made["stream"] = body.get("stream", True) is not False
        if path == "/api/generate" and body.get("raw") is not True:
            told = [{"role": "system", "content": body["system"]}] if isinstance(body.get("system"), str) else []
            made["messages"] = [*told, {"role": "user", "content": body.get("prompt")}]
            made.pop("prompt", None)
    return made


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = read_strict(data, key_twice=True)
    except NotStrict:
        return {}
    return value if isinstance(value, dict) else {}


def _network(host: str) -> str | None:
    """The /24 or /48 of an address, as the first address in it."""
    try:
        found = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return None
    return str(ipaddress.ip_network((found, 24 if found.version == 4 else 48), strict=False).network_address)
