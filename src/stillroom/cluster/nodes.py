"""What the machines that train together say to each other.

Node 0 goes through the run. The others wait for each stage that trains, serve it, and end when node 0 ends. They talk through
PyTorch's TCPStore, which node 0 opens at an address that all are given; everything in it is JSON or a number.

::

    left           how many other nodes ended
    run            node 0: what the others are held against
    node-K         node K: it is there, and sees what node 0 sees
    beat-K         node K, every few seconds: another number
    stage-N        node 0: the N-th stage that trains
    error          the first error of any node
    end            node 0: how it ended
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.cluster.node import Node
from stillroom.cluster.sigterm import raised_by_sigterm
from stillroom.core import files
from stillroom.core.errors import (
    EnvironmentProblem,
    StillroomError,
    Terminated,
    UsageError,
    first_line,
    told,
    translate,
)
from stillroom.core.version import tool_version
from stillroom.training.group import Sharding

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

MEET_SECONDS = 600.0
"""What all nodes have to come: a scheduler may start them one after the other."""
FIND_SECONDS = 30.0
"""What a file of node 0 has to appear on the others."""
SILENT_SECONDS = 60.0
"""A node that was not heard of for so long is gone."""
BEAT_SECONDS = 5.0
LEAVE_SECONDS = 15.0
"""How long node 0 waits at its end for others to hear of it."""
POLL_SECONDS = 0.2
ANSWER_SECONDS = 60
"""What the store has for an answer."""


class Nodes:
    """This node's side of what the nodes of a run say to each other.

    Args:
        node: Which one this is.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.stages = 0
        """Stages that trained so far."""
        self._store: TCPStore | None = None
        self._heard: dict[int, tuple[str, float]] = {}
        self._asked = 0.0
        self._over = threading.Event()

    @property
    def first(self) -> bool:
        """Whether this is node 0."""
        return self.node.rank == 0

    @contextlib.contextmanager
    def led(self) -> Iterator[None]:
        """On node 0: open the place to meet, and tell the others at the end how it ended, by SIGTERM too.

        Raises:
            EnvironmentProblem: The port is taken, or the address is not this machine's.
            Terminated: SIGTERM.
        """
        self._store = self._open(master=True)
        try:
            with _sigterm("node 0"):
                yield
        except BaseException as error:
            self._end(_known(error, "Node 0"))
            raise
        else:
            self._end(None)
        finally:
            self._store = None

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """On another node: connect to node 0, and tell the others what this one ended with, by SIGTERM too.

        Raises:
            EnvironmentProblem: There is no node 0.
            Terminated: SIGTERM.
        """
        me = f"node {self.node.rank}"
        with _sigterm(me):
            _wait_for(self.node)
        self._store = self._open(master=False)
        threading.Thread(target=self._beat, daemon=True).start()
        try:
            with _sigterm(me):
                yield
        except BaseException as error:
            self.tell(_known(error, f"Node {self.node.rank}"))
            raise
        finally:
            self._over.set()
            with contextlib.suppress(EnvironmentProblem):
                self._add("left")
            self._store = None

    def meet(self, path: Path) -> None:
        """On node 0, before anything is spent: wait until all nodes are there and see the run's folder.

        Raises:
            EnvironmentProblem: A node did not come.
            StillroomError: What a node refuses.
        """
        name, value = f".nodes-{secrets.token_hex(8)}", secrets.token_hex(16)
        files.write_text(path / name, value)
        try:
            self._write("run", self._terms() | {"file": name, "sha256": files.digest_bytes(value.encode())})
            missing = set(range(1, self.node.count))
            until = time.monotonic() + MEET_SECONDS
            while missing:
                self.ask()
                missing -= {rank for rank in missing if self._read(f"node-{rank}") is not None}
                if missing and time.monotonic() > until:
                    raise EnvironmentProblem(
                        f"--nodes {self.node.count}: of node {', '.join(map(str, sorted(missing)))} nothing was heard within "
                        f"{MEET_SECONDS:.0f} s at {self.node.host}:{self.node.port}.",
                        "Start the same command on every node (under SLURM by srun), and let them reach that address.",
                    )
                time.sleep(POLL_SECONDS)
        finally:
            (path / name).unlink(missing_ok=True)

    def fit(self, path: Path) -> None:
        """On another node: hold it against node 0, and say that it is there.

        Args:
            path: The run's folder, as this node has it.

        Raises:
            UsageError: Another number of nodes or workers, another folder, or a number that another node has.
            EnvironmentProblem: Other versions, or node 0 is silent.
        """
        asked = self._wait("run", MEET_SECONDS)
        mine = self._terms()
        rank = self.node.rank
        for key, option in (("nodes", "--nodes"), ("workers", "--workers")):
            if asked[key] != mine[key]:
                raise UsageError(
                    f"{option} {asked[key]} on node 0, and {mine[key]} on node {rank}.",
                    "Give the same command on all nodes; each of them trains with as many processes.",
                )
        for key in ("stillroom", "torch"):
            if asked[key] != mine[key]:
                raise EnvironmentProblem(
                    f"Node 0 has {key} {asked[key]}, and node {rank} has {mine[key]}.", "Install the same on all nodes."
                )
        self._find(path, asked["file"], asked["sha256"])
        here = json.dumps({"host": socket.gethostname(), "id": secrets.token_hex(8)})
        if self._do(lambda store: store.compare_set(f"node-{rank}", "", here)).decode() != here:
            raise UsageError(f"--node-rank {rank} was given on two nodes.", "Give every node a number of its own.")

    def _find(self, path: Path, name: str, digest: str) -> None:
        until = time.monotonic() + FIND_SECONDS
        while True:
            with contextlib.suppress(OSError):
                if files.digest_file(path / name) == digest:
                    return
            self.ask()
            if time.monotonic() > until:
                raise UsageError(
                    f"{path} on node {self.node.rank} ({socket.gethostname()}) is not the folder of the run that node 0 "
                    "writes: what was put there is not found.",
                    "Give all nodes the same run on a file system that they share: --runs FOLDER.",
                )
            time.sleep(POLL_SECONDS)

    def begin(self, stage: str, sharding: Sharding) -> None:
        """On node 0: have all nodes train a stage."""
        self.ask()
        self.stages += 1
        self._write(f"stage-{self.stages}", {"name": stage, "sharding": sharding})

    def next_stage(self) -> tuple[str, Sharding] | None:
        """On another node: the next stage that trains, and how; None when node 0 has ended well.

        Raises:
            StillroomError: What node 0, or another one, ended with.
        """
        while True:
            # Asked first: what was begun before node 0 ended is there then.
            end = self._read("end")
            found = self._read(f"stage-{self.stages + 1}")
            if found is not None:
                self.stages += 1
                return found["name"], found["sharding"]
            if end == {}:
                return None
            if (error := self._read("error") or end) is not None:
                raise self._error(error)
            time.sleep(POLL_SECONDS)

    def tell(self, error: StillroomError) -> None:
        """Have all nodes end with an error; the first one that is told counts."""
        values = {"kind": type(error).__name__, "what": error.what, "todo": error.todo, "node": self.node.rank}
        with contextlib.suppress(EnvironmentProblem):
            self._do(lambda store: store.compare_set("error", "", json.dumps(values)))

    def ask(self) -> None:
        """Look whether the others go on.

        Raises:
            StillroomError: What another node ended with.
            EnvironmentProblem: One is gone.
        """
        found = self._read("error") or (None if self.first else self._read("end"))
        if found is not None:
            raise self._error(found)
        now = time.monotonic()
        if not self.first or now - self._asked < BEAT_SECONDS:
            return
        self._asked = now
        for rank in range(1, self.node.count):
            there = self._read(f"node-{rank}")
            if there is None:
                continue
            beat = str(self._read(f"beat-{rank}"))
            before, since = self._heard.get(rank, ("", now))
            self._heard[rank] = (beat, since if beat == before else now)
            if beat == before and now - since > SILENT_SECONDS:
                raise EnvironmentProblem(
                    f"Node {rank} ({there['host']}) was not heard of for {SILENT_SECONDS:.0f} s.",
                    "The same command on all nodes goes on from the newest checkpoint.",
                )

    def connect(self) -> TCPStore:
        """Another connection, for torch elastic, whose questions wait for an answer."""
        return self._open(master=False)

    def _terms(self) -> dict[str, Any]:
        import torch

        versions = {"stillroom": tool_version(), "torch": str(torch.__version__)}
        return {"nodes": self.node.count, "workers": self.node.workers, **versions}

    def _error(self, found: dict[str, Any]) -> StillroomError:
        if not found:
            return EnvironmentProblem("Node 0 has ended.", "The same command on all nodes goes on.")
        of = "" if found["node"] == self.node.rank or found["what"].startswith("Node ") else f"Node {found['node']}: "
        return told(found["kind"], of + found["what"], found["todo"])

    def _end(self, error: StillroomError | None) -> None:
        values = (
            {} if error is None else {"kind": type(error).__name__, "what": error.what, "todo": error.todo, "node": 0}
        )
        until = time.monotonic() + LEAVE_SECONDS
        with contextlib.suppress(EnvironmentProblem):
            self._write("end", values)
            while self._add("left", 0) < self.node.count - 1 and time.monotonic() < until:
                time.sleep(POLL_SECONDS / 2)

    def _beat(self) -> None:
        number = 0
        with contextlib.suppress(EnvironmentProblem):
            while not self._over.wait(BEAT_SECONDS if number else 0):
                number += 1
                self._write(f"beat-{self.node.rank}", number)

    def _wait(self, key: str, seconds: float) -> dict[str, Any]:
        until = time.monotonic() + seconds
        while (found := self._read(key)) is None:
            self.ask()
            if time.monotonic() > until:
                raise EnvironmentProblem(
                    f"Node 0 at {self.node.host}:{self.node.port} said nothing for {seconds:.0f} s.",
                    "Look at what it shows.",
                )
            time.sleep(POLL_SECONDS)
        values: dict[str, Any] = found
        return values

    def _read(self, key: str) -> Any:
        return self._do(lambda store: json.loads(store.get(key)) if store.check([key]) else None)

    def _write(self, key: str, value: Any) -> None:
        self._do(lambda store: store.set(key, json.dumps(value)))

    def _add(self, key: str, number: int = 1) -> int:
        return int(self._do(lambda store: store.add(key, number)))

    def _do(self, act: Callable[[TCPStore], Any]) -> Any:
        store = self._store
        try:
            if store is not None:
                return act(store)
        except RuntimeError:
            # What PyTorch raises where the connection is lost.
            pass
        raise EnvironmentProblem(
            f"Node 0 at {self.node.host}:{self.node.port} is gone.",
            "See what it said last; the same command on all nodes goes on from the newest checkpoint.",
        )

    def _open(self, master: bool) -> TCPStore:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        where = f"{self.node.host}:{self.node.port}"
        try:
            return TCPStore(
                self.node.host,
                self.node.port,
                is_master=master,
                wait_for_workers=False,
                timeout=timedelta(seconds=ANSWER_SECONDS),
            )
        except (RuntimeError, ValueError) as error:
            raise EnvironmentProblem(
                f"{where}: the nodes cannot meet there: {first_line(error)}",
                "Give an address of node 0 and a port that is free there, the same on all nodes: --rendezvous HOST:PORT.",
            ) from None


def _sigterm(who: str) -> contextlib.AbstractContextManager[None]:
    """Have SIGTERM raise, so that others hear of it."""
    return raised_by_sigterm(Terminated(f"Stopped by SIGTERM on {who}.", "The same command on all nodes goes on."))


def _known(error: BaseException, who: str) -> StillroomError:
    """An error as others are told of it."""
    return translate(error) or EnvironmentProblem(
        f"{who} ended with {type(error).__name__}: {first_line(error)}", "See what it says."
    )


def _wait_for(node: Node) -> None:
    """Wait until something answers at node 0; PyTorch's own wait writes a line for each try."""
    until = time.monotonic() + MEET_SECONDS
    while True:
        try:
            socket.create_connection((node.host, node.port), timeout=ANSWER_SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise EnvironmentProblem(
                    f"{node.host}:{node.port}: no node 0 there within {MEET_SECONDS:.0f} s: {error.strerror or error}.",
                    "Start the same command on node 0, and let the nodes reach that address.",
                ) from None
        time.sleep(POLL_SECONDS)
