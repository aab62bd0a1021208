"""A small S3-compatible server on this machine, for tests and benchmarks: objects in memory, `If-None-Match: *`, ranges,
listings.

It checks no signatures. Failures can be ordered: the next requests are answered with 503, the connection is cut, or the line is
slow.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

PAGE = 1000
CHUNK = 16_384
"""Bytes that a slow line carries at a time."""


class S3Server(ThreadingHTTPServer):
    """The server; ``objects`` by ``bucket/key``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.begun = 0
        """Uploads in parts so far, with those that were given up: none gets the number of another."""
        self.lock = threading.Lock()
        self.busy = 0
        """So many requests are answered with 503 before the next good one."""
        self.cut = 0
        """So many connections are cut without an answer."""
        self.rate = 0.0
        """Bytes per second of the line, in each direction; 0 does not limit it."""
        self.stall_seconds = 0.0
        """The next answer of several chunks stops so long in the middle."""
        self.puts = 0

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which obstore finds it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server_address[1]}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_REGION": "us-east-1",
        }


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server while the body runs."""
    server = S3Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: S3Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).lstrip("/")

    def _answer(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self._write(data)

    def _read(self) -> bytes:
        """The request's body, as fast as the line is."""
        left = int(self.headers.get("Content-Length", 0))
        chunks: list[bytes] = []
        while left:
            chunk = self.rfile.read(min(left, CHUNK) if self.server.rate else left)
            if not chunk:
                raise ConnectionError("The body was cut off.")
            left -= len(chunk)
            chunks.append(chunk)
            if self.server.rate:
                time.sleep(len(chunk) / self.server.rate)
        return b"".join(chunks)

    def _write(self, data: bytes) -> None:
        """Some of an answer's body, as fast as the line is."""
        if not self.server.rate:
            self.wfile.write(data)
            return
        for start in range(0, len(data), CHUNK):
            chunk = data[start : start + CHUNK]
            self.wfile.write(chunk)
            self.wfile.flush()
            time.sleep(len(chunk) / self.server.rate)
            if start and self.server.stall_seconds:
                seconds, self.server.stall_seconds = self.server.stall_seconds, 0.0
                time.sleep(seconds)

    def handle_one_request(self) -> None:
        """As the class above does; a client that went away is not reported."""
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def _fails(self) -> bool:
        with self.server.lock:
            if self.server.cut:
                self.server.cut -= 1
                self.close_connection = True
                self.connection.close()
                return True
            if self.server.busy:
                self.server.busy -= 1
                self._answer(503, b"<Error><Code>SlowDown</Code></Error>")
                return True
        return False

    def do_PUT(self) -> None:
        """Put an object, if the key is free where that is asked."""
        data = self._read()
        if self._fails():
            return
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        if "uploadId" in query:
            with self.server.lock:
                self.server.uploads[query["uploadId"][0]][int(query["partNumber"][0])] = data
            self._answer(200, ETag=_tag(data))
            return
        with self.server.lock:
            if self.headers.get("If-None-Match") == "*" and self._key() in self.server.objects:
                self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
            self.server.objects[self._key()] = data
            self.server.puts += 1
        self._answer(200, ETag=_tag(data))

    def do_GET(self) -> None:
        """An object or a part of it, or a listing."""
        if self._fails():
            return
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        if "list-type" in query:
            self._list(query)
            return
        data = self.server.objects.get(self._key())
        if data is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        asked = self.headers.get("Range")
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last) + 1, len(data)) if last else len(data)
            self._answer(
                206, data[begin:end], ETag=_tag(data), Last_Modified=_DATE,
                Content_Range=f"bytes {begin}-{end - 1}/{len(data)}",
            )  # fmt: skip
            return
        self._answer(200, data, ETag=_tag(data), Last_Modified=_DATE)

    do_HEAD = do_GET  # noqa: N815

    def do_DELETE(self) -> None:
        """Remove an object, or what was sent of one."""
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        with self.server.lock:
            if "uploadId" in query:
                self.server.uploads.pop(query["uploadId"][0], None)
                self._answer(204)
                return
            self.server.objects.pop(self._key(), None)
        self._answer(204)

    def do_POST(self) -> None:
        """Remove the objects of a list; begin or end an object that is sent in parts."""
        data = self._read().decode()
        if self._fails():
            return
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        if "uploads" in query or "uploadId" in query:
            self._in_parts(query)
            return
        keys = re.findall(r"<Key>(.*?)</Key>", data)
        bucket = self._key().rstrip("/")
        with self.server.lock:
            for key in keys:
                self.server.objects.pop(f"{bucket}/{unescape(key)}", None)
        found = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        self._answer(200, f"<DeleteResult>{found}</DeleteResult>".encode())

    def _in_parts(self, query: dict[str, list[str]]) -> None:
        with self.server.lock:
            if "uploads" in query:
                upload = str(self.server.begun)
                self.server.begun += 1
                self.server.uploads[upload] = {}
                tag, inside = "InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>"
            else:
                parts = self.server.uploads[query["uploadId"][0]]
                data = b"".join(parts[number] for number in sorted(parts))
                self.server.objects[self._key()] = data
                self.server.puts += 1
                tag, inside = "CompleteMultipartUploadResult", f"<ETag>{_tag(data)}</ETag>"
        bucket, _, key = self._key().partition("/")
        self._answer(200, f"<{tag}><Bucket>{bucket}</Bucket><Key>{escape(key)}</Key>{inside}</{tag}>".encode())

    def _list(self, query: dict[str, list[str]]) -> None:
        bucket = self._key().rstrip("/")
        prefix = query.get("prefix", [""])[0]
        after = query.get("continuation-token", query.get("start-after", [""]))[0]
        with self.server.lock:
            names = sorted(name[len(bucket) + 1 :] for name in self.server.objects if name.startswith(f"{bucket}/"))
            sizes = {name: len(self.server.objects[f"{bucket}/{name}"]) for name in names}
        names = [name for name in names if name.startswith(prefix) and name > after]
        page = names[:PAGE]
        entries = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{sizes[name]}</Size><LastModified>2026-01-01T00:00:00.000Z"
            f'</LastModified><ETag>"0"</ETag></Contents>'
            for name in page
        )
        more = len(names) > PAGE
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        self._answer(
            200,
            f"<ListBucketResult><Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>".encode(),
        )


_DATE = "Thu, 01 Jan 2026 00:00:00 GMT"


def _tag(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()[:32]}"'
