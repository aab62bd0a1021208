"""Torch elastic's agent, which also listens to what its processes say, and to the owner's switch.

A process that ends with one of our errors says so to the agent and is not started again; one that dies is. A new start has a
new store, because addresses of the processes before it are in the old one, and connections to them are refused.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousParameters, registry
from torch.distributed.launcher.api import LaunchConfig

OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""The environment variable of PyTorch that gives each start of the processes a store of its own; by itself it keeps one."""


class Agent(LocalElasticAgent):
    """Starts processes, and starts them again where one dies.

    Args:
        check: Is asked several times per second, and raises what ends all processes at once.
        values: Those of the base class.
    """

    def __init__(self, check: Callable[[], None], **values: Any) -> None:
        super().__init__(**values)
        self._check = check

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        # First what has happened, then why: a process that was ended by the switch must not be started again.
        result: RunResult = super()._monitor_workers(worker_group)
        try:
            self._check()
        except BaseException:
            self._shutdown(signal.SIGKILL)
            raise
        return result


def launch(
    config: LaunchConfig, entry: Callable[..., Any], arguments: tuple[Any, ...], check: Callable[[], None]
) -> dict[int, Any]:
    """As ``elastic_launch``: what each process returns, by its number.

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
        rdzv_handler=registry.get_rendezvous_handler(parameters),
        max_restarts=config.max_restarts,
        monitor_interval=config.monitor_interval,
        local_addr=config.local_addr,
    )
    more = {"shutdown_timeout": config.shutdown_timeout} if hasattr(config, "shutdown_timeout") else {}
    agent = Agent(
        check,
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
