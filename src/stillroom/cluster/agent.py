"""Torch elastic's agent, which also listens to what its processes say, and to the owner's switch.

A process that ends with one of our errors says so to the agent and is not started again; one that dies is. A new start has a
new store, because addresses of the processes before it are in the old one, and connections to them are refused.

Several machines meet by :class:`NodesRendezvous`: torch elastic's own gives ranks by host names, and does not look at the
switch while it waits.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    registry,
)
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.distributed.launcher.api import LaunchConfig

from stillroom.cluster.node import Node
from stillroom.core.errors import Terminated

OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""The environment variable of PyTorch that gives each start of the processes a store of its own; by itself it keeps one."""


class Agent(LocalElasticAgent):
    """Starts processes, and starts them again where one dies.

    Args:
        check: Is asked several times per second, and raises what ends all processes at once; `Terminated`, of another machine,
            leaves them the time for their checkpoint.
        died: Is told the number and the code of a process that ended, before all are started again because of it.
        values: Those of the base class.
    """

    def __init__(self, check: Callable[[], None], died: Callable[[int, int], None], **values: Any) -> None:
        super().__init__(**values)
        self._check, self._died = check, died
        seconds = values.get("shutdown_timeout")
        self._patience = {} if seconds is None else {"timeout": seconds}

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        # First what has happened, then why: a process that was ended by the switch must not be started again.
        result: RunResult = super()._monitor_workers(worker_group)
        try:
            self._check()
        except Terminated:
            self._shutdown(signal.SIGTERM, **self._patience)
            raise
        except BaseException:
            self._shutdown(signal.SIGKILL)
            raise
        if result.failures and self._remaining_restarts > 0:
            rank, failure = min(result.failures.items())
            self._died(rank, failure.exitcode)
        return result


class NodesRendezvous(RendezvousHandler):
    """A fixed number of machines start together, each time anew where processes of one of them died.

    Args:
        store: On node 0.
        name: Of a stage: no other has it in this store.
        node: This machine; node 0 has the first processes.
        check: Is asked several times per second while it waits.
    """

    POLL_SECONDS = 0.2

    def __init__(self, store: Store, name: str, node: Node, check: Callable[[], None]) -> None:
        self._store, self._node, self._check = PrefixStore(name, store), node, check
        self._starts = 0

    def get_backend(self) -> str:
        """Its name."""
        return "nodes"

    @property
    def use_agent_store(self) -> bool:
        """No: see the module."""
        return False

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait until all machines are ready for another start."""
        self._starts += 1
        store = self._start(self._starts)
        if self._node.rank == 0:
            port: int = get_free_port()  # type: ignore[no-untyped-call]
            store.set("port", str(port))
        store.add("ready", 1)
        while store.add("ready", 0) < self._node.count:
            self._check()
            time.sleep(self.POLL_SECONDS)
        address = RendezvousStoreInfo(self._node.host, int(store.get("port")))
        return RendezvousInfo(store, self._node.rank, self._node.count, address)

    def num_nodes_waiting(self) -> int:
        """Machines that wait for another start: the processes of this one are stopped and started with them."""
        return int(self._start(self._starts + 1).add("ready", 0))

    def _start(self, number: int) -> PrefixStore:
        return PrefixStore(f"start-{number}", self._store)

    def is_closed(self) -> bool:
        """Never: it is of one stage."""
        return False

    def set_closed(self) -> None:
        """Nothing."""

    def get_run_id(self) -> str:
        """Nothing is told apart by it."""
        return "nodes"

    def shutdown(self) -> bool:
        """Nothing is to be taken down."""
        return True


def launch(
    config: LaunchConfig,
    entry: Callable[..., Any],
    arguments: tuple[Any, ...],
    check: Callable[[], None],
    died: Callable[[int, int], None],
    meeting: RendezvousHandler | None = None,
) -> dict[int, Any]:
    """As ``elastic_launch``: what each process returns, by its number.

    Args:
        config: As there.
        entry: What each process does.
        arguments: Its arguments.
        check: Of the agent.
        died: Of the agent.
        meeting: How several machines meet; None makes what ``config`` asks for.

    Raises:
        ChildFailedError: They died more often than they are started again.
        SignalException: This process was told to end; they have ended.
        Exception: What ``check`` raised.
    """
    parameters = RendezvousParameters(
        backend=config.rdzv_backend,
        endpoint=config.rdzv_endpoint,
        run_id=config.run_id,
        min_nodes=config.min_nodes,
        max_nodes=config.max_nodes,
        local_addr=config.local_addr,
        **config.rdzv_configs,
    )
    spec = WorkerSpec(
        role=config.role,
        local_world_size=config.nproc_per_node,
        entrypoint=entry,
        args=arguments,
        rdzv_handler=meeting or registry.get_rendezvous_handler(parameters),
        max_restarts=config.max_restarts,
        monitor_interval=config.monitor_interval,
        local_addr=config.local_addr,
    )
    more = {"shutdown_timeout": config.shutdown_timeout} if hasattr(config, "shutdown_timeout") else {}
    agent = Agent(
        check,
        died,
        spec=spec,
        logs_specs=config.logs_specs,
        start_method=config.start_method,
        log_line_prefix_template=config.log_line_prefix_template,
        **more,
    )
    closes = True
    try:
        result = agent.run()
    except SignalException:
        # Other machines of the group may go on.
        closes = False
        raise
    finally:
        if closes:
            spec.rdzv_handler.shutdown()
    if result.is_failed():
        raise ChildFailedError(name=entry.__name__, failures=result.failures)
    returned: dict[int, Any] = result.return_values
    return returned
