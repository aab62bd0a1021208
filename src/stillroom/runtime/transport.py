"""HTTP to an engine's local socket, without threads."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from stillroom.core.errors import StillroomError

LONGEST_LINE = 1 << 24


class EngineGone(Exception):
    """The engine ended while it was talked to."""


class EngineRefused(StillroomError):
    """The engine answered with an error.

    Attributes:
        status: The status of HTTP.
        error: What the engine said.
    """

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        self.status, self.error = status, error
        super().__init__(str(error.get("message", error)))


@contextlib.asynccontextmanager
async def request(
    socket: Path, key: str, method: str, path: str, body: Any = None
) -> AsyncIterator[AsyncIterator[bytes]]:
    """One request; yields the lines of the answer. Leaving the block closes the connection, which stops the model.

    Raises:
        EngineGone: It ended.
        EngineRefused: It answered with an error.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket), limit=LONGEST_LINE)
    except OSError:
        raise EngineGone from None
    try:
        data = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: engine\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        try:
            writer.write(head.encode() + data)
            await writer.drain()
            status, chunked = await _head(reader)
        except (OSError, asyncio.IncompleteReadError):
            raise EngineGone from None
        lines = _lines(_chunks(reader) if chunked else _rest(reader))
        if status != 200:
            text = b"".join([line async for line in lines])
            with contextlib.suppress(ValueError):
                value = json.loads(text)
                if isinstance(value, dict) and isinstance(value.get("error"), dict):
                    raise EngineRefused(status, value["error"])
            raise EngineRefused(status, {"message": text[:200].decode(errors="replace")})
        yield lines
    finally:
        writer.close()


async def call(socket: Path, key: str, method: str, path: str, body: Any = None) -> dict[str, Any]:
    """One request that answers with JSON."""
    async with request(socket, key, method, path, body) as lines:
        value: dict[str, Any] = json.loads(b"".join([line async for line in lines]))
        return value


async def _head(reader: asyncio.StreamReader) -> tuple[int, bool]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    return int(head.split(b" ", 2)[1]), b"transfer-encoding: chunked" in head


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    try:
        while size := int((await reader.readuntil(b"\r\n")).strip() or b"0", 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
    except (OSError, asyncio.IncompleteReadError, ValueError):
        raise EngineGone from None


async def _rest(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while part := await reader.read(1 << 16):
        yield part


async def _lines(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    left = b""
    async for part in parts:
        left += part
        *whole, left = left.split(b"\n")
        for line in whole:
            yield line
    if left:
        yield left
