"""`srun stillroom cluster check`: every process of a SLURM job step looks at its machine, and the first one gathers what they
say in the first shared place.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence

from stillroom.cluster.check import Checked, Facts, Finding, Seen, Shared, facts_of_here, findings
from stillroom.core.errors import StillroomError, UsageError
from stillroom.core.store import Store, open_store

ANSWER_SECONDS = 120.0
"""What the processes have to find what the first one put, and to answer."""
POLL_SECONDS = 0.5


def tasks_of(environment: Mapping[str, str]) -> tuple[int, int, str] | None:
    """This process's number, how many there are, and a name for the job step; None outside of one, and where there is one."""
    count, rank = environment.get("SLURM_NTASKS", ""), environment.get("SLURM_PROCID", "")
    if not (count.isdecimal() and rank.isdecimal()) or int(count) < 2:
        return None
    step = f"{environment.get('SLURM_JOB_ID', '0')}.{environment.get('SLURM_STEP_ID', '0')}"
    return int(rank), int(count), step


def check_srun(places: Sequence[str], rank: int, count: int, step: str, memory_bytes: int = 0) -> Checked:
    """What all processes say, in the first one; in another only what it says itself.

    Args:
        places: Folders and URLs; the first is where the processes meet.
        rank: This process's number.
        count: Processes.
        step: A name that they have in common.
        memory_bytes: What the teacher's weights take.

    Raises:
        UsageError: There is no place to meet.
    """
    if not places:
        raise UsageError("srun: the processes have no place to meet.", "Give the recipe, or a place: --at FOLDER|URL.")
    key = f"cluster-check-{step}"
    node = f"{socket.gethostname()} (process {rank})"
    if rank == 0:
        with Shared(places, key):
            return _gather(places, key, node, count, memory_bytes)
    asked = time.time()
    store = _opened(places[0])
    until = time.monotonic() + ANSWER_SECONDS
    while store is not None and _get(store, key) is None and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    facts = facts_of_here(places, key, node)
    nodes = [Seen(facts, asked, time.time())]
    try:
        if store is not None:
            store.put(f"{key}-{rank}", facts.model_dump_json().encode())
    except (StillroomError, OSError):
        # The first process hears nothing of this one, and says so.
        pass
    return Checked(nodes, findings(nodes, memory_bytes))


def _gather(places: Sequence[str], key: str, node: str, count: int, memory_bytes: int) -> Checked:
    asked = time.time()
    nodes = [Seen(facts_of_here(places, key, node), asked, time.time())]
    missing = set(range(1, count))
    store = _opened(places[0])
    until = time.monotonic() + ANSWER_SECONDS
    while store is not None and missing and time.monotonic() < until:
        for rank in sorted(missing):
            data = _get(store, f"{key}-{rank}")
            if data is None:
                continue
            nodes.append(Seen(Facts.model_validate_json(data), asked, time.time()))
            missing.discard(rank)
            store.remove(f"{key}-{rank}")
        time.sleep(POLL_SECONDS)
    silent = [
        Finding(f"process {rank}", f"nothing was heard of it within {ANSWER_SECONDS:.0f} s in {places[0]}")
        for rank in sorted(missing)
    ]
    return Checked(nodes, silent + findings(nodes, memory_bytes))


def _opened(where: str) -> Store | None:
    try:
        return open_store(where)
    except StillroomError:
        return None


def _get(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except (StillroomError, OSError):
        return None


def step_of_here() -> tuple[int, int, str] | None:
    """:func:`tasks_of` this process."""
    return tasks_of(os.environ)
