"""HTTP to an engine: what it answers comes through as it is, and anything that is not whole counts as a lost engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from stillroom.runtime.transport import EngineGone, EngineRefused, call, request

OK = b"HTTP/1.1 200 OK\r\n"


@contextlib.asynccontextmanager
async def engine(socket: Path, *parts: bytes, seen: list[bytes] | None = None) -> AsyncIterator[None]:
    """A server that reads one request, sends some bytes and closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        if seen is not None:
            seen.extend((head, body))
        for part in parts:
            writer.write(part)
            with contextlib.suppress(OSError):
                await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_unix_server(answer, str(socket))
    async with server:
        yield


def called(socket: Path, *parts: bytes) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        async with engine(socket, *parts):
            return await asyncio.wait_for(call(socket, "key", "POST", "/x", {"a": 1}), 10)

    return asyncio.run(run())


def lines_of(socket: Path, *parts: bytes) -> list[bytes]:
    async def run() -> list[bytes]:
        async with engine(socket, *parts), request(socket, "key", "POST", "/x", {}) as lines:
            return [line async for line in lines]

    return asyncio.run(run())


@pytest.fixture
def socket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # The path of a local socket has at most 107 bytes.
    return tmp_path_factory.mktemp("s") / "s"


def test_what_is_sent(socket: Path) -> None:
    seen: list[bytes] = []

    async def run() -> None:
        async with engine(socket, OK + b"Content-Length: 2\r\n\r\n{}", seen=seen):
            assert await call(socket, "secret", "POST", "/v1/x?y=z", {"text": "ä\n"}) == {}

    asyncio.run(run())
    head, body = seen
    assert head.startswith(b"POST /v1/x?y=z HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer secret\r\n" in head
    assert json.loads(body) == {"text": "ä\n"}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some.lists(some.binary(min_size=1, max_size=40), max_size=6), some.integers(1, 50))
def test_chunks_give_back_their_lines(socket: Path, chunks: list[bytes], cut: int) -> None:
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    data = OK + b"Transfer-Encoding: chunked\r\n\r\n" + body
    pieces = [data[start : start + cut] for start in range(0, len(data), cut)]
    whole = b"".join(chunks)
    expected = whole.split(b"\n")
    assert lines_of(socket, *pieces) == (expected if expected[-1] else expected[:-1])


@pytest.mark.parametrize("headers", [b"content-LENGTH:8\r\n\r\n", b"\r\n"])
def test_bodies_in_one_piece(socket: Path, headers: bytes) -> None:
    assert called(socket, OK + headers, b'{"a":', b"12}") == {"a": 12}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense",
        b"\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 fine OK\r\n\r\n",
        b"x" * (1 << 25),
        OK,
        OK + b"Content-Length: 9\r\n\r\n{}",
        OK + b"Content-Length: -2\r\n\r\n{}",
        OK + b"Content-Length: two\r\n\r\n{}",
        OK + b"Content-Length: 3\r\n\r\n{}}",
        OK + b"Transfer-Encoding: chunked\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\n{}",
        OK + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    ],
)
def test_an_answer_that_is_not_whole_is_an_engine_that_is_gone(socket: Path, answer: bytes) -> None:
    with pytest.raises(EngineGone):
        called(socket, answer)


def test_no_engine(socket: Path) -> None:
    with pytest.raises(EngineGone):
        asyncio.run(call(socket, "key", "GET", "/"))


@pytest.mark.parametrize(
    ("body", "message"), [(b'{"error": {"message": "too long", "type": "t"}}', "too long"), (b"<html>", "<html>")]
)
def test_a_refusal(socket: Path, body: bytes, message: str) -> None:
    answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with pytest.raises(EngineRefused) as refused:
        called(socket, answer)
    assert (refused.value.status, str(refused.value)) == (400, message)


def test_leaving_the_block_closes_the_connection(socket: Path) -> None:
    async def run() -> None:
        closed = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\none\n\r\n")
            await reader.read()  # until the other side closes
            closed.set()
            writer.close()

        async with await asyncio.start_unix_server(answer, str(socket)):
            async with request(socket, "key", "GET", "/") as lines:
                assert await anext(lines) == b"one"
                assert not closed.is_set()
            await asyncio.wait_for(closed.wait(), 10)

    asyncio.run(run())
