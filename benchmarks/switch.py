"""The switch, over many trials in every state: how soon engines have stopped, and what came after the receipt.

States: see :data:`STATES`. Clients use every API in turn (:data:`PATHS`), and count what their machine had received when the
receipt came: what can be read beyond that came after it. `off` is given by the library and by the page's request in turn. After
each trial an engine is tried to be started, which must be refused, and the switch is turned on again. The damaged state has
more rounds than the others, so that every damage is tried: with `--quick` once, otherwise in the first copy alone and in both.

A control thread sleeps a millisecond at a time. Where it lagged by more than 50 ms during `off`, the machine was busy with
something else: such trials count for everything but the times, and theirs are apart (``details.lagged``).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import http.client
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from attacks.switch import _damage
from benchmarks import report
from benchmarks.serve import default_model
from benchmarks.serving import Serving, serving
from stillroom.core import files
from stillroom.core.errors import StillroomError, SwitchedOff
from stillroom.switch import stopping
from stillroom.switch.engines import listed
from stillroom.switch.places import Places
from stillroom.switch.state import Switch

STATES = (
    "loading", "prefill", "decoding", "idle", "four streams", "hung",
    "slow reader", "silent connections", "schema bombs", "damaged state", "other namespace", "recheck stuck",
)  # fmt: skip
LONG = "A list is a collection of values that keeps their order. " * 360
LAG_SECONDS = 0.05
"""A control thread that sleeps a millisecond and comes back later than this says that the machine was busy with others."""
WATCH_SECONDS = 1.0
"""Within this a server stops its engines by itself, where nobody gives `off`: `docs/switch.md`."""
SILENT = 200
BOMBS = 8
FORM = {"type": "object", "properties": {"text": {"type": "string", "minLength": 9000}}, "required": ["text"]}
"""Answers under this schema do not end while a trial lasts."""
TALK = [{"role": "user", "content": "Write a long text."}]
PATHS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Text:", "max_tokens": 1500, "temperature": 1.0, "guided_json": FORM},
    "/v1/chat/completions": {
        "messages": TALK, "max_tokens": 1500,
        "response_format": {"type": "json_schema", "json_schema": {"name": "text", "schema": FORM}},
    },
    "/v1/responses": {
        "input": TALK, "max_output_tokens": 1500,
        "text": {"format": {"type": "json_schema", "name": "text", "schema": FORM}},
    },
    "/api/chat": {"messages": TALK, "format": FORM, "options": {"num_predict": 1500}},
    "/api/generate": {"prompt": "Write a long text.", "format": FORM, "options": {"num_predict": 1500}},
}  # fmt: skip
"""Every API that answers, and a request of it whose answer is long."""
TEXT = re.compile(rb'"(?:text|content|delta|response)": ?"[^"]')
"""The beginning of a text in an event: what a token looks like, in each API."""


class Listener(threading.Thread):
    """A client that counts what it has received, with what its machine has received and it has not read yet.

    Args:
        server: The server.
        path: The API; see :data:`PATHS`.
        change: What is different in the request.
        slow: It has a small buffer, and reads the first bytes alone until it is told to go on.
    """

    def __init__(self, server: Serving, path: str = "/v1/completions", slow: bool = False, **change: Any) -> None:
        super().__init__(daemon=True)
        self.path, self.slow = path, slow
        self.data = bytearray()
        self.end = ""
        self.begun, self.go_on = threading.Event(), threading.Event()
        if not slow:
            self.go_on.set()
        self._lock = threading.Lock()
        self._socket = socket.socket()
        if slow:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.settimeout(60)
        self._socket.connect(("127.0.0.1", server.port))
        body = json.dumps({**PATHS[path], "model": server.model(), "stream": True, **change}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        self._socket.sendall(head.encode() + body)

    def run(self) -> None:
        """Listen until the connection ends."""
        try:
            while self._read():
                if TEXT.search(self.data):
                    self.begun.set()
                    self.go_on.wait(30)
            self.end = "end"
        except TimeoutError:
            self.end = "silence"
        except OSError:
            self.end = "reset"
        self.begun.set()
        self._socket.close()

    def _read(self) -> bool:
        if not select.select([self._socket], [], [], 60)[0]:
            raise TimeoutError
        with self._lock:
            data = self._socket.recv(1 << 16)
            self.data += data
        return bool(data)

    def received(self) -> int:
        """Bytes that this machine has received so far, read or not."""
        with self._lock:
            if self._socket.fileno() < 0:
                return len(self.data)
            waiting = struct.unpack("i", fcntl.ioctl(self._socket, termios.FIONREAD, b"\0" * 4))[0]
            return len(self.data) + int(waiting)

    @property
    def told(self) -> bool:
        """Whether it was told that the answer is not whole: by an error, or by a reset."""
        return self.end == "reset" or b"switched_off" in self.data or b"switch is off" in self.data

    @property
    def refused(self) -> bool:
        """Whether it got an answer that says that its request was not taken, and not because of the switch."""
        return self.data[9:10] == b"4" or bytes(self.data[9:12]) in (b"500", b"502")


class Control(threading.Thread):
    """Sleeps a millisecond at a time, and notes the longest lag."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.lag = 0.0
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        """Until it is ended."""
        before = time.perf_counter()
        while not self._ended.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            self.lag, before = max(self.lag, now - before - 0.001), now

    def stop(self) -> float:
        """End it; its longest lag."""
        self._ended.set()
        self.join()
        return self.lag


