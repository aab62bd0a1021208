"""A mirror that sends a byte at a time is one that cannot be reached, and nobody else waits for it."""

from __future__ import annotations

import contextlib
import http.server
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attacks.workshop import Workshop, workshop
from stillroom.switch import Switch
from stillroom.verification import client


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return workshop(tmp_path)


class Mirror:
    """The repository over HTTP; slow once `slow` is set."""

    def __init__(self, folder: Path) -> None:
        mirror, self.slow, self.asked = self, threading.Event(), threading.Event()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = folder / self.path.lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    return
                data = path.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if not mirror.slow.is_set():
                    self.wfile.write(data)
                    return
                mirror.asked.set()
                for at in range(len(data)):
                    if not mirror.slow.is_set():
                        return
                    try:
                        self.wfile.write(data[at : at + 1])
                        self.wfile.flush()
                    except OSError:
                        return
                    time.sleep(0.05)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def mirror(shop: Workshop) -> Iterator[Mirror]:
    made = Mirror(shop.repo)
    yield made
    made.slow.clear()
    made.server.shutdown()
    made.server.server_close()


def test_a_slow_mirror_is_given_up_and_holds_up_nobody(
    shop: Workshop, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = shop.pin.model_copy(update={"repository": mirror.address})
    shop.check(trust=pin)
    mirror.slow.set()
    monkeypatch.setattr(client, "FETCH_SECONDS", 3.0)
    found: list[Any] = []

    def over_the_network() -> None:
        with shop.verify(trust=pin) as verified:
            found.append(verified.warnings)

    thread = threading.Thread(target=over_the_network)
    thread.start()
    assert mirror.asked.wait(20)
    shop.check(trust=pin, repository=str(shop.repo))
    assert thread.is_alive(), "the other one was done while the mirror was waited for"
    thread.join(30)
    assert "within 3 seconds" in found[0][0], "offline, and said so"
    assert not [*shop.folder.rglob("fetch-*")]


def test_what_came_too_late_changes_nothing(shop: Workshop, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    pin = shop.pin.model_copy(update={"repository": mirror.address})
    shop.check(trust=pin)
    (folder,) = (shop.folder / "state").rglob("metadata/timestamp.json")
    kept = folder.read_bytes()
    monkeypatch.setattr(client, "FETCH_SECONDS", 0.2)
    mirror.slow.set()
    shop.check(trust=pin)
    mirror.slow.clear()
    time.sleep(0.3)
    assert folder.read_bytes() == kept


def test_a_blocked_download_counts_as_a_mirror_that_cannot_be_reached(
    shop: Workshop, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_downloads: Switch
) -> None:
    monkeypatch.setattr(client, "is_on", no_downloads.is_on)
    monkeypatch.setattr(client, "_renew", lambda *_: pytest.fail("something was fetched"))
    ahead = client.fetch_ahead(shop.pin, tmp_path / "kept" / "metadata", mirror.address, contextlib.nullcontext())
    assert ahead.settle(tmp_path / "kept" / "metadata") == "the owner's switch blocks downloads"


def test_what_a_killed_process_fetched_is_removed_later(shop: Workshop, mirror: Mirror, tmp_path: Path) -> None:
    folder = tmp_path / "kept" / "metadata"
    old, new = (folder.parent / name for name in ("fetch-old", "fetch-new"))
    for path in (old, new):
        (path / "metadata").mkdir(parents=True)
    os.utime(old, (time.time() - 2 * client.LEFT_SECONDS,) * 2)
    made = client.fetch_ahead(shop.pin, folder, mirror.address, contextlib.nullcontext()).made
    assert not old.exists()
    assert new.exists()
    assert made.exists()
