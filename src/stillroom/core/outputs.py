"""What a command writes is nothing that it reads, and no key: otherwise it is refused before anything is written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from stillroom.core.errors import UsageError
from stillroom.core.secret import holds_secret


def require_output(path: Path, inputs: Iterable[Path | None] = ()) -> None:
    """Try whether a file can be written, by writing beside it. What a command reads takes hours at times: do this first.

    Args:
        path: The file.
        inputs: Files and folders that the command reads; None is passed over.

    Raises:
        UsageError: It is a folder, its folder cannot be made or written, or :func:`require_apart` refuses it.
    """
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder.", "Name a file for the output.")
        require_apart(path, inputs)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".partial"):
            pass
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.", "Name another file for the output.") from None


def require_apart(path: Path, inputs: Iterable[Path | None] = ()) -> None:
    """Refuse an output that would replace an input, a file in an input folder, or a key. Touches nothing.

    Args:
        path: A file or a folder to write.
        inputs: Files and folders that are read; None is passed over.

    Raises:
        UsageError: Names the output, and the input that it would replace.
    """
    for given in inputs:
        if given is None:
            continue
        if _is_same(path, given):
            raise UsageError(f"{path} is read here, and would be overwritten.", "Name another output.")
        if path.exists() and _is_in(path, given):
            raise UsageError(
                f"{path} is a file of {given}, which is read here; it would be overwritten.", "Name another output."
            )
        if _is_in(given, path):
            raise UsageError(
                f"{given} is read here, and is in {path}, which would be replaced.", "Name another output."
            )
    if holds_secret(path):
        raise UsageError(f"{path} holds a key, and a key is never overwritten.", "Name another output.")


def _is_same(path: Path, other: Path) -> bool:
    """Whether both are one file or folder, also by a link."""
    try:
        return path.samefile(other)
    except OSError:
        return path.resolve() == other.resolve()


def _is_in(path: Path, folder: Path) -> bool:
    """Whether a path, or what it links to, is below a folder."""
    root = folder.resolve()
    return folder.is_dir() and (root in path.resolve().parents or root in (path.parent.resolve() / path.name).parents)
