"""The switch and a server: in every state, `off` ends it, nothing follows, and nothing starts."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from serve_support import Running, running

from stillroom.core import files
from stillroom.core.errors import SwitchedOff
from stillroom.runtime.engine import Engine, EngineOptions
from stillroom.serving import pool
from stillroom.serving.models import OpenedModel
from stillroom.serving.pool import ServedModel
from stillroom.switch import Places, Switch, stopping
from stillroom.switch.engines import is_running, listed

LONG = {"prompt": "Go", "max_tokens": 1500, "temperature": 1.5, "logit_bias": {"2": -100}}


def engines(made: Running) -> list[int]:
    return [entry.pid for _, entry in listed(made.switch.places) if entry.kind == "engine"]


@pytest.mark.parametrize("streams", [0, 1, 4])
@pytest.mark.parametrize("hung", [False, True])
def test_off_ends_every_stream_with_an_error(tiny_gguf: Path, tmp_path: Path, streams: int, hung: bool) -> None:
    with running([tiny_gguf], tmp_path, parallel=4, context=2048) as made:
        made.chat("Go")
        last = [0.0] * max(1, streams)
        seen: list[list[dict[str, Any]]] = [[] for _ in last]

        def listen(number: int) -> None:
            # A connection that is cut off is an error as well.
            with contextlib.suppress(ConnectionError, http.client.HTTPException):
                for event in made.stream("/v1/completions", LONG):
                    seen[number].append(event)
                    if event.get("choices"):
                        last[number] = time.perf_counter()

        threads = [threading.Thread(target=listen, args=(number,)) for number in range(streams)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 20
        while streams and not all(seen) and time.monotonic() < until:
            time.sleep(0.005)
        identified = [(e.pid, e.started) for _, e in listed(made.switch.places) if e.kind == "engine"]
        if hung:
            for pid, _ in identified:
                os.kill(pid, signal.SIGSTOP)
        receipt = stopping.off(Switch(made.switch.places))
        at = time.perf_counter()
        # The server's own watch may have killed it first: the receipt then says that it was gone.
        assert len(receipt.stopped) == 1
        assert engines(made) == []
        assert not any(is_running(*each) for each in identified)
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert all(moment <= at for moment in last)
        ended = [e for e in seen[:streams] if e[-1].get("done") or e[-1].get("error", {}).get("code") == "switched_off"]
        # Whoever could not be told in time was cut off by the server, and by nothing else.
        assert len(ended) + made.service.delivery.hush.cuts >= streams
        status, answer = made.chat("Go")
        assert status == 503
        assert answer["error"]["code"] == "switched_off"
        assert made.ask("GET", "/")[0] == 200, "the page holds the switch, so that it is there"
        assert made.ask("GET", "/health")[0] == 503
        assert made.ask("POST", "/switch/on")[0] == 200
        assert made.chat("Go")[0] == 200


def test_nothing_starts_while_it_is_off(tiny_gguf: Path, tmp_path: Path) -> None:
    from stillroom.switch import Places

    switch = Switch(Places.under(tmp_path))
    stopping.off(switch)
    with pytest.raises(SwitchedOff):
        Engine(tiny_gguf, EngineOptions(context=128), switch)
    assert not listed(switch.places)


def test_an_engine_that_is_loading_is_stopped_too(tiny_gguf: Path, tmp_path: Path) -> None:
    from stillroom.switch import Places

    switch = Switch(Places.under(tmp_path))
    found: list[BaseException | None] = []

    def load() -> None:
        try:
            Engine(tiny_gguf, EngineOptions(context=128, threads=1), switch).stop()
            found.append(None)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    until = time.monotonic() + 10
    while not listed(switch.places) and time.monotonic() < until:
        time.sleep(0.001)
    stopping.off(switch)
    thread.join(20)
    assert isinstance(found[0], SwitchedOff)
    assert not listed(switch.places)


def test_a_worker_that_is_not_in_the_list_is_found(tiny_gguf: Path, tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("processes are listed as Linux does")
    with running([tiny_gguf], tmp_path) as made:
        made.chat("Go")
        for path in made.switch.places.engines.glob("engine-*.json"):
            path.unlink()
        assert len(stopping.off(made.switch).stopped) == 1


def test_a_policy_that_appears_stops_a_server(tiny_gguf: Path, tmp_path: Path) -> None:
    with running([tiny_gguf], tmp_path) as made:
        made.chat("Go")
        files.write_json(made.switch.places.policy, {"format": 1, "switch": "off"})
        until = time.monotonic() + 10
        while engines(made) and time.monotonic() < until:
            time.sleep(0.02)
        assert engines(made) == []
        _, status, _ = made.ask("GET", "/switch")
        assert status["held_by"] == "administrator"
        assert made.ask("POST", "/switch/on")[0] == 503


def test_a_worker_asks_the_users_own_switch(tmp_path: Path) -> None:
    """Whatever starts a worker by hand: it looks where the system says that the user lives."""
    program = (
        "import stillroom.switch as s, stillroom.runtime.worker as w, sys\n"
        "from pathlib import Path\n"
        "places = s.Places.under(Path(sys.argv[1]))\n"
        "s.Places.of_user = classmethod(lambda cls: places)\n"
        "s.Switch(places).write(False)\n"
        "w._require_on()\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "SwitchedOff" in done.stderr


def test_features_are_blocked_one_by_one(server: Running) -> None:
    tool = {"type": "function", "function": {"name": "clock"}}
    token = {"X-Stillroom-Page": server.service.page_token}
    try:
        assert server.ask("POST", "/switch/feature", {"feature": "tools", "state": "blocked"})[0] == 200
        assert server.chat("Go", tools=[tool])[0] == 503
        assert server.chat("Go")[0] == 200
        server.ask("POST", "/switch/feature", {"feature": "api", "state": "blocked"})
        assert server.ask("GET", "/v1/models")[0] == 503
        assert server.ask("GET", "/v1/models", headers=token)[0] == 200, "the page is another feature"
        server.ask("POST", "/switch/feature", {"feature": "chat", "state": "blocked"})
        assert server.ask("GET", "/v1/models", headers=token)[0] == 503
        assert server.ask("POST", "/switch/feature", {"feature": "no such", "state": "blocked"})[0] == 400
    finally:
        for name in ("tools", "api", "chat"):
            server.switch.set_feature(name, "available")


def test_who_fetches_the_page_does_not_pass_a_blocked_api(server: Running) -> None:
    """Nor does the token of a page that a browser opened serve for what the page does not use."""
    token = server.service.page_token
    _, page, _ = server.ask("GET", "/")
    assert token not in page
    browser = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    _, page, _ = server.ask("GET", "/", headers=browser)
    assert token in page
    chat = {"messages": [{"role": "user", "content": "Go"}], "max_tokens": 2}
    others: dict[str, Any] = {
        "/v1/completions": {"prompt": "Go", "max_tokens": 2},
        "/v1/responses": {"input": "Go", "max_output_tokens": 2},
        "/v1/embeddings": {"input": "Go"},
        "/api/chat": {**chat, "model": "tiny"},
        "/api/generate": {"model": "tiny", "prompt": "Go"},
    }
    server.switch.set_feature("api", "blocked")
    try:
        assert server.ask("POST", "/v1/chat/completions", chat)[0] == 503
        assert server.ask("POST", "/v1/chat/completions", chat, {"X-Stillroom-Page": ""})[0] == 503
        assert server.ask("POST", "/v1/chat/completions", chat, {"X-Stillroom-Page": token})[0] == 200
        for path, body in others.items():
            assert server.ask("POST", path, body, {"X-Stillroom-Page": token})[0] == 503, path
        assert server.ask("GET", "/api/tags", headers={"X-Stillroom-Page": token})[0] == 503
        server.switch.set_feature("api", "available")
        server.switch.set_feature("chat", "blocked")
        assert server.ask("POST", "/v1/chat/completions", chat)[0] == 200
        for given in (token, "0" * 32):
            assert server.ask("POST", "/v1/chat/completions", chat, {"X-Stillroom-Page": given})[0] == 503
    finally:
        for name in ("api", "chat"):
            server.switch.set_feature(name, "available")


class SlowReader:
    """A client with a small buffer that asks for an answer and does not read it."""

    def __init__(self, port: int, path: str, body: dict[str, Any]) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect(("127.0.0.1", port))
        data = json.dumps(body).encode()
        self.socket.sendall(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )

    def waiting(self) -> int:
        """Bytes that this machine has received and nobody has read."""
        return int(struct.unpack("i", fcntl.ioctl(self.socket, termios.FIONREAD, b"\0" * 4))[0])

    def answered(self) -> bool:
        """Whether the beginning of an answer is here; not so for one that has to wait, or that was cut off before it began."""
        try:
            return self.socket.recv(12, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"HTTP/1.1 200"
        except (BlockingIOError, ConnectionResetError):
            return False

    def rest(self) -> tuple[int, bool]:
        """How many bytes can still be read, and whether the connection was reset."""
        self.socket.settimeout(3)
        found = 0
        while True:
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                return found, True
            except TimeoutError:
                # An answer that had left whole: its connection waits for another request.
                return found, False
            if not data:
                return found, False
            found += len(data)


def wait_until_stuck(hush: Any, clients: list[SlowReader]) -> None:
    """Wait until answers are under way, and of none every byte so far has reached its client's machine.

    A head alone is on its way for a moment, too: what has begun to arrive has to have filled its client's buffer.
    """
    until = time.monotonic() + 120
    while time.monotonic() < until:
        answers, arrived = [*hush._answers], [client.waiting() for client in clients if client.answered()]
        if answers and not any(answer.left() for answer in answers) and arrived and min(arrived) > 1000:
            return
        time.sleep(0.01)
    pytest.fail(f"{[(client.answered(), client.waiting()) for client in clients]}")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts bytes as Linux does")
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_does_not_read_gets_nothing_after_the_receipt(
    tiny_gguf: Path, tmp_path: Path, stream: bool
) -> None:
    with running([tiny_gguf], tmp_path, parallel=4, context=2048) as made:
        # Long whatever the model writes: an answer that ends soon is received whole, and none may be left that is not.
        # With log-probabilities an answer comes as a whole, stream or not.
        body = {**LONG, "json_schema": LETTERS, "stream": stream, **({} if stream else {"logprobs": 5})}
        clients = [SlowReader(made.port, "/v1/completions", body) for _ in range(4)]
        hush = made.service.delivery.hush
        wait_until_stuck(hush, clients)
        receipt = stopping.off(Switch(made.switch.places))
        had = [client.waiting() for client in clients]
        assert receipt.silenced == [os.getpid()]
        assert hush.cuts >= 1
        time.sleep(0.3)
        begun = [client.answered() for client in clients]
        found = [client.rest() for client in clients]
        assert any(begun), "the others were refused, which may come later"
        for answered, before, (number, _) in zip(begun, had, found, strict=True):
            assert not answered or number == before, "what this machine had received, and not a byte more"
        assert any(reset for _, reset in found)
        assert made.ask("GET", "/health")[0] == 503, "the server itself lives"
        assert made.ask("POST", "/switch/on")[0] == 200
        assert made.chat("Go")[0] == 200


LETTERS = {"type": "string", "minLength": 1200, "maxLength": 1200}
FORMS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"json_schema": LETTERS},
    "/v1/chat/completions": {"json_schema": LETTERS},
    "/v1/responses": {"text": {"format": {"type": "json_schema", "name": "x", "schema": LETTERS}}},
    "/api/chat": {"format": LETTERS},
    "/api/generate": {"format": LETTERS},
}
SLOW: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Go"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Go"}]},
    "/v1/responses": {"input": "Go"},
    "/api/chat": {"messages": [{"role": "user", "content": "Go"}]},
    "/api/generate": {"prompt": "Go"},
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts bytes as Linux does")
def test_nothing_comes_after_the_receipt_whatever_api_it_was(tiny_gguf: Path, tmp_path: Path) -> None:
    with running([tiny_gguf], tmp_path, parallel=5, context=2048) as made:
        name = next(iter(made.service.pool.models))
        limits = {"max_tokens": 1500, "max_output_tokens": 1500, "options": {"num_predict": 1500}}
        # The tiny model would end soon of itself: a text of a certain length is asked for.
        clients = {path: SlowReader(made.port, path, {"model": name, "stream": True, **limits, **FORMS[path], **body})
                   for path, body in SLOW.items()}  # fmt: skip
        until = time.monotonic() + 60
        while time.monotonic() < until and not all(client.answered() for client in clients.values()):
            time.sleep(0.01)
        assert {path for path, client in clients.items() if not client.answered()} == set()
        stopping.off(Switch(made.switch.places))
        had = {path: client.waiting() for path, client in clients.items()}
        time.sleep(0.3)
        found = {path: client.rest()[0] for path, client in clients.items()}
        assert found == had, "what this machine had received, and not a byte more"
        assert engines(made) == []


def test_an_engine_that_nobody_waits_for_fails_without_a_word(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asked has left, the switch is turned off, and the engine that was being loaded fails."""
    said: list[dict[str, Any]] = []

    def fails(*_: Any) -> None:
        time.sleep(0.05)
        raise SwitchedOff("The switch is off.")

    async def leave() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        opened = OpenedModel(tiny_gguf, "tiny", tiny_gguf)
        model = ServedModel(opened, EngineOptions(context=256), Switch(Places.under(tmp_path)), 4)
        asked = asyncio.ensure_future(model.running())
        await asyncio.sleep(0.01)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        assert model._starting is not None
        await asyncio.wait([model._starting])
        model._starting = None
        gc.collect()

    monkeypatch.setattr(pool, "Engine", fails)
    asyncio.run(leave())
    assert said == []


