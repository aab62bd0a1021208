"""HTTP to an engine's local socket, without threads.

By hand, because of what a token costs: with httpx2 2.16 and its httpcore2, whose clients can use a local socket, the CPU time
for each event of a stream was 2 to 2.5 times as much, a stream of a tiny model 12 % slower, a request for one token 10 to 20 %.
An engine runs a model that may be hostile: whatever it answers that is not whole HTTP counts as an engine that is gone.
"""

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


class EngineUnreached(EngineGone):
    """The engine had ended before it was talked to."""


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
        raise EngineUnreached from None
    try:
        data = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: engine\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        try:
            writer.write(head.encode() + data)
            await writer.drain()
            status, headers = await _head(reader)
        except _BROKEN:
            raise EngineGone from None
        lines = _lines(_body(reader, headers))
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
    """One request that answers with JSON. Errors as in :func:`request`."""
    async with request(socket, key, method, path, body) as lines:
        text = b"".join([line async for line in lines])
    try:
        value: dict[str, Any] = json.loads(text)
    except ValueError:
        raise EngineGone from None
    return value


_BROKEN = (OSError, ValueError, IndexError, EOFError, asyncio.LimitOverrunError)


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[bytes, bytes]]:
    """Status and headers, in small letters.

    Raises:
        OSError, ValueError, IndexError, EOFError, asyncio.LimitOverrunError: They are not whole, or not HTTP.
    """
    first, *rest = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
    headers = {name.strip(): value.strip() for name, _, value in (line.partition(b":") for line in rest)}
    return int(first.split(b" ", 2)[1]), headers


async def _body(reader: asyncio.StreamReader, headers: dict[bytes, bytes]) -> AsyncIterator[bytes]:
    try:
        if headers.get(b"transfer-encoding") == b"chunked":
            while size := int(await reader.readuntil(b"\r\n"), 16):
                yield await reader.readexactly(size)
                await reader.readexactly(2)
        elif b"content-length" in headers:
            yield await reader.readexactly(int(headers[b"content-length"]))
        else:
            yield await reader.read()
    except _BROKEN:
        raise EngineGone from None


async def _lines(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    left = b""
    async for part in parts:
        left += part
        *whole, left = left.split(b"\n")
        for line in whole:
            yield line
    if left:
        yield left
