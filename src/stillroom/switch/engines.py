"""The list of running engines of a user, in a folder that every engine knows.

An engine writes itself down before it looks at the switch; ``off`` writes the switch before it looks at the list. So
either ``off`` sees the engine, or the engine sees that it is off.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import platform
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from stillroom.core.errors import NotWritable
from stillroom.core.strict_json import read_strict
from stillroom.switch.places import Places
from stillroom.switch.state import clear_way, read_file

_PROC = Path("/proc/self")
WORKER = "stillroom.runtime.worker"
"""The module that is an engine's process; with the folder of its switch's state after it, it is recognised by that even
when the list is lost."""
WORKERS = frozenset({WORKER.encode(), b"stillroom.serve.worker"})
"""The module's name now and in every earlier release (0.1.0: ``stillroom.serve.worker``), as it is in a command line."""
PREPARER = "stillroom.serving.preparing_child"
"""The module of a server's process that reads long requests and compiles schemas; recognised likewise."""
STOPPED = ("engine", "preparer")
"""The kinds of processes that ``off`` ends."""


@dataclass(frozen=True)
class Entry:
    """One process that must not outlive ``off``.

    Attributes:
        kind: "engine" holds a model; "server" passes its tokens on; "preparer" prepares a server's requests.
        pid: Its number.
        started: When the system started it, so that a number used again is not taken for it.
        model: What it runs.
        where: The machine, its start, the list of processes and the user that the number belongs to (:func:`here`); empty
            in a line of Stillroom 0.1.0, which is taken for one of here.
    """

    kind: str
    pid: int
    started: float
    model: str
    where: str = ""

    @property
    def is_here(self) -> bool:
        """Whether its number means a process that this one can look for, and signal."""
        return self.where in ("", here())


@functools.cache
def machine() -> str:
    """A name of this machine that another one does not have, as far as the system gives one."""
    number = ""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with contextlib.suppress(OSError):
            number = number or Path(path).read_text(encoding="ascii", errors="replace").strip()
    return f"{number}@{platform.node()}"


@functools.cache
def start_of_system() -> str:
    """What tells one start of this system from the next; on Linux the kernel's own number."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def here() -> str:
    """Which list of processes a number belongs to: machine, its start, PID namespace, user.

    A home can be shared by containers, machines and users. A process number of one of them means nothing to another.
    """
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return " ".join((machine(), start_of_system(), namespace, str(os.getuid() if hasattr(os, "getuid") else 0)))


class Registration:
    """A line in the list, for as long as it is open.

    Args:
        places: Whose list.
        kind: "engine", "server" or "preparer".
        pid: The process; None is this one.
        model: What it runs.

    Raises:
        NotWritable: The list cannot be written; what is not in it must not run.
    """

    def __init__(self, places: Places, kind: str, model: str, pid: int | None = None) -> None:
        pid = pid or os.getpid()
        self._delivering = 0
        self.path = places.engines / f"{kind}-{pid}-{uuid.uuid4().hex[:8]}.json"
        entry = Entry(kind, pid, start_time(pid) or 0.0, model, here())
        # A reader meanwhile finds a whole line or none, and a name that ends otherwise is not looked at.
        beside = self.path.with_suffix(".partial")
        try:
            clear_way(places.engines)
            places.engines.mkdir(parents=True, exist_ok=True, mode=0o700)
            beside.write_text(json.dumps(asdict(entry)), encoding="utf-8")
            self._stream: IO[bytes] = open(beside, "rb")  # noqa: SIM115 - held open for its lock
            os.rename(beside, self.path)
        except OSError as error:
            raise NotWritable(
                f"{places.engines}: an engine could not be written down, and one that is not cannot be stopped: {error}",
                "Make the folder writable.",
            ) from error

    @contextlib.contextmanager
    def delivering(self) -> Iterator[None]:
        """Held while something is handed to a client: ``off`` waits for it, and then nothing follows."""
        # One lock for all that is being delivered: the first takes it, the last gives it back.
        if self._delivering == 0:
            fcntl.flock(self._stream, fcntl.LOCK_SH)
        self._delivering += 1
        try:
            yield
        finally:
            self._delivering -= 1
            if self._delivering == 0:
                fcntl.flock(self._stream, fcntl.LOCK_UN)

    def close(self) -> None:
        """Leave the list."""
        self._stream.close()
        self.path.unlink(missing_ok=True)


def listed(places: Places) -> list[tuple[Path | None, Entry]]:
    """Every live process of the list, and every worker of this user that is not in it.

    Lines whose process has ended here are removed. Those of other machines, users and lists of processes (containers) are
    left as they are, and not among what is returned: see :func:`elsewhere`.
    """
    found: list[tuple[Path | None, Entry]] = []
    for path, entry in _lines(places):
        if entry is not None and not entry.is_here:
            if _ended_with_the_system(entry):
                _remove(path)
        elif entry is not None and is_running(entry.pid, entry.started):
            found.append((path, entry))
        else:
            _remove(path)
    # A line that calls a worker a server hides no engine.
    known = {entry.pid for _, entry in found if entry.kind in STOPPED}
    return found + [(None, entry) for entry in _workers(places) if entry.pid not in known]


def registered(places: Places) -> list[Entry]:
    """The live processes of this machine that the list names; nothing is looked for beyond it, and nothing is removed."""
    entries = [entry for _, entry in _lines(places)]
    return [entry for entry in entries if entry and entry.is_here and is_running(entry.pid, entry.started)]


def elsewhere(places: Places) -> list[tuple[Path, Entry]]:
    """The lines of other machines, users and lists of processes: what this process cannot look for."""
    return [
        (path, entry)
        for path, entry in _lines(places)
        if entry is not None and not entry.is_here and not _ended_with_the_system(entry)
    ]


def shares_kernel(entry: Entry) -> bool:
    """Whether a line's process runs under the same kernel, where locks on files are seen: another container of this machine."""
    return start_of_system() != "" and entry.where.split(" ")[1:2] == [start_of_system()]


