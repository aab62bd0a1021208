"""`stillroom cluster check --ray`: the machines of a Ray cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from stillroom.cluster.check import Checked, Facts, Finding, Seen, Shared, facts_of_here, findings
from stillroom.cluster.ray_capture import connected
from stillroom.core.errors import first_line

ANSWER_SECONDS = 180.0
"""What a machine has to start a worker and to answer."""


class Examiner:
    """An actor on one machine."""

    def facts(self, places: list[str], key: str, node: str) -> str:
        """What it says of itself, as JSON."""
        return facts_of_here(places, key, node).model_copy(update={"token": token_is_on()}).model_dump_json()

    def clock(self) -> float:
        """Seconds since 1970."""
        return time.time()


def token_is_on() -> bool:
    """Whether the processes of Ray on this machine ask for a token: as Ray itself answers, or else as the environment says."""
    import importlib

    try:
        raylet: Any = importlib.import_module("ray._raylet")
        return bool(raylet.get_authentication_mode() != raylet.AuthenticationMode.DISABLED)
    except (ImportError, AttributeError):
        return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def check_ray(address: str, places: Sequence[str], memory_bytes: int = 0) -> Checked:
    """Every machine of a Ray cluster; this one, whose versions count, is first.

    Raises:
        MissingDependency: Ray is not installed.
        UsageError: Its authentication was turned off here.
        EnvironmentProblem: There is no cluster at the address.
    """
    key = f"cluster-check-{os.urandom(8).hex()}"
    checked = Checked()
    with Shared(places, key), connected(address) as ray:
        asked = time.time()
        checked.nodes.append(Seen(facts_of_here(places, key, "(this machine)"), asked, time.time()))
        nodes = [node for node in ray.nodes() if node["Alive"]]
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        examiner = ray.remote(num_cpus=0, max_restarts=0)(Examiner)
        flying: dict[Any, tuple[str, Any]] = {}
        for node in nodes:
            name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:6]})"
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            actor = examiner.options(scheduling_strategy=where).remote()
            flying[actor.facts.remote(list(places), key, name)] = (name, actor)
        until = time.monotonic() + ANSWER_SECONDS
        while flying and (left := until - time.monotonic()) > 0:
            ready, _ = ray.wait(list(flying), num_returns=1, timeout=left)
            for reference in ready:
                name, actor = flying.pop(reference)
                try:
                    facts = Facts.model_validate_json(ray.get(reference))
                    # Asked for by itself, because the first answer waits for its worker's start.
                    asked = time.time()
                    clock = ray.get(actor.clock.remote(), timeout=ANSWER_SECONDS)
                    seen = Seen(facts.model_copy(update={"clock": clock}), asked, time.time())
                except (ray.exceptions.RayError, ValueError) as error:
                    checked.findings.append(Finding(name, _why(ray, error)))
                    continue
                checked.nodes.append(seen)
        checked.findings += [
            Finding(name, f"no worker answered there within {ANSWER_SECONDS:.0f} s") for name, _ in flying.values()
        ]
    checked.findings += findings(checked.nodes, memory_bytes)
    return checked


def _why(ray: Any, error: Exception) -> str:
    """Why a machine could not be looked at."""
    last = (str(error).strip().splitlines() or [first_line(error)])[-1][:300].rstrip(".")
    own = isinstance(error, ray.exceptions.RayTaskError | ValueError)
    todo = (
        "is this version of Stillroom installed there"
        if own
        else "was it started with RAY_AUTH_MODE=token and the token of this machine"
    )
    return f"the check cannot run there ({last}): {todo}?"
