"""What the nodes of a run say to each other, with a thread for each node and PyTorch's store between them."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stillroom import pipeline
from stillroom.cluster import nodes as module
from stillroom.cluster.agent import NodesRendezvous
from stillroom.cluster.cluster import Cluster
from stillroom.cluster.node import Node
from stillroom.cluster.nodes import Nodes
from stillroom.core.errors import EnvironmentProblem, FloorMissed, SwitchedOff, Terminated, UsageError
from stillroom.core.progress import Progress


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        port: int = taken.getsockname()[1]
        return port


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("FIND", 0.3), ("MEET", 10.0), ("LEAVE", 3.0), ("POLL", 0.02)):
        monkeypatch.setattr(module, f"{name}_SECONDS", seconds)


class Side:
    """A node, and how what it did ended."""

    def __init__(self, node: Node, folder: Path, act: Callable[[Nodes], None] | None = None) -> None:
        self.nodes = Nodes(node)
        self.folder = folder
        self.act = act
        self.error: BaseException | None = None
        self.trained: list[str] = []

    def run(self) -> None:
        try:
            if self.nodes.first:
                with self.nodes.led():
                    self.nodes.meet(self.folder)
                    if self.act is not None:
                        self.act(self.nodes)
            else:
                with self.nodes.joined():
                    self.nodes.fit(self.folder)
                    while (stage := self.nodes.next_stage()) is not None:
                        self.trained.append(":".join(stage))
                        if self.act is not None:
                            self.act(self.nodes)
        except BaseException as error:
            self.error = error


def together(*sides: Side) -> None:
    with ThreadPoolExecutor(len(sides)) as pool:
        list(pool.map(Side.run, sides))


def pair(folder: Path, lead: Callable[[Nodes], None] | None = None, **other: int) -> tuple[Side, Side]:
    port = free_port()
    follower = Node(**{"rank": 1, "count": 2, "host": "localhost", "port": port, "workers": 1} | other)  # type: ignore[arg-type]
    return Side(Node(0, 2, "localhost", port), folder, lead), Side(follower, folder)


def test_nodes_meet_train_and_end(tmp_path: Path) -> None:
    def lead(nodes: Nodes) -> None:
        nodes.begin("distill", "replicate")
        nodes.begin("baseline", "hybrid")

    first, other = pair(tmp_path, lead)
    together(first, other)
    assert (first.error, other.error) == (None, None)
    assert other.trained == ["distill:replicate", "baseline:hybrid"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"workers": 2}, "--workers 1 on node 0, and 2 on node 1"),
        ({"count": 3}, "--nodes 2 on node 0, and 3 on node 1"),
    ],
)
def test_unequal_commands_are_refused_on_both(tmp_path: Path, other: dict[str, int], said: str) -> None:
    sides = pair(tmp_path, **other)
    together(*sides)
    for side in sides:
        assert isinstance(side.error, UsageError)
        assert said in str(side.error)


def test_another_folder_is_refused_on_both(tmp_path: Path) -> None:
    first, other = pair(tmp_path)
    other.folder = tmp_path / "elsewhere"
    other.folder.mkdir()
    together(first, other)
    for side in (first, other):
        assert isinstance(side.error, UsageError)
        assert f"{other.folder} on node 1" in str(side.error)
        assert "is not the folder of the run that node 0 writes" in str(side.error)
    assert list(tmp_path.iterdir()) == [other.folder]


def test_a_number_that_two_nodes_have_is_refused(tmp_path: Path) -> None:
    port = free_port()
    sides = [Side(Node(rank, 3, "localhost", port), tmp_path) for rank in (0, 1, 1)]
    together(*sides)
    for side in sides:
        assert isinstance(side.error, UsageError)
        assert "--node-rank 1 was given on two nodes" in str(side.error)


def test_other_versions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = Nodes._terms
    monkeypatch.setattr(Nodes, "_terms", lambda self: terms(self) | ({} if self.first else {"torch": "1.0"}))
    first, other = pair(tmp_path)
    together(first, other)
    assert "and node 1 has 1.0" in str(first.error)
    assert type(first.error) is type(other.error) is EnvironmentProblem


def test_a_node_that_does_not_come_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEET_SECONDS", 0.2)
    monkeypatch.setattr(module, "LEAVE_SECONDS", 0.1)
    side = Side(Node(0, 3, "localhost", free_port()), tmp_path)
    side.run()
    assert isinstance(side.error, EnvironmentProblem)
    assert "of node 1, 2 nothing was heard" in str(side.error)
    alone = Side(Node(1, 2, "localhost", free_port()), tmp_path)
    alone.run()
    assert isinstance(alone.error, EnvironmentProblem)
    assert "no node 0 there" in str(alone.error)


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        side = Side(Node(0, 2, "localhost", taken.getsockname()[1]), tmp_path)
        side.run()
    assert isinstance(side.error, EnvironmentProblem)
    assert "the nodes cannot meet there" in str(side.error)


@pytest.mark.parametrize("raised", [FloorMissed("Too low.", "Train longer."), UsageError("No.", "Say yes.")])
def test_what_node_0_ends_with_is_what_others_end_with(tmp_path: Path, raised: Exception) -> None:
    def lead(_: Nodes) -> None:
        raise raised

    first, other = pair(tmp_path, lead)
    together(first, other)
    assert first.error is raised
    assert type(other.error) is type(raised)
    assert str(other.error).endswith(str(raised))


def test_a_fault_of_node_0_is_told_too(tmp_path: Path) -> None:
    def lead(_: Nodes) -> None:
        raise ZeroDivisionError("by nothing")

    first, other = pair(tmp_path, lead)
    together(first, other)
    assert isinstance(first.error, ZeroDivisionError)
    assert isinstance(other.error, EnvironmentProblem)
    assert "Node 0 ended with ZeroDivisionError: by nothing" in str(other.error)


def test_what_another_node_ends_with_ends_node_0(tmp_path: Path) -> None:
    def lead(nodes: Nodes) -> None:
        nodes.begin("distill", "replicate")
        for _ in range(500):
            nodes.ask()
            time.sleep(0.01)

    def refuse(_: Nodes) -> None:
        raise SwitchedOff("It is off.", "Turn it on.")

    first, other = pair(tmp_path, lead)
    other.act = refuse
    together(first, other)
    assert isinstance(first.error, SwitchedOff)
    assert str(first.error).startswith("Node 1: It is off.")
    assert isinstance(other.error, SwitchedOff)


@pytest.mark.parametrize(("stages", "ends"), [(["capture", "distill"], True), (["export", "evaluate"], False)])
def test_a_node_that_ends_is_noticed_while_node_0_does_what_comes_before_its_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: list[str], ends: bool
) -> None:
    monkeypatch.setattr(pipeline.switch, "require_on", lambda: None)
    met, gone = threading.Event(), threading.Event()

    def lead(nodes: Nodes) -> None:
        met.set()
        assert gone.wait(10)
        specs: Any = [SimpleNamespace(name=name) for name in stages]
        with Progress(True, pipeline._asking(Cluster(nodes=nodes), specs)).task(stages[0], total=2) as task:
            for _ in range(2):
                task.advance(1)

    def refuse() -> None:
        assert met.wait(10)
        try:
            raise SwitchedOff("It is off.", "Turn it on.")
        finally:
            threading.Timer(0.2, gone.set).start()

    first, other = pair(tmp_path, lead)
    monkeypatch.setattr(other.nodes, "next_stage", refuse)
    together(first, other)
    assert isinstance(other.error, SwitchedOff)
    assert (str(first.error).partition("\n")[0] == "Node 1: It is off.") if ends else first.error is None


@pytest.mark.parametrize("stopped", [0, 1])
def test_sigterm_on_a_node_is_told_to_the_other_whatever_it_does(tmp_path: Path, stopped: int) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def lead(nodes: Nodes) -> None:
        if stopped == 0:
            signal.raise_signal(signal.SIGTERM)
        for _ in range(500):
            nodes.ask()
            time.sleep(0.01)

    sides = pair(tmp_path, lead)
    if stopped == 1:
        sides[1].nodes.next_stage = lambda: signal.raise_signal(signal.SIGTERM)  # type: ignore[assignment,return-value]
    # Signals are the main thread's.
    thread = threading.Thread(target=sides[1 - stopped].run)
    thread.start()
    sides[stopped].run()
    thread.join()
    for side in sides:
        assert isinstance(side.error, Terminated)
        assert f"Stopped by SIGTERM on node {stopped}." in str(side.error)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_node_that_falls_silent_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.5)
    heard = threading.Event()

    def lead(nodes: Nodes) -> None:
        for step in range(1000):
            if step == 50:
                # So far it was heard.
                other.nodes._over.set()
                heard.set()
            nodes.ask()
            time.sleep(0.02)

    first, other = pair(tmp_path, lead)
    together(first, other)
    assert heard.is_set()
    assert isinstance(first.error, EnvironmentProblem)
    assert "was not heard of" in str(first.error)
    assert "was not heard of" in str(other.error)


def test_others_notice_that_node_0_is_gone(tmp_path: Path) -> None:
    first, other = pair(tmp_path)

    @contextlib.contextmanager
    def led_and_lost() -> Iterator[None]:
        first.nodes._store = first.nodes._open(master=True)
        yield
        first.nodes._store = None

    first.nodes.led = led_and_lost  # type: ignore[method-assign]
    together(first, other)
    assert isinstance(other.error, EnvironmentProblem)
    assert "is gone" in str(other.error)


def test_a_start_waits_for_all_and_a_new_start_is_seen(tmp_path: Path) -> None:
    events: list[str] = []

    def rendezvous(nodes: Nodes) -> NodesRendezvous:
        return NodesRendezvous(nodes.connect(), "distill-1", nodes.node, nodes.ask)

    def lead(nodes: Nodes) -> None:
        nodes.begin("distill", "replicate")
        handler = rendezvous(nodes)
        info = handler.next_rendezvous()
        assert (info.rank, info.world_size) == (0, 2)
        ports.append(info.bootstrap_store_info.master_port)  # type: ignore[union-attr]
        while handler.num_nodes_waiting() == 0:
            time.sleep(0.01)
        events.append("seen")
        assert handler.next_rendezvous().rank == 0
        assert handler.num_nodes_waiting() == 0
        # The other never comes a third time.
        handler.next_rendezvous()

    def follow(nodes: Nodes) -> None:
        handler = rendezvous(nodes)
        info = handler.next_rendezvous()
        ports.append(info.bootstrap_store_info.master_port)  # type: ignore[union-attr]
        assert info.rank == 1
        assert handler.next_rendezvous().rank == 1
        raise SwitchedOff("It is off.", "Turn it on.")

    ports: list[int] = []
    first, other = pair(tmp_path, lead)
    other.act = follow
    together(first, other)
    assert isinstance(first.error, SwitchedOff)
    assert isinstance(other.error, SwitchedOff)
    assert events == ["seen"]
    assert ports[0] == ports[1]
