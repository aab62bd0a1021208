"""A file inside a package is opened as its package is: verified first, and then from the copy.

A user who names `PACKAGE/weights/model.gguf` means a model that can prove itself; taking the file as it is there would be a
way around the proof.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from stillroom.core.errors import VerificationFailed
from stillroom.verification.manifest import OUTSIDE
from stillroom.verification.verification import VerifiedPackage, verify

DOCUMENTS = ("policy.json", "provenance.json")
"""What a package has besides its signatures: one whose signatures were taken away is a package still."""


def package_around(path: Path) -> Path | None:
    """The package that a file is in, by the name that was given or by what the name leads to; None where it is in none."""
    for place in _places(path):
        for folder in place.parents:
            if any((folder / name).exists() for name in OUTSIDE) or all((folder / name).exists() for name in DOCUMENTS):
                return folder
    return None


def open_inside(folder: Path, path: Path) -> tuple[VerifiedPackage, Path]:
    """Verify a package for one of its files; the caller closes it.

    Args:
        folder: The package.
        path: The file, as :func:`package_around` was asked.

    Returns:
        The package, and the file in its private copy.

    Raises:
        VerificationFailed: The package cannot prove what it claims, or its list does not name this file.
    """
    package = verify(folder)
    name = next(place.relative_to(folder) for place in _places(path) if place.is_relative_to(folder)).as_posix()
    if package.manifest.digest_of(name) is None:
        package.close()
        raise VerificationFailed(f"{path}: `{name}` is not on the signed list of {folder}.", "Name a file of the list.")
    return package, package.folder / name


def _places(path: Path) -> tuple[Path, Path]:
    """Where a name says that a file is, and where it leads to."""
    # `resolve` alone would follow a link out of the package, and `..` is no folder of it.
    return Path(os.path.abspath(path)), path.resolve()  # noqa: PTH100


@contextlib.contextmanager
def checked(path: Path) -> Iterator[Path]:
    """The file to read for a name: inside a package the copy that was verified, gone at the end; elsewhere the file itself.

    Raises:
        VerificationFailed: As in :func:`open_inside`.
    """
    folder = package_around(path)
    if folder is None:
        yield path
        return
    package, file = open_inside(folder, path)
    with package:
        yield file