def _ended_with_the_system(entry: Entry) -> bool:
    """Whether a line is of an earlier start of this very machine."""
    own, words = here().split(" "), entry.where.split(" ")
    same = len(words) == 4 and words[0] == own[0] and words[3] == own[3]
    return same and words[1] != own[1] and "" not in (words[1], own[1])


def _lines(places: Places) -> Iterator[tuple[Path, Entry | None]]:
    try:
        paths = sorted(places.engines.glob("*.json"))
    except OSError:
        paths = []
    for path in paths:
        yield path, _read(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _writable(text: object) -> str:
    """A text as it can be written and sent: without halves of characters."""
    return str(text).encode("utf-8", "replace").decode()


KINDS = ("engine", "server", "preparer")
MOST_PROCESSES = 1 << 22
"""No system gives higher numbers (Linux, PID_MAX_LIMIT)."""


def _read(path: Path) -> Entry | None:
    try:
        value: dict[str, Any] = read_strict(read_file(path) or b"")
        entry = Entry(
            str(value["kind"]),
            int(value["pid"]),
            float(value["started"]),
            _writable(value["model"]),
            _writable(value.get("where", "")),
        )
        if not 1 < entry.pid <= MOST_PROCESSES:
            raise ValueError("no process has this number")
        if entry.kind not in KINDS:
            raise ValueError("no process of ours is of this kind")
    except Exception:
        # Half-written, or no line at all. Its name carries the number, so that it cannot hide a process.
        parts = path.stem.split("-")
        if (
            len(parts) == 3
            and parts[0] in KINDS
            and parts[1].isdecimal()
            and _what_is(int(parts[1][:9]), path.parent.parent)
        ):
            return Entry(parts[0], int(parts[1]), start_time(int(parts[1])) or 0.0, "unknown")
        return None
    return entry


def start_time(pid: int) -> float | None:
    """When a process started; None if there is none, or only its remains."""
    if _PROC.is_dir():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else float(fields[19])
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return float(process.create_time())
    return None


def is_running(pid: int, started: float) -> bool:
    """Whether the process that had this number then still runs."""
    return start_time(pid) == started


def _what_is(pid: int, state: Path) -> str:
    """The kind of a process, by its command line; empty where it is none that ``off`` ends."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    if os.fsencode(state) not in words:
        return ""
    if not WORKERS.isdisjoint(words):
        return "engine"
    return "preparer" if any(PREPARER.encode() in word for word in words) else ""


def _workers(places: Places) -> Iterator[Entry]:
    if not _PROC.is_dir():
        return
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                kind = _what_is(int(folder.name), places.state) if folder.stat().st_uid == os.getuid() else ""
                started = start_time(int(folder.name)) if kind else None
                if started is not None:
                    yield Entry(kind, int(folder.name), started, "unknown")
