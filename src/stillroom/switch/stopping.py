"""Turning off and on: the state first, then every running engine, then the receipt."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stillroom.core.errors import EngineFailed, NotWritable, SwitchedOff
from stillroom.core.waiting import readable
from stillroom.switch.engines import STOPPED, Entry, elsewhere, is_running, listed, registered, shares_kernel
from stillroom.switch.state import FEATURES, Switch

GRACE_SECONDS = 0.025
"""How long a process may take to end by itself before it is killed."""
DEADLINE_SECONDS = 5.0
SILENCE_SECONDS = 0.25
"""How long a server may take to hand nothing over any more (:mod:`stillroom.serving.hush`) before it is killed."""


@dataclass(frozen=True)
class Stopped:
    """One engine that was stopped.

    Attributes:
        pid: Its number.
        model: What it ran.
        seconds: How long it took, from the order to its end.
        killed: Whether it had to be killed.
    """

    pid: int
    model: str
    seconds: float
    killed: bool


@dataclass(frozen=True)
class Receipt:
    """What ``off`` did.

    Attributes:
        asked: Seconds since 1970 when it was asked.
        seconds: From the question to this receipt.
        stopped: The engines that ran.
        silenced: The servers that were waited for: none of them delivers a token after this receipt.
        elsewhere: Engines and servers of other machines, users or containers that share this switch: they see that it is off
            and stop by themselves; this process cannot look for them.
    """

    asked: float
    seconds: float
    stopped: list[Stopped] = field(default_factory=list)
    silenced: list[int] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def off(switch: Switch) -> Receipt:
    """Turn everything off; returns when every running engine of the user has stopped.

    Raises:
        NotWritable: The engines have stopped, but the state could not be kept.
        EngineFailed: An engine could not be stopped.
    """
    asked, begun = time.time(), time.perf_counter()
    unkept: NotWritable | None = None
    ran: list[Entry] = []
    with contextlib.suppress(Exception):  # nothing in the list holds `off` up
        ran = [entry for entry in registered(switch.places) if entry.kind == "engine"]
    try:
        switch.hold_off(settle=False)
    except NotWritable as error:
        unkept = error
    except Exception as error:  # whatever is wrong with the state, what runs is stopped
        unkept = NotWritable(f"The switch's state could not be kept: {error}", "Give the command again.")
    # A disk takes tens of milliseconds, and engines see the files before: both at the same time.
    settling = threading.Thread(target=switch.settle, daemon=True)
    settling.start()
    stopped: list[Stopped] = []
    silenced: set[int] = set()
    # An engine that was starting is in the list a moment later: look until no one is left.
    while True:
        found = listed(switch.places)
        engines = [entry for _, entry in found if entry.kind in STOPPED]
        servers = [(path, entry) for path, entry in found if entry.kind == "server" and path is not None]
        stopped += _stop(engines, begun)
        for path, entry in servers:
            if entry.pid not in silenced and _silence(path, entry):
                silenced.add(entry.pid)
        if not engines:
            break
        if time.perf_counter() - begun > DEADLINE_SECONDS:
            numbers = ", ".join(str(entry.pid) for entry in engines)
            raise EngineFailed(
                f"The switch is off, but the processes {numbers} did not end.", "End them, or restart the machine."
            )
    # A server sees the state as soon as it is written, and may have ended its engine before it was looked for here.
    ended, seen = time.perf_counter() - begun, {engine.pid for engine in stopped}
    stopped += [Stopped(entry.pid, entry.model, round(ended, 6), False) for entry in ran if entry.pid not in seen]
    others = elsewhere(switch.places)
    for path, entry in others:
        # Under the same kernel its lock is seen, though its number means nothing here.
        if entry.kind == "server" and shares_kernel(entry):
            _silence(path, entry)
    settling.join(DEADLINE_SECONDS)
    named = [f"{entry.kind} {entry.pid} ({entry.model}) of {entry.where.split(' ')[0]}" for _, entry in others]
    receipt = Receipt(asked, time.perf_counter() - begun, stopped, sorted(silenced), named)
    if unkept is not None:
        raise NotWritable(f"{len(stopped)} engines were stopped. {unkept.what}", unkept.todo)
    return receipt


def stop_engines(switch: Switch) -> list[Stopped]:
    """Stop what runs, and say nothing of the switch: for a server that finds it off."""
    engines = [entry for _, entry in listed(switch.places) if entry.kind in STOPPED]
    return _stop(engines, time.perf_counter()) if engines else []


def on(switch: Switch) -> None:
    """Turn it on again; starts nothing.

    Raises:
        SwitchedOff: The administrator's policy holds it.
        NotWritable: It could not be kept.
    """
    switch.write(True)
    state = switch.state()
    if not state.on:
        raise SwitchedOff(
            f"The switch stays off: {state.reason}", f"The administrator's policy holds it: {switch.places.policy}"
        )


def status(switch: Switch) -> dict[str, Any]:
    """What the switch says: on or off, who holds it, every feature, and the engines that run."""
    state = switch.state()
    names = {**FEATURES, **{name: "" for name in (*state.features, *sorted(state.policy)) if name not in FEATURES}}
    return {
        "switch": "on" if state.on else "off",
        "held_by": state.held_by,
        "reason": state.reason,
        "changed": state.changed,
        "features": {
            name: {
                "state": state.feature(name),
                "about": about,
                "held_by": "administrator" if name in state.policy else state.held_by if not state.on else "user",
            }
            for name, about in names.items()
        },
        "engines": [
            {"pid": entry.pid, "model": entry.model} for _, entry in listed(switch.places) if entry.kind == "engine"
        ],
        "elsewhere": [
            {"kind": entry.kind, "pid": entry.pid, "model": entry.model, "machine": entry.where.split(" ")[0]}
            for _, entry in elsewhere(switch.places)
        ],
    }


def _stop(entries: list[Entry], begun: float) -> list[Stopped]:
    """Ask all of them to end, and kill those that do not within the grace."""
    asked = {entry: time.perf_counter() for entry in entries}
    ends: dict[Entry, tuple[float, bool]] = {}
    for entry in entries:
        _signal(entry, signal.SIGTERM)
    _wait(entries, GRACE_SECONDS)
    for entry in entries:
        killed = is_running(entry.pid, entry.started)
        if killed:
            _signal(entry, signal.SIGKILL)
        ends[entry] = (time.perf_counter(), killed)
    left = [entry for entry, (_, killed) in ends.items() if killed]
    _wait(left, max(0.0, DEADLINE_SECONDS - (time.perf_counter() - begun)))
    return [
        Stopped(entry.pid, entry.model, round(time.perf_counter() - asked[entry], 6), ends[entry][1])
        for entry in entries
        if entry.kind == "engine" and not is_running(entry.pid, entry.started)
    ]


def _wait(entries: list[Entry], seconds: float) -> None:
    """Until all have ended, at most for a while."""
    until = time.perf_counter() + seconds
    for entry in entries:
        handle: int | None = None
        with contextlib.suppress(OSError, AttributeError):
            handle = os.pidfd_open(entry.pid)
        try:
            while is_running(entry.pid, entry.started) and (left := until - time.perf_counter()) > 0:
                if handle is None:
                    time.sleep(0.001)
                else:
                    readable(handle, left)
        finally:
            if handle is not None:
                os.close(handle)


def _silence(path: Path, entry: Entry) -> bool:
    """Wait until a server hands nothing over any more; one that hangs in the middle of it is killed."""
    until = time.perf_counter() + SILENCE_SECONDS
    try:
        stream = open(path, "rb")  # noqa: SIM115
    except OSError:
        return False
    with stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.perf_counter() > until:
                    if not entry.is_here:
                        return False
                    _signal(entry, signal.SIGKILL)
                    _wait([entry], GRACE_SECONDS)
                    return True
                time.sleep(0.0005)


def _signal(entry: Entry, number: int) -> None:
    if is_running(entry.pid, entry.started):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(entry.pid, number)