class Elsewhere:
    """A process in a PID namespace of its own that shares the switch's folders, as a container does."""

    def __init__(self, folder: Path) -> None:
        words = ["unshare", "--pid", "--mount-proc", "--fork", "--kill-child"]
        words += [] if os.getuid() == 0 else ["--user", "--map-current-user"]
        self.process = subprocess.Popen(
            [*words, sys.executable, "-m", "benchmarks.switch", "--elsewhere", str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, word: str) -> dict[str, Any]:
        """`status` or `off`, given there."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


def serve_elsewhere(folder: Path) -> None:
    """What :class:`Elsewhere` runs: one word a line, one answer a line."""
    switch = Switch(Places.under(folder))
    for line in sys.stdin:
        found = stopping.off(switch).as_dict() if line.strip() == "off" else stopping.status(switch)
        print(json.dumps(found), flush=True)


class Trials:
    """All trials against one server.

    Args:
        server: The server.
        file: Its model, which must not start while it is off.
        stuck: While this file is there, the server's check of its models does not return.
        elsewhere: A process of another PID namespace; None where the system gives none.
    """

    def __init__(self, server: Serving, file: Path, stuck: Path, elsewhere: Elsewhere | None) -> None:
        self.server, self.file, self.stuck, self.elsewhere = server, file, stuck, elsewhere
        self.switch = Switch(server.places)
        self.open: list[socket.socket] = []

    def engines(self) -> list[int]:
        """Engines that run under the server's switch."""
        return [entry.pid for _, entry in listed(self.server.places) if entry.kind == "engine"]

    def listen(self, count: int, number: int, **change: Any) -> list[Listener]:
        """Clients of one API after the other, when each has got its first token."""
        names = list(PATHS)
        found = [Listener(self.server, names[(number + each) % len(names)], **change) for each in range(count)]
        for each in found:
            each.start()
        for each in found:
            each.begun.wait(30)
        return found

    def bring(self, state: str, number: int) -> list[Listener]:
        """Bring the server into a state."""
        if state == "loading":
            found = [Listener(self.server, [*PATHS][number % len(PATHS)])]
            found[0].start()
            until = time.monotonic() + 10
            while not self.engines() and time.monotonic() < until:
                time.sleep(0.001)
            time.sleep((number % 20) * 0.015)
            return found
        self.server.ask("POST", "/v1/completions", {"prompt": "Warm.", "max_tokens": 1})
        if state == "idle":
            return []
        if state == "prefill":
            found = [Listener(self.server, prompt=f"{time.perf_counter_ns()} {LONG}")]
            found[0].start()
            time.sleep(0.3 + (number % 10) * 0.1)
            return found
        if state == "slow reader":
            return self.slow_readers(number)
        if state == "silent connections":
            for _ in range(SILENT):
                self.open.append(socket.create_connection(("127.0.0.1", self.server.port), timeout=10))
                self.open[-1].sendall(b"G")
        found = self.listen(4 if state == "four streams" else 1, number)
        time.sleep((number % 10) * 0.01)
        if state == "hung":
            for pid in self.engines():
                os.kill(pid, signal.SIGSTOP)
        elif state == "schema bombs":
            self.throw_bombs(stay=number % 2 == 0)
        return found

    def slow_readers(self, number: int) -> list[Listener]:
        """Clients that do not read: two of streams, and two whose answers come whole, and have come."""
        found = self.listen(2, number, slow=True)
        whole = [
            Listener(self.server, path, slow=True, stream=False, **options)
            for path, options in (
                ("/v1/completions", {"max_tokens": 40, "logprobs": 5}),
                ("/v1/chat/completions", {"max_tokens": 40, "logprobs": True, "top_logprobs": 20}),
            )
        ]
        for each in whole:
            each.start()
        for each in whole:
            each.begun.wait(30)
        time.sleep(0.2 + (number % 10) * 0.02)
        return found + whole

    def throw_bombs(self, stay: bool) -> None:
        """Schemas that take long to compile, all at once; the clients leave at once, or stay and wait."""
        schema = {"oneOf": [{"const": f"word {each}", "description": str(each)} for each in range(3000)]}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        body = json.dumps({"messages": TALK, "max_tokens": 4, "response_format": form}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        for _ in range(BOMBS):
            made = socket.create_connection(("127.0.0.1", self.server.port), timeout=10)
            made.sendall(head + body)
            self.open.append(made)
        if not stay:
            self.close_open()

    def close_open(self) -> None:
        """Close what was opened for a state."""
        for each in self.open:
            each.close()
        self.open.clear()

    def off(self, state: str, number: int) -> dict[str, Any]:
        """The receipt, by one way or another."""
        if state == "other namespace" and number % 2:
            assert self.elsewhere is not None
            return self.elsewhere.ask("off")
        # By another digit than those that decide of the state's variants.
        if number // 2 % 2 == 0:
            return stopping.off(self.switch).as_dict()
        status, answer = self.server.ask("POST", "/switch/off")
        if status != 200:
            raise OSError(f"/switch/off answered {status}: {answer}")
        return answer

    def trial(self, state: str, number: int) -> dict[str, Any]:
        """One trial: what was stopped, when, what came after, and what went wrong."""
        wrong: list[str] = []
        extra: dict[str, Any] = {}
        if state == "recheck stuck":
            extra["watch"] = self.watch_while_stuck(wrong)
        if state == "damaged state":
            self.switch.set_feature("embeddings", "blocked")
        listeners = self.bring(state, number)
        running = self.engines()
        before = self.descendants()
        if state == "other namespace":
            assert self.elsewhere is not None
            if self.elsewhere.ask("status")["engines"]:
                wrong.append("an engine of another list of processes was taken for one of its own")
            if sorted(self.engines()) != sorted(running):
                wrong.append("a look from another list of processes changed the list")
        if state == "damaged state":
            name, copies = damage_of(number)
            for path in self.server.places.switches[:copies]:
                _damage.put(path, name)
        control = Control()
        begun = time.perf_counter()
        receipt = self.off(state, number)
        at = time.perf_counter()
        received = [listener.received() for listener in listeners]
        far = state == "other namespace" and bool(number % 2)
        if far:
            # Its own server sees the switch and stops them, as no process of another list can.
            until = at + WATCH_SECONDS
            while (self.engines() or any(map(_lives, before))) and time.perf_counter() < until:
                time.sleep(0.005)
            at = time.perf_counter()
            if not receipt["elsewhere"]:
                wrong.append("the receipt does not name what runs elsewhere")
        lag = control.stop()
        survivors = {*self.engines(), *(pid for pid in (*running, *before) if _lives(pid))}
        # Those of a damaged state may have been stopped by the server, which saw it first.
        if running and not receipt["stopped"] and state not in ("loading", "damaged state") and not far:
            wrong.append("an engine is missing from the receipt")
        if not far and self.server.process.pid not in receipt["silenced"]:
            wrong.append("the server is missing from the receipt")
        with contextlib.suppress(SwitchedOff):
            self.start_engine()
            wrong.append("an engine could be started")
        status, answer = self.server.ask("POST", "/v1/completions", {"prompt": "x", "max_tokens": 1})
        if status != 503 or answer["error"]["code"] != "switched_off":
            wrong.append(f"the server answered {status}")
        self.close_open()
        late_bytes = late_tokens = 0
        for listener, had in zip(listeners, received, strict=True):
            listener.go_on.set()
            listener.join(10)
            if listener.is_alive() or listener.end == "silence":
                wrong.append("a client waits in silence")
                continue
            # What says that it is off is no answer: it may come to those who had got nothing.
            late = b"" if b"HTTP/1.1 503" in listener.data[:12] else bytes(listener.data[had:])
            late_bytes += len(late)
            late_tokens += len(TEXT.findall(late))
            if listener.refused:
                wrong.append(f"{listener.path} refused a request")
            elif not listener.told and not (listener.slow and listener.end == "end" and not late):
                wrong.append(f"an answer of {listener.path} ended as if it were whole")
                extra["ended"] = bytes(listener.data[-300:]).decode("utf-8", "replace")
        stopping.on(self.switch)
        if state == "damaged state":
            if self.switch.is_on("embeddings"):
                wrong.append("a blocked feature was forgotten")
            self.switch.set_feature("embeddings", "available")
        killed = sum(bool(each["killed"]) for each in receipt["stopped"])
        return {"state": state, "seconds": at - begun, "lag": lag, "bytes": late_bytes, "tokens": late_tokens, "wrong": wrong,
                "survivors": len(survivors), "stopped": len(receipt["stopped"]), "killed": killed, **extra}  # fmt: skip

    def watch_while_stuck(self, wrong: list[str]) -> float | None:
        """With a check that does not return: how soon after a policy that appears the engines have ended."""
        self.stuck.touch()
        seen, until = self.stuck.with_suffix(".seen"), time.monotonic() + 10
        while not seen.exists() and time.monotonic() < until:
            time.sleep(0.01)
        if not seen.exists():
            wrong.append("the check is not stuck")
            return None
        listeners = self.listen(1, 0)
        begun = time.perf_counter()
        files.write_json(self.server.places.policy, {"format": 1, "switch": "off"})
        try:
            while self.engines() and time.perf_counter() - begun < 10:
                time.sleep(0.005)
            seconds = time.perf_counter() - begun
            if seconds > WATCH_SECONDS:
                wrong.append(f"a policy was seen after {seconds:.1f} s")
            for listener in listeners:
                listener.join(10)
            return seconds
        finally:
            self.server.places.policy.unlink()

    def descendants(self) -> list[int]:
        """Every process below the server."""
        return [child.pid for child in psutil.Process(self.server.process.pid).children(recursive=True)]

    def start_engine(self) -> None:
        """Try to start an engine past the server.

        Raises:
            SwitchedOff: As it has to be.
        """
        from stillroom.runtime.engine import Engine, EngineOptions

        Engine(self.file, EngineOptions(context=256), self.switch).stop()

    def clean(self) -> None:
        """After a trial, whatever it did."""
        self.close_open()
        self.stuck.unlink(missing_ok=True)
        self.stuck.with_suffix(".seen").unlink(missing_ok=True)
        self.server.places.policy.unlink(missing_ok=True)
        with contextlib.suppress(StillroomError):
            if not self.switch.is_on():
                stopping.on(self.switch)


def _lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


@contextlib.contextmanager
def elsewhere(folder: Path) -> Iterator[Elsewhere | None]:
    """A process of another PID namespace, for as long as the block lasts; None where the system gives none."""
    try:
        made = Elsewhere(folder)
    except OSError as error:
        print(f"no other PID namespace here: {error}", file=sys.stderr)
        yield None
        return
    try:
        made.ask("status")
    except (OSError, ValueError):
        print("no other PID namespace here: the state `other namespace` is left out", file=sys.stderr)
        made.close()
        yield None
        return
    try:
        yield made
    finally:
        made.close()


def damage_of(number: int) -> tuple[str, int]:
    """Which damage a round of the damaged state tries, and in how many copies of the state: other ones when it comes again."""
    times, which = divmod(number, len(_damage.NAMES))
    return _damage.NAMES[which], 1 + (which + times) % 2


def planned(states: list[str], count: int, damages: int) -> list[tuple[str, int]]:
    """States and the numbers of their rounds: so many trials in turn, then what the damaged state lacks of so many rounds."""
    found = [(states[number % len(states)], number // len(states)) for number in range(count)]
    done = sum(state == "damaged state" for state, _ in found)
    return found + [("damaged state", number) for number in range(done, damages) if "damaged state" in states]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="60 trials, and every damage once.")
    parser.add_argument("--trials", type=int, help="So many, and none besides for the other damages.")
    parser.add_argument("--states", nargs="*", choices=STATES, help="Only these.")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--elsewhere", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.elsewhere is not None:
        serve_elsewhere(given.elsewhere)
        return
    from stillroom.serving.models import open_model

    sys.setswitchinterval(0.0005)
    model = given.model or default_model()
    count = given.trials or (60 if given.quick else 400)
    damages = 0 if given.trials else len(_damage.NAMES) * (1 if given.quick else 2)
    found: list[dict[str, Any]] = []
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stuck = folder / "stuck"
        with serving(model, folder, 4, 4608, stuck=stuck) as server, elsewhere(folder) as other:
            states = [state for state in given.states or STATES if other is not None or state != "other namespace"]
            if not states:
                raise SystemExit("There is no other PID namespace here, and no other state was asked for.")
            trials = Trials(server, open_model(model).gguf, stuck, other)
            for state, number in planned(states, count, damages):
                # Every state in every variant: the number of the round decides of most of them.
                try:
                    found.append(trials.trial(state, number))
                except (StillroomError, OSError, ValueError, http.client.HTTPException) as error:
                    found.append({"state": state, "seconds": None, "lag": 0.0, "bytes": 0, "tokens": 0, "wrong": [repr(error)],
                                  "survivors": 0, "stopped": 0, "killed": 0})  # fmt: skip
                finally:
                    trials.clean()
    quiet, lagged = _times(found)
    figures = {
        "trials": len(found),
        "stop_p99_seconds": percentile(quiet, 99),
        "stop_max_seconds": quiet[-1] if quiet else None,
        "tokens_after_receipt": sum(each["tokens"] for each in found),
        "bytes_after_receipt": sum(each["bytes"] for each in found),
        "survivors": sum(each["survivors"] for each in found),
        "failures": sum(bool(each["wrong"]) for each in found),
    }
    watched = sorted(each["watch"] for each in found if each.get("watch") is not None)
    details = {
        "by_state": {state: _summary([each for each in found if each["state"] == state]) for state in states},
        "left_out": [state for state in STATES if state not in states],
        "lagged": {"trials": len(lagged), "median_seconds": percentile(lagged, 50), "max_seconds": percentile(lagged, 100)},
        "policy_while_stuck": {"trials": len(watched), "max_seconds": percentile(watched, 100)},
        "wrong": dict(Counter(word for each in found for word in each["wrong"])),
        "ended": [each["ended"] for each in found if "ended" in each][:20],
        "load_average": {"before": load, "after": os.getloadavg()},
    }  # fmt: skip
    report.write(figures, details, given.json)


def percentile(values: list[float], share: int) -> float | None:
    """The value that so many of a hundred do not exceed, of sorted ones; None of none."""
    return values[max(0, -(-len(values) * share // 100) - 1)] if values else None


def _times(found: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Sorted seconds of trials without and with a lag; a trial that failed has none."""
    took = [each for each in found if each["seconds"] is not None]
    quiet, lagged = (
        sorted(each["seconds"] for each in took if (each["lag"] > LAG_SECONDS) is late) for late in (False, True)
    )
    return quiet, lagged


def _summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    quiet, lagged = _times(found)
    return {
        "trials": len(found),
        "lagged": len(lagged),
        "median_seconds": percentile(quiet, 50),
        "max_seconds": percentile(quiet, 100),
        **{name: sum(each[name] for each in found) for name in ("stopped", "killed", "bytes", "tokens", "survivors")},
        "failures": sum(bool(each["wrong"]) for each in found),
    }


if __name__ == "__main__":
    main()
