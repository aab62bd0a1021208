"""The switch, over many trials in every state: how soon engines have stopped, and whether a token came after the receipt.

States: loading, prefill of 4,000 tokens, decoding, idle, four parallel streams, and a worker hung by SIGSTOP. After each
trial an engine is tried to be started, which must be refused, and the switch is turned on again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.serve import default_model
from benchmarks.serving import Serving, serving
from stillroom.core.errors import StillroomError, SwitchedOff
from stillroom.switch import stopping
from stillroom.switch.engines import listed
from stillroom.switch.state import Switch

STATES = ("loading", "prefill", "decoding", "idle", "four streams", "hung")
LONG = "A list is a collection of values that keeps their order. " * 360


class Listener(threading.Thread):
    """A client that notes when its last token came."""

    def __init__(self, server: Serving, prompt: str) -> None:
        super().__init__(daemon=True)
        self.server, self.prompt = server, prompt
        self.tokens, self.last, self.error = 0, 0.0, ""
        self.begun = threading.Event()

    def run(self) -> None:
        """Listen until the stream ends."""
        body = {"prompt": self.prompt, "max_tokens": 1500, "temperature": 1.0}
        try:
            for at, event in self.server.stream("/v1/completions", body):
                if any(choice.get("text") for choice in event.get("choices", ())):
                    self.tokens, self.last = self.tokens + 1, at
                    self.begun.set()
                if "error" in event:
                    self.error = event["error"]["code"]
        except (OSError, RuntimeError) as error:
            self.error = str(error)
        self.begun.set()


def engine_pids(server: Serving) -> list[int]:
    """Engines that run under the server's switch."""
    return [entry.pid for _, entry in listed(server.places) if entry.kind == "engine"]


def bring(server: Serving, state: str, number: int) -> list[Listener]:
    """Bring the server into a state."""
    if state == "loading":
        listeners = [Listener(server, "Load.")]
        listeners[0].start()
        until = time.monotonic() + 10
        while not engine_pids(server) and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep((number % 20) * 0.015)
        return listeners
    server.ask("POST", "/v1/completions", {"prompt": "Warm.", "max_tokens": 1})
    if state == "idle":
        return []
    if state == "prefill":
        listeners = [Listener(server, f"{time.perf_counter_ns()} {LONG}")]
        listeners[0].start()
        time.sleep(0.3 + (number % 10) * 0.1)
        return listeners
    count = 4 if state == "four streams" else 1
    listeners = [Listener(server, f"Text {number} {index}:") for index in range(count)]
    for listener in listeners:
        listener.start()
    for listener in listeners:
        listener.begun.wait(30)
    time.sleep((number % 10) * 0.01)
    if state == "hung":
        for pid in engine_pids(server):
            os.kill(pid, signal.SIGSTOP)
    return listeners


def trial(server: Serving, model: Path, state: str, number: int) -> dict[str, Any]:
    """One trial: what was stopped, when, and what went wrong."""
    from stillroom.runtime.engine import Engine, EngineOptions

    switch = Switch(server.places)
    listeners = bring(server, state, number)
    running = engine_pids(server)
    begun = time.perf_counter()
    receipt = stopping.off(switch)
    at = time.perf_counter()
    wrong: list[str] = []
    alive = engine_pids(server)
    if alive or any(_lives(pid) for pid in running):
        wrong.append("an engine lives after the receipt")
    if running and not receipt.stopped and state != "loading":
        wrong.append("an engine is missing from the receipt")
    with contextlib.suppress(SwitchedOff):
        Engine(model, EngineOptions(context=256), switch).stop()
        wrong.append("an engine could be started")
    status, answer = server.ask("POST", "/v1/completions", {"prompt": "x", "max_tokens": 1})
    if status != 503 or answer["error"]["code"] != "switched_off":
        wrong.append(f"the server answered {status}")
    for listener in listeners:
        listener.join(10)
        if listener.is_alive():
            wrong.append("a client waits in silence")
        elif not listener.error:
            wrong.append("a stream ended without an error")
    late = sum(listener.last > at for listener in listeners)
    stopping.on(switch)
    return {"state": state, "seconds": at - begun, "late": late, "wrong": wrong, "stopped": len(receipt.stopped),
            "killed": sum(each.killed for each in receipt.stopped)}  # fmt: skip


def _lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="36 trials.")
    parser.add_argument("--trials", type=int)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    from stillroom.serving.models import open_model

    model = given.model or default_model()
    count = given.trials or (36 if given.quick else 200)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, serving(model, Path(folder), 4, 4608) as server:
        file = open_model(model).gguf
        for number in range(count):
            state = STATES[number % len(STATES)]
            try:
                found.append(trial(server, file, state, number))
            except (StillroomError, OSError, ValueError) as error:
                found.append(
                    {"state": state, "seconds": 0.0, "late": 0, "wrong": [repr(error)], "stopped": 0, "killed": 0}
                )
                with contextlib.suppress(StillroomError):
                    stopping.on(Switch(server.places))
    seconds = sorted(each["seconds"] for each in found)
    figures = {
        "trials": len(found),
        "stop_p99_seconds": seconds[max(0, -(-len(seconds) * 99 // 100) - 1)],
        "stop_max_seconds": seconds[-1],
        "tokens_after_receipt": sum(each["late"] for each in found),
        "failures": sum(bool(each["wrong"]) for each in found),
    }
    details = {
        "by_state": {
            state: {
                "trials": len(times := sorted(each["seconds"] for each in found if each["state"] == state)),
                "median_seconds": times[len(times) // 2] if times else None,
                "max_seconds": times[-1] if times else None,
                "stopped": sum(each["stopped"] for each in found if each["state"] == state),
                "killed": sum(each["killed"] for each in found if each["state"] == state),
            }
            for state in STATES
        },
        "wrong": dict(Counter(word for each in found for word in each["wrong"])),
    }
    report.write(figures, details, given.json)


if __name__ == "__main__":
    main()
