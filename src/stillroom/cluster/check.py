"""`stillroom cluster check`: looks at every machine of a cluster before money is spent on it.

Each machine says what it has (:class:`Facts`): versions, clock, free disk and memory, and whether it reads in every shared
place what the first machine put there, and can put something itself. The first machine compares them (:func:`findings`).
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from stillroom.core.errors import StillroomError, first_line
from stillroom.core.extras import version_of
from stillroom.core.store import LocalStore, is_url, open_store, probe

PACKAGES = ("stillroom", "torch", "transformers")
"""Packages whose versions have to be the same everywhere."""
CLOCK_SECONDS = 30.0
"""How far a clock may be off: object stores refuse requests of a wrong time, and records of a run carry the time."""
SPARE_BYTES = 1 << 30
"""Free disk space, and memory, that every machine needs."""


class Facts(BaseModel):
    """What a machine says of itself.

    Attributes:
        node: Its name.
        versions: Of Python and of packages, by name; None where one is not installed.
        clock: Seconds since 1970, by its clock.
        disk_bytes: Free in its folder of temporary files.
        memory_bytes: Available.
        gpus: CUDA devices.
        places: What is wrong with each shared place; empty where nothing is.
        token: Whether Ray's token authentication is on; None without Ray.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    node: str
    versions: dict[str, str | None]
    clock: float
    disk_bytes: int
    memory_bytes: int
    gpus: int
    places: dict[str, str]
    token: bool | None = None


@dataclass(frozen=True)
class Seen:
    """Facts, and when they were asked for and came, by the first machine's clock."""

    facts: Facts
    asked: float
    came: float

    @property
    def clock_off(self) -> tuple[float, float]:
        """The least and the most seconds that the machine's clock may be ahead."""
        return self.facts.clock - self.came, self.facts.clock - self.asked


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a machine."""

    node: str
    what: str


@dataclass
class Checked:
    """What a check came to: machines that answered, the first one first, and what is wrong."""

    nodes: list[Seen] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


class Shared:
    """A thing put into every shared place by the first machine, for the others to read there.

    Args:
        places: Folders and URLs.
        key: Its name.
    """

    def __init__(self, places: Sequence[str], key: str) -> None:
        self.places, self.key = list(places), key
        self._missing: list[Path] = []

    def __enter__(self) -> Shared:
        for where in self.places:
            if not is_url(where):
                self._missing += [path for path in (Path(where), *Path(where).parents) if not path.exists()]
            try:
                open_store(where).put(self.key, self.key.encode())
            except (StillroomError, OSError):
                # Said with what this machine finds in the place.
                continue
        return self

    def __exit__(self, *_: object) -> None:
        for where in self.places:
            try:
                open_store(where).remove(self.key)
            except (StillroomError, OSError):
                continue
        for path in self._missing:
            # Folders that were made for this, where nothing else is in them by now.
            try:
                path.rmdir()
            except OSError:
                continue


def facts_of_here(places: Sequence[str], key: str, node: str | None = None) -> Facts:
    """What this machine says of itself."""
    import psutil
    import torch

    return Facts(
        node=node or socket.gethostname(),
        versions={"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}},
        disk_bytes=shutil.disk_usage(tempfile.gettempdir()).free,
        memory_bytes=psutil.virtual_memory().available,
        gpus=torch.cuda.device_count() if torch.cuda.is_available() else 0,
        places={where: trial(where, key) for where in places},
        # Last, because what is before it takes time.
        clock=time.time(),
    )


def trial(where: str, key: str) -> str:
    """What is wrong with a shared place on this machine; empty where nothing is."""
    try:
        store = open_store(where)
        if isinstance(store, LocalStore) and not store.folder.is_dir():
            return "there is no such folder"
        probe(store)
        if store.get(key) is None:
            return "what the first machine put there is not there: it is another place of the same name"
    except StillroomError as error:
        return error.what
    except OSError as error:
        return f"{where} cannot be read: {error.strerror or first_line(error)}"
    return ""


def findings(nodes: Sequence[Seen], memory_bytes: int = 0) -> list[Finding]:
    """What is wrong with machines; the first one's versions are those that the others have to have.

    Args:
        nodes: The machines.
        memory_bytes: What the teacher's weights take, in memory where there is no GPU.
    """
    found: list[Finding] = []
    for number, seen in enumerate(nodes):
        facts = seen.facts

        def wrong(what: str, node: str = facts.node) -> None:
            found.append(Finding(node, what))

        for name, version in facts.versions.items():
            wanted = nodes[0].facts.versions.get(name)
            if version is None:
                wrong(f"{name} is not installed")
            elif number and _comparable(name, version) != _comparable(name, wanted):
                wrong(f"{name} is {version}, and {wanted} on {nodes[0].facts.node}")
        least, most = seen.clock_off
        if number and (least > CLOCK_SECONDS or most < -CLOCK_SECONDS):
            off = least if least > 0 else most
            wrong(f"its clock is at least {abs(off):,.0f} s {'ahead' if off > 0 else 'behind'}")
        if facts.disk_bytes < SPARE_BYTES:
            wrong(f"only {facts.disk_bytes / 2**20:,.0f} MiB are free for temporary files (TMPDIR)")
        needs = SPARE_BYTES if facts.gpus else max(SPARE_BYTES, memory_bytes)
        if facts.memory_bytes < needs:
            wrong(f"{facts.memory_bytes / 1e9:.1f} GB of memory are available, and {needs / 1e9:.1f} GB are needed")
        for where, what in facts.places.items():
            if what:
                wrong(what if where in what else f"{where}: {what}")
        if facts.token is False:
            wrong("Ray's token authentication is off: anyone who reaches its ports could run code there")
    return found


def _comparable(name: str, version: str | None) -> str | None:
    """What of a version has to be the same: of Python the first two numbers, of torch not the build for a device."""
    if version is None:
        return None
    return ".".join(version.split(".")[:2]) if name == "python" else version.partition("+")[0]


def table(checked: Checked) -> list[str]:
    """The lines of a table: one for each machine, then what is wrong."""
    names = list(checked.nodes[0].facts.versions) if checked.nodes else []
    places = list(checked.nodes[0].facts.places) if checked.nodes else []
    rows = [["node", *names, "clock", "free disk", "memory", "GPUs", "token", *places]]
    for number, seen in enumerate(checked.nodes):
        facts, (least, most) = seen.facts, seen.clock_off
        rows.append(
            [
                facts.node,
                *(facts.versions.get(name) or "none" for name in names),
                f"{(least + most) / 2:+.1f} ± {(most - least) / 2:.1f} s" if number else "",
                f"{facts.disk_bytes / 1e9:,.0f} GB",
                f"{facts.memory_bytes / 1e9:,.1f} GB",
                str(facts.gpus),
                {True: "on", False: "OFF", None: ""}[facts.token],
                *("WRONG" if facts.places.get(where, "") else "ok" for where in places),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return lines + [f"{finding.node}: {finding.what}" for finding in checked.findings]


def check_here(places: Sequence[str], memory_bytes: int = 0) -> Checked:
    """This machine alone."""
    key = f"cluster-check-{os.urandom(8).hex()}"
    with Shared(places, key):
        asked = time.time()
        facts = facts_of_here(places, key)
        nodes = [Seen(facts, asked, time.time())]
    return Checked(nodes, findings(nodes, memory_bytes))
