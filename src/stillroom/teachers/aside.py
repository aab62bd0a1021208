"""Caches of endpoints that a run does not need at the moment: what was paid for is set aside, and never deleted."""

from __future__ import annotations

import itertools
from pathlib import Path

from stillroom.runs.stages import MORE_TEACHERS
from stillroom.signals.cache.manifest import NAME as MANIFEST

FINGERPRINT = "fingerprint.json"
"""Beside the manifest of an endpoint's cache: by which its teacher is known again."""
EARLIER = "earlier"
"""Inside the folder of a run's own cache: caches of other models or settings."""
MOVING = "moving"
"""Inside that, the one that is being put there."""


def is_paid(folder: Path) -> bool:
    """Whether a cache is of an endpoint, which may have been paid for it."""
    return (folder / FINGERPRINT).is_file()


def is_moving(folder: Path) -> bool:
    """Whether a kill left the cache of a folder half set aside."""
    return (folder / EARLIER / MOVING).is_dir()


def earlier(folder: Path) -> list[Path]:
    """The caches that are set aside in a cache's folder."""
    return sorted((folder / EARLIER).iterdir()) if (folder / EARLIER).is_dir() else []


def put_aside(folder: Path) -> None:
    """Set the cache of a folder aside. What a kill interrupted is gone on with: nothing was begun in the folder since."""
    aside = folder / EARLIER
    _move(folder, aside / MOVING)
    (aside / MOVING).rename(next(path for n in itertools.count() if not (path := aside / str(n)).exists()))


def take_up(cache: Path, folder: Path) -> None:
    """Put a cache that was set aside back into the folder, which has none."""
    _move(cache, folder)
    cache.rmdir()


def _move(source: Path, target: Path) -> None:
    """Move a cache's files, the manifest last: what has one is whole, or was."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir(), key=lambda path: path.name == MANIFEST):
        if path.name not in (MORE_TEACHERS, EARLIER):
            path.rename(target / path.name)
