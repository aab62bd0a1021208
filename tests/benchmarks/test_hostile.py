"""Whatever a server does wrong under hostile requests is counted, and none of it ends the benchmark."""

import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks import hostile
from benchmarks.serving import Serving, free_port
from stillroom.switch.places import Places


class Handler(BaseHTTPRequestHandler):
    """Answers with the status and the bytes of its server."""

    server: Any

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def do_POST(self) -> None:
        if self.server.status is None:
            self.close_connection = True
            return
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.said)))
        self.end_headers()
        self.wfile.write(self.server.said)

    do_GET = do_POST
    do_PATCH = do_POST
    do_DELETE = do_POST


@pytest.fixture
def server() -> Iterator[Any]:
    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.status, made.said = 200, b'{"id": "s"}'
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def asked(port: int, folder: Path) -> Serving:
    return Serving(None, port, Places.under(folder), list(hostile.KEYS))  # type: ignore[arg-type]


def test_every_5xx_but_503_is_a_failure() -> None:
    statuses = Counter({"200": 5, "404": 1, "500": 2, "501": 1, "503": 7, "-1": 3})
    assert hostile.failures_of(statuses) == ["500: 2", "501: 1", "-1: 3"]


def test_the_status_counts_whatever_the_answer_holds(server: Any, tmp_path: Path) -> None:
    server.status, server.said = 500, b"<html>no JSON</html>"
    client = asked(server.server_address[1], tmp_path)
    assert hostile.status_of(client, "POST", "/x", {}) == 500
    server.status = None
    assert hostile.status_of(client, "POST", "/x", {}) == -1, "it closed without an answer"


def test_a_port_on_which_no_one_listens_is_a_failure(tmp_path: Path) -> None:
    client = asked(free_port(), tmp_path)
    assert hostile.raw(client, b"GET / HTTP/1.1\r\n\r\n") == -1
    assert hostile.status_of(client, "GET", "/", None) == -1


@pytest.mark.parametrize(("status", "said"), [(None, b""), (200, b"<html>"), (500, b"{}")])
def test_an_honest_client_goes_on_after_a_failure_and_counts_it(
    server: Any, tmp_path: Path, status: int | None, said: bytes
) -> None:
    honest = hostile.Honest(asked(server.server_address[1], tmp_path))
    honest.once()
    assert honest.failures == []
    server.status, server.said = status, said
    assert honest.once() >= 0
    assert len(honest.failures) == 1


def test_an_answer_that_shows_nothing_of_what_is_cached_is_no_proof(server: Any, tmp_path: Path) -> None:
    client = asked(server.server_address[1], tmp_path)
    honest = hostile.Honest(client)
    server.status, server.said = 404, b"{}"
    found = hostile.leaks(client, honest)
    assert found[0].startswith("not seen whether it is cached: 404")
    assert "the list of sessions: 404" in found
