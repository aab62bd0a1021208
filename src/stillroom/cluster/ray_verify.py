"""A cache's files compared with its manifest by workers of a Ray cluster, one file a task, through the queue of the capture.

Workers only look. What is damaged is set aside by the driver, as where no Ray is used, once all files were looked at.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from stillroom.cluster.ray_capture import Queue, connected
from stillroom.core.errors import EnvironmentProblem, SignalError
from stillroom.core.progress import Progress
from stillroom.core.store import is_url
from stillroom.signals.cache.manifest import FileEntry, Manifest
from stillroom.signals.cache.parts import looked_at
from stillroom.signals.cache.reader import Difference


class Verifier:
    """An actor: looks at files of a cache."""

    def __init__(self, where: str) -> None:
        self._where = where
        manifest, self._difference = looked_at(where)
        self._entries = {entry.name: entry for entry in _files(manifest)}

    def ready(self) -> int:
        """Its process, once it has read the manifest."""
        return os.getpid()

    def make(self, name: str) -> str | None:
        """How a file differs from its entry, or None."""
        entry = self._entries.get(name)
        if entry is None:
            raise SignalError(
                f"{self._where}: {name} is in the manifest that the driver read, and not in the one that a worker read.",
                "Give a path or URL that is the same cache on every machine, and verify it while nothing changes it.",
            )
        return self._difference(entry)


class _Looks(Queue):
    """The queue of the files that are to be looked at."""

    worker = Verifier
    found: dict[str, str | None]

    def _keep(self, name: str, result: Any) -> None:
        self.found[name] = result


def difference_on_ray(where: str, address: str, workers: int | None, progress: Progress) -> Difference:
    """Have a Ray cluster look at every file of a cache, and give what it found.

    Args:
        where: The cache's folder, which every node reaches by the same path, or its URL.
        address: Of the cluster, ``auto``, or ``local``.
        workers: Workers at most; None takes one per core.
        progress: Draws the bar.

    Returns:
        What says of a file how it differs. It looks at a damaged one once more from here, and raises EnvironmentProblem where
        that one is whole: the machines do not see the same cache.

    Raises:
        SignalError: There is no cache.
        CacheDamaged: The manifest is damaged.
        EnvironmentProblem: The cluster cannot be reached, or workers cannot start on it.
        SwitchedOff: The owner's switch was turned off: the workers are stopped.
    """
    where = where if is_url(where) else str(Path(where).absolute())
    manifest, look = looked_at(where)
    entries = _files(manifest)
    sizes = {entry.name: entry.bytes for entry in entries}
    with connected(address, workers) as ray, progress.task("verify", total=sum(sizes.values()), unit="bytes") as task:
        cores = int(ray.cluster_resources().get("CPU", 1))
        count = max(1, min(len(entries), cores, workers or cores))
        queue = _Looks(ray, where, entries, count, 0, task, sizes, progress)
        queue.found = {}
        queue.work()

    def difference(entry: FileEntry) -> str | None:
        # One that was added meanwhile was given to no worker.
        reason = queue.found[entry.name] if entry.name in queue.found else look(entry)
        if reason is not None and look(entry) is None:
            raise EnvironmentProblem(
                f"{where}: {entry.name} {reason} for a worker of the cluster, and is whole from here.",
                "Give a path or URL that is the same cache on every machine, and verify it while nothing changes it.",
            )
        return reason

    return difference


def _files(manifest: Manifest) -> list[FileEntry]:
    """All that a manifest names."""
    return [entry for entry in (manifest.model, manifest.index, *manifest.shards) if entry is not None]