def test_the_watch_does_not_die_and_is_not_held_up(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    with running([tiny_gguf], tmp_path) as made:
        made.chat("Go")

        async def stuck() -> None:
            # A recheck that a slow mirror holds, and every thread of the common pool busy.
            await asyncio.gather(*(asyncio.to_thread(release.wait, 30) for _ in range(64)))

        monkeypatch.setattr(made.service.pool, "tend", stuck)
        time.sleep(1.2)
        try:
            for damage in (b"[" * 60_000, b'{"format": 1, "switch": "on", "changed": 1e300}'):
                assert len(engines(made)) == 1
                made.switch.places.switches[0].parent.mkdir(parents=True, exist_ok=True)
                made.switch.places.switches[0].write_bytes(damage)
                until = time.monotonic() + 10
                while engines(made) and time.monotonic() < until:
                    time.sleep(0.02)
                assert engines(made) == []
                assert made.ask("GET", "/switch")[1]["held_by"] == "damage"
                assert made.ask("POST", "/switch/off")[0] == 200
                assert made.ask("POST", "/switch/on")[0] == 200
                release.set()
                assert made.chat("Go")[0] == 200
        finally:
            release.set()


def test_a_look_that_raises_counts_as_off(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running([tiny_gguf], tmp_path, context=2048) as made:
        hush = made.service.delivery.hush
        # Long whatever the model writes; one that was received whole, or so far, is told, and not cut off.
        body = {**LONG, "json_schema": LETTERS, "stream": True}
        client = SlowReader(made.port, "/v1/completions", body)
        wait_until_stuck(hush, [client])

        def raises() -> bool:
            raise OverflowError

        with monkeypatch.context() as patched:
            patched.setattr(hush, "_switch", type("Broken", (), {"is_on": staticmethod(raises)})())
            assert client.rest()[1], "cut off"
        assert made.chat("Go")[0] == 200
