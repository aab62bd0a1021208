"""Removing what was kept: listed before, irreversible after.

What the switch and the memory of revocations need is never removed: a purge must not turn anything on or forgive.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stillroom.core import files
from stillroom.core.errors import UsageError
from stillroom.switch.places import Places


@dataclass(frozen=True)
class Item:
    """One thing to be removed.

    Attributes:
        kind: "sessions", "cache" or "weights".
        path: Where it is.
        bytes: How much.
    """

    kind: str
    path: Path
    bytes: int


def listing(places: Places, weights: Sequence[Path] = ()) -> list[Item]:
    """What a purge would remove.

    Args:
        places: Whose.
        weights: Files or folders of models that the user names.

    Raises:
        UsageError: One of them is not a model's.
    """
    found = [
        Item(kind, path, files.folder_bytes(path))
        for kind, path in (("sessions", places.data / "sessions"), ("cache", places.data / "cache"))
        if path.exists()
    ]
    for path in weights:
        if not path.exists():
            raise UsageError(f"{path} does not exist.")
        if not _holds_weights(path):
            raise UsageError(
                f"{path} is not a model: it is no GGUF or safetensors file, run or package.", "Name the model itself."
            )
        found.append(Item("weights", path, files.folder_bytes(path)))
    return found


def purge(places: Places, items: Sequence[Item]) -> list[str]:
    """Remove what was listed; returns what was removed. The key of the sessions goes first."""
    removed = []
    for item in items:
        if item.kind == "sessions":
            from stillroom.serving.sessions import SessionStore

            SessionStore(places.data / "sessions").purge()
        if item.path.is_symlink() or item.path.is_file():
            item.path.unlink()
        else:
            shutil.rmtree(item.path)
        removed.append(str(item.path))
    return removed


def _holds_weights(path: Path) -> bool:
    if path.is_file():
        return path.suffix in (".gguf", ".safetensors")
    marks = ("recipe.yaml", "package.dsse", "config.json")
    return path.is_dir() and any((path / mark).is_file() for mark in marks)
