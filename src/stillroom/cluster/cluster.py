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
        ray_nodes: Machines of the Ray cluster that train together, after the capture; None trains here.
    """

    workers: int = 1
    ray: str | None = None
    capture_workers: int | None = None
    nodes: Nodes | None = None
    ray_nodes: int | None = None

    @property
    def machines(self) -> int:
        """Machines that train together."""
        if self.ray_nodes is not None:
            return self.ray_nodes
        return 1 if self.nodes is None else self.nodes.node.count

    @property
    def trains_here(self) -> bool:
        """Whether this machine is one of those that train."""
        return self.ray_nodes is None

    def led(self) -> contextlib.AbstractContextManager[None]:
        """As :meth:`Nodes.led`, where there are several machines."""
        return contextlib.nullcontext() if self.nodes is None else self.nodes.led()

    def ask(self, stages: Iterable[str]) -> None:
        """As :meth:`Nodes.ask`, where there are several machines and one of these stages, which are to come, needs them."""
        if self.nodes is not None and not TRAINED.isdisjoint(stages):
            self.nodes.ask()

    def meet(self, run: Run) -> None:
        """As :meth:`Nodes.meet`, where there are several machines; those of Ray are counted."""
        if self.nodes is not None:
            self.nodes.meet(run.path)
        if self.ray is not None and self.ray_nodes is not None:
            from stillroom.cluster.ray_train import require_machines

            require_machines(self.ray, self.ray_nodes, self.workers)

    def here(self, specs: list[StageSpec]) -> list[StageSpec]:
        """Those of a run's stages that are done from this process; :meth:`finish` has machines of Ray do the others.

        Args:
            specs: The stages that are wanted, in order.
        """
        names = [spec.name for spec in specs]
        if self.trains_here or not TRAINED.intersection(names):
            return specs
        return specs[: names.index("capture") + 1]

    def finish(self, run: Run, until: str | None, progress: Progress) -> None:
        """Have machines of Ray do what is left of a run. Errors as of :func:`stillroom.cluster.ray_train.train_on_ray`."""
        from stillroom.cluster.ray_train import train_on_ray

        assert self.ray is not None
        assert self.ray_nodes is not None
        train_on_ray(run, self.ray, self.ray_nodes, self.workers, until, progress)

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
        UsageError: Several machines are asked for, and it is not said which they are, or Ray is to give them too.
    """
    if ray is not None:
        ray_nodes = _nodes_of_ray(ray, nodes, node_rank, rendezvous)
        extras.require("cluster", "--ray needs {}, which is not installed.")
        return Cluster(workers or 1, ray, capture_workers, None, ray_nodes)
    node = node_of(nodes, node_rank, rendezvous, workers or 1, os.environ)
    if node is None and (workers or 1) == 1:
        return None
    return Cluster(workers or 1, None, capture_workers, Nodes(node) if node is not None else None)


def _nodes_of_ray(ray: str, nodes: str | None, node_rank: int | None, rendezvous: str | None) -> int | None:
    """How many machines of a Ray cluster train; None trains here. Errors as of :func:`cluster_of`."""
    if node_rank is not None or rendezvous is not None:
        raise UsageError(
            "--node-rank and --rendezvous are for machines that are each given the command; with --ray, Ray gives machines.",
            "Leave them out: --ray ADDRESS --nodes NUMBER on one machine is all.",
        )
    if nodes is None:
        return None
    if not nodes.isdecimal() or int(nodes) < 1:
        raise UsageError(
            f"--nodes {nodes}: with --ray it is a number from 1 on.", "Give how many machines of the Ray cluster train."
        )
    if ray == "local":
        raise UsageError(
            f"--nodes {nodes} --ray local: the cluster that is started here is this machine alone.",
            "Leave --nodes out (--workers trains in several processes here), or give the address of a cluster.",
        )
    return int(nodes)
