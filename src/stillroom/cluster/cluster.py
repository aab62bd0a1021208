"""Which stages of a run are done by several processes, and how. Where they are done changes nothing in what they are."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass

from stillroom.cluster.node import node_of
from stillroom.cluster.nodes import Nodes
from stillroom.core import extras
from stillroom.core.errors import UsageError
from stillroom.core.progress import Progress
from stillroom.runs.run import Run, Stage
from stillroom.runs.stages import StageFunction, StageSpec

TRAINED = frozenset({"distill", "baseline"})
"""Stages in which processes train together."""


@dataclass(frozen=True)
class Cluster:
    """What `stillroom run` was told.

    Attributes:
        workers: Processes that train together on this machine; 1 trains in the driver itself, unless there are more machines.
        ray: Address of a Ray cluster, ``auto``, or ``local`` for one that is started here; None captures in the driver.
        capture_workers: Workers of the capture; None takes one per GPU, or else per core.
        nodes: The machines that train together; None is this one alone.
    """

    workers: int = 1
    ray: str | None = None
    capture_workers: int | None = None
    nodes: Nodes | None = None

    @property
    def machines(self) -> int:
        """Machines that train together."""
        return 1 if self.nodes is None else self.nodes.node.count

    def led(self) -> contextlib.AbstractContextManager[None]:
        """As :meth:`Nodes.led`, where there are several machines."""
        return contextlib.nullcontext() if self.nodes is None else self.nodes.led()

    def ask(self, stages: Iterable[str]) -> None:
        """As :meth:`Nodes.ask`, where there are several machines and one of these stages, which are to come, needs them."""
        if self.nodes is not None and not TRAINED.isdisjoint(stages):
            self.nodes.ask()

    def meet(self, run: Run) -> None:
        """As :meth:`Nodes.meet`, where there are several machines."""
        if self.nodes is not None:
            self.nodes.meet(run.path)

    def function(self, spec: StageSpec) -> StageFunction:
        """The function that does a stage."""
        own = spec.load()
        if spec.name == "capture" and self.ray is not None:
            address = self.ray

            def capture(run: Run, stage: Stage, progress: Progress) -> None:
                from stillroom.cluster.ray_capture import capture_on_ray

                capture_on_ray(run, address, self.capture_workers, progress)
                # Seals the units, and captures what is still missing, which is nothing.
                own(run, stage, progress)

            return capture
        if spec.name in TRAINED and self.workers * self.machines > 1:

            def train(run: Run, stage: Stage, progress: Progress) -> None:
                from stillroom.cluster.launch import train_together

                train_together(run, stage, self.workers, progress, nodes=self.nodes)

            return train
        return own


def cluster_of(
    workers: int | None,
    ray: str | None,
    capture_workers: int | None,
    nodes: str | None = None,
    node_rank: int | None = None,
    rendezvous: str | None = None,
) -> Cluster | None:
    """What the options of the command line say; None where one process does all.

    Raises:
        MissingDependency: Ray is asked for and not installed.
        UsageError: Several machines are asked for, and it is not said which they are, or Ray is asked for too.
    """
    if ray is not None and nodes is not None:
        raise UsageError(
            "--nodes and --ray are two ways to use several machines.",
            "Capture first (--ray ADDRESS --until capture), then give --nodes.",
        )
    if ray is not None:
        extras.require("cluster", "--ray needs {}, which is not installed.")
    node = node_of(nodes, node_rank, rendezvous, workers or 1, os.environ)
    if ray is None and node is None and (workers or 1) == 1:
        return None
    return Cluster(workers or 1, ray, capture_workers, Nodes(node) if node is not None else None)
