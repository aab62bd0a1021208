"""Nodes of a Ray cluster on this machine that can be killed, and drivers of captures on it: for tests and benchmarks."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from stillroom.cluster.ray_capture import processes_in
from tests.cluster.cluster_material import children_with

TOKEN = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0" * 64,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "90",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
}
"""Environment of all of the cluster: nodes that are started without `ray.init` take no token by themselves. A
raylet whose agents are slow ends after 15 seconds (ray#65983), and is not waited for much longer: it is started again."""
DRIVER = """
import sys
from stillroom.cluster.ray_capture import capture_on_ray
from stillroom.core.progress import Progress
from stillroom.runs.run import Run
print(capture_on_ray(Run.open(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Progress(True)).put_back)
"""


class Nodes:
    """A head with one core, and nodes with one core each. Needs :data:`TOKEN` in the environment."""

    def __init__(self) -> None:
        # Short, because names of sockets in it are limited to 107 bytes.
        self.folder = tempfile.mkdtemp(prefix="sr-nodes-")
        # Ray writes the address of a cluster that it starts there, and does not make the folder.
        (Path(tempfile.gettempdir()) / "ray").mkdir(exist_ok=True)
        self.cluster: Any = importlib.import_module("ray.cluster_utils").Cluster()
        self.nodes: list[Any] = []
        try:
            self.head = self._add(temp_dir=self.folder, include_dashboard=False, no_monitor=True)
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """For `--ray`."""
        address: str = self.cluster.address
        return address

    def add(self) -> Any:
        """One more node."""
        self.nodes.append(self._add())
        return self.nodes[-1]

    def kill(self, node: Any) -> None:
        """Kill a node: raylet, agents, and workers."""
        self.nodes.remove(node)
        for process in self._processes(node):
            _end(process)

    def busy(self) -> list[Any]:
        """Nodes besides the head that have a worker of a capture."""
        return [node for node in self.nodes if self._capturers(node)]

    def capturers(self) -> list[psutil.Process]:
        """All workers of captures."""
        return [process for node in (self.head, *self.nodes) for process in self._capturers(node)]

    def close(self) -> None:
        """End all that was started."""
        for node in [*self.nodes, *([self.head] if hasattr(self, "head") else [])]:
            for process in self._processes(node):
                _end(process)
        for process in processes_in(self.folder):
            _end(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _add(self, **values: Any) -> Any:
        before = set(processes_in(self.folder))
        for _ in range(STARTS):
            # With ports that are given a raylet does not wait for its agents, which it does for 15 seconds at most (ray#65983).
            ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
            try:
                return self.cluster.add_node(
                    num_cpus=1, object_store_memory=100 << 20, include_log_monitor=False, **ports, **values
                )
            except Exception as error:
                # A busy machine: Ray gives up, and forgets what came up meanwhile.
                if "timed out" not in str(error):
                    raise
                failed = error
                self.cluster.head_node = self.cluster.head_node if before else None
                for process in processes_in(self.folder):
                    if process not in before:
                        _end(process)
        raise failed

    def _processes(self, node: Any) -> list[psutil.Process]:
        found = []
        for infos in node.all_processes.values():
            for info in infos:
                try:
                    found.append(psutil.Process(info.process.pid))
                except psutil.Error:
                    continue
        return found

    def _capturers(self, node: Any) -> list[psutil.Process]:
        return [process for parent in self._processes(node) for process in capturers(parent.pid)]


STARTS = 3
PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def driver(run: Path, address: str, workers: int = 2) -> subprocess.Popen[str]:
    """A process that captures on a cluster; it prints how many units were put back."""
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(run), address, str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | TOKEN,
    )


def capturers(pid: int) -> list[psutil.Process]:
    """Workers of captures among the processes that a process has started."""
    return children_with("Capturer", pid)


def until(true: Callable[[], bool], seconds: float) -> None:
    """Wait until something is so, and no longer than so many seconds."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"it is not so after {seconds:.0f} seconds")
        time.sleep(0.05)


def _end(process: psutil.Process) -> None:
    """Kill a process and all that it started."""
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return
    for member in family:
        try:
            member.kill()
        except psutil.Error:
            continue
