"""From what a user names to the file that is run: a run, a package or a GGUF file. Knows nothing of engines."""

from __future__ import annotations

from pathlib import Path

from stillroom import files
from stillroom.errors import RunError
from stillroom.intake.inspect import require_safe
from stillroom.run import Run


def open_model(path: str | Path) -> Path:
    """The GGUF file behind a name, looked over before anything loads it. This is the only way to an engine.

    Args:
        path: A run's folder (its smallest accepted file is taken), or a GGUF file.

    Raises:
        RunError: There is nothing to run.
        InspectionRefused: The file is not safe to open.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise RunError(f"{path} is not a GGUF file.", "Give a run's folder or a GGUF file.")
        file = path
    else:
        run = Run.open(path)
        record = run.path / "export" / "export.json"
        if not record.is_file():
            raise RunError(f"{path}: the run has no exported file yet.", f"Do it: stillroom export {path}")
        found = files.read_json(record)["files"]
        if not found:
            raise RunError(
                f"{path}: the recipe exports no GGUF file.", "Add `export: {gguf: [Q8_0]}` to it and run it again."
            )
        file = run.path / min(found, key=lambda entry: entry["bytes"])["path"]
        if not file.is_file():
            raise RunError(f"{file} is missing.", f"Export it again: stillroom export {path}")
    require_safe(file)
    return file
