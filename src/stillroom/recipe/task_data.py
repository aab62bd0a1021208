"""What a task file of one's own is read from: itself, and the data that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stillroom.core.errors import RecipeError
from stillroom.core.strict_yaml import load_yaml

TEST = "test"
"""The split that is asked, where a task does not say."""


def data_of(described: dict[str, Any], path: Path) -> Path | None:
    """The data that a task names, beside the task file; None where it names none.

    Args:
        described: What the task file holds.
        path: The task file.
    """
    named: Any = described.get("data")
    if named is None:
        kwargs = described.get("dataset_kwargs")
        named = kwargs.get("data_files") if isinstance(kwargs, dict) else None
        if isinstance(named, dict):
            named = named.get(described.get("test_split", TEST))
        if isinstance(named, list) and len(named) == 1:
            named = named[0]
    return path.parent / named if isinstance(named, str | Path) else None


def files_of(path: Path) -> tuple[Path, ...]:
    """A task file and its data. A task file that cannot be read stands for itself: it is refused where it is read."""
    try:
        described = load_yaml(path.read_text(encoding="utf-8-sig"), str(path))[1]
    except (RecipeError, OSError, UnicodeDecodeError):
        return (path,)
    data = data_of(described, path) if isinstance(described, dict) else None
    return (path,) if data is None else (path, data)


def files_of_folder(folder: Path) -> list[Path]:
    """The files of a folder of lm-evaluation-harness's tasks, relative to it; and data elsewhere that they name."""
    inside = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    named = {
        data for path in inside if path.suffix in (".yaml", ".yml") for data in files_of(path)[1:] if data.is_file()
    }
    return [*(path.relative_to(folder) for path in inside), *sorted(named - set(inside))]
