"""From what a user names to the file that is run: a run, a package or a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from stillroom.core import files
from stillroom.core.errors import RunError
from stillroom.inspection.inspect import require_safe
from stillroom.runs.run import Run
from stillroom.serving.passport import passport_of_file, passport_of_run
from stillroom.switch import require_on

if TYPE_CHECKING:
    from stillroom.verification.verification import VerifiedPackage

ENVELOPE = "package.dsse"


@dataclass
class OpenedModel:
    """A model that was looked over. Use it as a context manager, or call :meth:`close`.

    Attributes:
        gguf: The file to run.
        name: What it is called.
        source: What the user named.
    """

    gguf: Path
    name: str
    source: Path
    _package: VerifiedPackage | None = None
    _passport: dict[str, Any] = field(default_factory=dict)

    def passport(self) -> dict[str, Any]:
        """What is known of this model, and who says so."""
        if self._package is not None:
            found: dict[str, Any] = self._package.passport()
            return {"kind": "package", **found}
        return self._passport

    @property
    def identity(self) -> str:
        """The same as long as the file is, also after a restart: a package is opened as a new private copy each time."""
        if self._package is not None:
            return f"{self._package.digest}-{self.gguf.name}"
        stat = self.gguf.stat()
        return f"{stat.st_size}-{stat.st_mtime_ns}-{self.name}"

    def recheck(self) -> None:
        """Ask again whether it may run: for a package, its revocation and expiry.

        Raises:
            VerificationFailed: It may not.
        """
        if self._package is not None:
            self._package.recheck()

    def close(self) -> None:
        """Give up what was opened for it."""
        if self._package is not None:
            self._package.close()

    def __enter__(self) -> OpenedModel:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


def open_model(path: str | Path) -> OpenedModel:
    """The model behind a name, looked over before anything loads it. This is the only way to an engine.

    Args:
        path: A package's folder, a run's folder (its smallest accepted file is taken), or a GGUF file. A file inside a
            package is opened as the package is.

    Raises:
        SwitchedOff: The owner's switch is off; nothing was opened.
        RunError: There is nothing to run.
        InspectionRefused: The file is not safe to open.
        VerificationFailed: The package cannot prove what it claims.
    """
    require_on()
    path = Path(path)
    if not path.exists():
        raise RunError(
            f"{path}: there is no such file or folder.", "Give a package, the folder of a run, or a GGUF file."
        )
    if (path / ENVELOPE).is_file():
        from stillroom.verification import verify

        package = verify(path)
        return OpenedModel(package.gguf, package.name, path, package)
    if path.is_file():
        from stillroom.verification.inside import open_inside, package_around

        if path.suffix.lower() != ".gguf":
            raise RunError(f"{path} is not a GGUF file.", "Give a package, a run's folder or a GGUF file.")
        around = package_around(path)
        if around is not None:
            package, file = open_inside(around, path)
            return OpenedModel(file, package.name, path, package)
        require_safe(path)
        return OpenedModel(path, path.stem, path, _passport=passport_of_file(path))
    run = Run.open(path)
    record = run.path / "export" / "export.json"
    if not record.is_file():
        raise RunError(f"{path}: the run has no exported file yet.", f"Do it: stillroom export {path}")
    found = files.read_json(record)["files"]
    entries = [entry for entry in found if str(entry["path"]).endswith(".gguf")]
    if not entries:
        raise RunError(
            f"{path}: the recipe exports no GGUF file.", "Add `export: {gguf: [Q8_0]}` to it and run it again."
        )
    entry = min(entries, key=lambda entry: int(entry["bytes"]))
    file = run.path / entry["path"]
    if not file.is_file():
        raise RunError(f"{file} is missing.", f"Export it again: stillroom export {path}")
    require_safe(file)
    return OpenedModel(file, run.recipe.name, path, _passport=passport_of_run(run, entry))
