"""Which stages of a run are done by several processes, and how. Where they are done changes nothing in what they are."""

from __future__ import annotations

from dataclasses import dataclass

from stillroom.core import extras
from stillroom.core.progress import Progress
from stillroom.runs.run import Run, Stage
from stillroom.runs.stages import StageFunction, StageSpec


@dataclass(frozen=True)
class Cluster:
    """What `stillroom run` was told.

    Attributes:
        workers: Processes that train together on this machine; 1 trains in the driver itself.
        ray: Address of a Ray cluster, ``auto``, or ``local`` for one that is started here; None captures in the driver.
        capture_workers: Workers of the capture; None takes one per GPU, or else per core.
    """

    workers: int = 1
    ray: str | None = None
    capture_workers: int | None = None

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
        if spec.name in ("distill", "baseline") and self.workers > 1:

            def train(run: Run, stage: Stage, progress: Progress) -> None:
                from stillroom.cluster.launch import train_together

                train_together(run, stage, self.workers, progress)

            return train
        return own


def cluster_of(workers: int | None, ray: str | None, capture_workers: int | None) -> Cluster | None:
    """What the options of the command line say; None where one process does all.

    Raises:
        MissingDependency: Ray is asked for and not installed.
    """
    if ray is not None:
        extras.require("cluster", "--ray needs {}, which is not installed.")
    if ray is None and (workers or 1) == 1:
        return None
    return Cluster(workers or 1, ray, capture_workers)
