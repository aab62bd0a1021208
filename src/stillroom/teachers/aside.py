"""What is in the way in the folder of a run's own cache: what was paid for is set aside, and anything else deleted."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

from stillroom.runs.stages import MORE_TEACHERS
from stillroom.signals.cache.manifest import NAME as MANIFEST

FINGERPRINT = "fingerprint.json"
"""Beside the manifest of an endpoint's cache: by which its teacher is known again."""
EARLIER = "earlier"
"""Inside the cache's folder: caches of other models or settings."""
MOVING, TAKEN = "moving", "taken"
"""Inside that, one that is being put there, and one that is being taken up again."""


def settle(folder: Path) -> None:
    """Go on with what a kill interrupted, before anything is read from the folder or begun in it."""
    if (folder / EARLIER / MOVING).is_dir():
        _put_aside(folder)
    if (folder / EARLIER / TAKEN).is_dir():
        _take(folder)


def earlier(folder: Path) -> list[Path]:
    """The caches that are set aside in a cache's folder."""
    return sorted(path for path in (folder / EARLIER).glob("*") if path.is_dir())


def make_way(folder: Path) -> str:
    """Empty a cache's folder, but for what belongs to other teachers; returns what became of the cache, for the user."""
    if (folder / FINGERPRINT).is_file():
        _put_aside(folder)
        return "  the cache of an earlier capture does not serve this one: it is set aside, and kept"
    for path in _contents(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return "  the cache of an earlier capture does not serve this one: beginning anew"


def take_up(cache: Path, folder: Path) -> None:
    """Put a cache that was set aside back into the folder, which has none."""
    cache.rename(cache.with_name(TAKEN))
    _take(folder)


def _take(folder: Path) -> None:
    taken = folder / EARLIER / TAKEN
    _move(taken, folder)
    taken.rmdir()


def _put_aside(folder: Path) -> None:
    moving = folder / EARLIER / MOVING
    moving.mkdir(parents=True, exist_ok=True)
    _move(folder, moving)
    moving.rename(next(path for n in itertools.count() if not (path := moving.with_name(str(n))).exists()))


def _move(source: Path, target: Path) -> None:
    """Move a cache's files, the manifest last: what has one is whole, or was."""
    for path in sorted(_contents(source), key=lambda path: path.name == MANIFEST):
        path.rename(target / path.name)


def _contents(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name not in (MORE_TEACHERS, EARLIER)]
