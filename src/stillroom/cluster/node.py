"""Which of the machines that train together this one is: what the options say, or SLURM's variables."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from stillroom.core.errors import UsageError

AUTO = "auto"
"""For ``--nodes``: as many as SLURM's step has."""
FIRST_PORT, PORTS = 20_000, 10_000
"""Without ``--rendezvous`` the port comes from SLURM's job number: below those that systems give away."""


@dataclass(frozen=True)
class Node:
    """A machine's place among those that train together.

    Attributes:
        rank: Its number, from 0.
        count: Nodes.
        host: Address of node 0.
        port: Where they meet there.
        workers: Processes that train on each node.
    """

    rank: int
    count: int
    host: str
    port: int
    workers: int = 1


def node_of(
    nodes: str | None, rank: int | None, rendezvous: str | None, workers: int, environment: Mapping[str, str]
) -> Node | None:
    """What the options say, and SLURM's variables where they leave something out; None where one machine trains.

    Args:
        nodes: A number, or ``auto`` for that of SLURM.
        rank: This node's number.
        rendezvous: ``HOST:PORT`` of node 0.
        workers: Processes on each node.
        environment: Variables.

    Raises:
        UsageError: Something is missing or does not fit together.
    """
    if nodes is None:
        if rank is not None or rendezvous is not None:
            raise UsageError("--node-rank and --rendezvous are for several machines.", "Give --nodes too.")
        return None
    if nodes != AUTO and (not nodes.isdecimal() or int(nodes) < 1):
        raise UsageError(
            f"--nodes {nodes} is neither a number from 1 on nor `{AUTO}`.", "Give how many machines train."
        )
    count = 0 if nodes == AUTO else int(nodes)
    if nodes == AUTO or rank is None or rendezvous is None:
        found = _of_slurm(environment)
        if found is None and count != 1:
            raise UsageError(
                f"--nodes {nodes}: which node this is, and where node 0 is, are unknown: SLURM did not start this process.",
                "Give --nodes, --node-rank (0 on one machine, 1 on the next …) and --rendezvous HOST:PORT, the same on all.",
            )
        if found is not None:
            there, number, place = found
            if count not in (0, there):
                raise UsageError(
                    f"--nodes {count}: SLURM started this step on {there}.",
                    f"Give --nodes {AUTO}, or srun --nodes {count}.",
                )
            count = there
            rank = number if rank is None else rank
            rendezvous = place if rendezvous is None else rendezvous
    if rank is not None and not 0 <= rank < count:
        raise UsageError(f"--node-rank {rank}: the numbers of {count} nodes are 0 to {count - 1}.", "Give one of them.")
    if count == 1:
        return None
    host, port = _place(rendezvous or "")
    assert rank is not None
    return Node(rank, count, host, port, workers)


def _place(rendezvous: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``, where an address of IPv6 is in brackets; no name is looked up."""
    host, _, port = rendezvous.rpartition(":")
    inside = host[1:-1] if host.startswith("[") and host.endswith("]") else None
    if not _is_address(inside, ipaddress.IPv6Address) if inside is not None else not _is_host(host):
        of_six = _is_address(rendezvous, ipaddress.IPv6Address) or _is_address(host, ipaddress.IPv6Address)
        raise UsageError(
            f"--rendezvous {rendezvous} is not HOST:PORT.",
            "Write an IPv6 address in brackets: [ADDRESS]:PORT."
            if of_six
            else "Give a name or address of node 0 and a free port there.",
        )
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65_536):
        raise UsageError(
            f"--rendezvous {rendezvous} is not HOST:PORT.", "Give a port from 1 to 65535 that is free on node 0."
        )
    return inside or host, int(port)


def _is_host(text: str) -> bool:
    """Whether this can be a host's name, or is an address of IPv4."""
    if re.fullmatch(r"[\d.]+", text):
        return _is_address(text, ipaddress.IPv4Address)
    return re.fullmatch(r"\w([\w-]*\w)?(\.\w([\w-]*\w)?)*\.?", text) is not None and len(text) < 254


def _is_address(text: str, kind: type[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _of_slurm(environment: Mapping[str, str]) -> tuple[int, int, str] | None:
    """Nodes, this one's number, and ``HOST:PORT`` of the first; of the step, or else of the job."""

    def value(name: str) -> str:
        return environment.get(f"SLURM_STEP_{name}") or environment.get(f"SLURM_JOB_{name}") or ""

    count, number = value("NUM_NODES"), environment.get("SLURM_NODEID", "")
    job, hosts = environment.get("SLURM_JOB_ID", ""), value("NODELIST")
    if not (count.isdecimal() and number.isdecimal() and job.isdecimal() and hosts):
        return None
    tasks = environment.get("SLURM_STEP_NUM_TASKS", count)
    if tasks != count:
        raise UsageError(
            f"srun started {tasks} tasks on {count} nodes: --nodes needs one on each, which starts --workers itself.",
            "Give srun --ntasks-per-node=1.",
        )
    return int(count), int(number), f"{first_host(hosts)}:{FIRST_PORT + int(job) % PORTS}"


def first_host(hosts: str) -> str:
    """The first of SLURM's list of hosts, such as ``gpu-01`` of ``gpu-[01-04,07],big3``."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", hosts).split(",")[0]
