"""Every error a user can meet, as one tree.

::

    StillroomError
    ├── UsageError                exit 2: the request cannot be carried out as written
    │   ├── RecipeError             a key, value or file of the recipe
    │   ├── CorpusError             text that is unreadable, empty or too little
    │   ├── TeacherError            a teacher that cannot be found or opened
    │   ├── UnsupportedModel        a model family or axis that a stage does not know
    │   ├── VocabularyMismatch      teacher and student do not share a vocabulary
    │   ├── SignalError             an objective and a signal that do not fit together
    │   ├── RunError                a run folder that is missing, busy or of another recipe
    │   └── MissingDependency       an optional package that is not installed
    ├── CheckFailed               exit 1: everything ran, and the answer is no
    │   ├── CacheDamaged            a shard whose bytes are not what the manifest says
    │   ├── TrainingDiverged        a loss or gradient that is not finite
    │   ├── ExportMismatch          an exported file that disagrees with its student
    │   ├── FloorMissed             a quality gate of the recipe
    │   ├── InspectionRefused       a file that is not safe to open
    │   ├── TermsRefused            a licence or service term that forbids it
    │   ├── VerificationFailed      a package that cannot prove what it claims
    │   └── SwitchedOff             the owner's switch is off
    ├── EnvironmentProblem        exit 3: this machine, now
    │   ├── DiskFull
    │   ├── NotWritable
    │   ├── OutOfMemory
    │   └── EngineFailed            the runtime process did not start or died
    └── Interrupted               exit 130: the user stopped it
        └── Terminated              exit 143: the system stopped it (SIGTERM), after a checkpoint

A message says what happened, where, and what to do. ``str(error)`` is that message.
"""

from __future__ import annotations

import errno
from typing import ClassVar

__all__ = [
    "CacheDamaged",
    "CheckFailed",
    "CorpusError",
    "DiskFull",
    "EngineFailed",
    "EnvironmentProblem",
    "ExportMismatch",
    "FloorMissed",
    "InspectionRefused",
    "Interrupted",
    "MissingDependency",
    "NotWritable",
    "OutOfMemory",
    "RecipeError",
    "RunError",
    "SignalError",
    "StillroomError",
    "SwitchedOff",
    "TeacherError",
    "Terminated",
    "TermsRefused",
    "TrainingDiverged",
    "UnsupportedModel",
    "UsageError",
    "VerificationFailed",
    "VocabularyMismatch",
    "translate",
]


class StillroomError(Exception):
    """Base of every error that Stillroom raises on purpose.

    Args:
        what: What happened, and where (one sentence).
        todo: What the user can do about it (one sentence), or an empty string.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, what: str, todo: str = "") -> None:
        self.what = what
        self.todo = todo
        super().__init__(f"{what}\n{todo}" if todo else what)

    def __reduce__(self) -> tuple[type[StillroomError], tuple[str, str]]:
        """Travel whole between processes."""
        return (type(self), (self.what, self.todo))


class UsageError(StillroomError):
    """The request cannot be carried out as written."""

    exit_code = 2


class RecipeError(UsageError):
    """A key, a value or the file of a recipe is wrong."""


class CorpusError(UsageError):
    """Text is unreadable, empty or too little."""


class TeacherError(UsageError):
    """A teacher cannot be found or opened."""


class UnsupportedModel(UsageError):
    """A stage does not know this model family, or cannot prune it along this axis."""


class VocabularyMismatch(UsageError):
    """Teacher and student do not share a vocabulary."""


class SignalError(UsageError):
    """An objective cannot take this kind of signal, or the signal was captured otherwise."""


class RunError(UsageError):
    """A run's folder is missing, busy, or belongs to another recipe."""


class MissingDependency(UsageError):
    """An optional package is needed and not installed."""


class CheckFailed(StillroomError):
    """Everything ran, and the answer is no."""

    exit_code = 1


class CacheDamaged(CheckFailed):
    """A shard's bytes are not what the manifest says."""


class TrainingDiverged(CheckFailed):
    """A loss or a gradient is not finite."""


class ExportMismatch(CheckFailed):
    """An exported file disagrees with the student that it was made from."""


class FloorMissed(CheckFailed):
    """A quality gate of the recipe was missed."""


class InspectionRefused(CheckFailed):
    """A file is not safe to open."""


class TermsRefused(CheckFailed):
    """A licence or a service's terms forbid the request."""


class VerificationFailed(CheckFailed):
    """A package cannot prove what it claims."""


class SwitchedOff(CheckFailed):
    """The owner's switch is off."""


class EnvironmentProblem(StillroomError):
    """This machine, as it is now, cannot do it."""

    exit_code = 3


class DiskFull(EnvironmentProblem):
    """No disk space is left where something had to be written."""


class NotWritable(EnvironmentProblem):
    """A folder or file may not be written."""


class OutOfMemory(EnvironmentProblem):
    """Memory does not suffice."""


class EngineFailed(EnvironmentProblem):
    """The runtime process did not start, or died."""


class DamagedModel(EngineFailed):
    """A model's weights give predictions that are no numbers."""


class Interrupted(StillroomError):
    """The user stopped it."""

    exit_code = 130


class Terminated(Interrupted):
    """The system stopped it (SIGTERM); a checkpoint was written."""

    exit_code = 143


class NotJson(ValueError):
    """A file is not the JSON that it should be: cut off, damaged, or of something else.

    Attributes:
        path: The file.
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        super().__init__(f"{path}: {reason}")


NO_PATH = {
    errno.ENOTDIR: "a part of this path is a file and no folder",
    errno.EISDIR: "a folder, and a file is needed",
    errno.ENAMETOOLONG: "a longer name than the system takes",
    errno.ELOOP: "a link that leads back to itself",
}
"""What is wrong with a path that the system refuses, by the number of its error."""


def translate(error: BaseException, where: str = "") -> StillroomError | None:
    """The Stillroom error that says what a low-level failure means to a user.

    Args:
        error: Whatever was caught.
        where: A path or stage that names the place, if it is known.

    Returns:
        A :class:`StillroomError`, or None where the failure is not one that a user can act on.
    """
    if isinstance(error, StillroomError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("Stopped.", "The same command goes on from the last checkpoint.")
    if isinstance(error, MemoryError):
        return OutOfMemory(_at("memory ran out", where), "Lower the batch size or the sequence length in the recipe.")
    if isinstance(error, NotJson):
        return UsageError(
            f"{error.path} is damaged: it is not the JSON that it should be.",
            "Take a whole copy of it. What `stillroom run` wrote it writes again where the file is removed.",
        )
    text = str(error)
    code = error.errno if isinstance(error, OSError) else None
    if isinstance(error, OSError) and error.filename and not where:
        where = str(error.filename)
    # Rust and C++ libraries carry the system's error in their text only.
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "os error 28" in text:
        return DiskFull(
            _at("the disk is full", where),
            "Free some disk space and give the same command again: finished stages and checkpoints are kept.",
        )
    if code in (errno.EACCES, errno.EPERM, errno.EROFS) or "Read-only file system" in text:
        return NotWritable(_at("may not be read or written", where), "Check its permissions, or choose another folder.")
    if code in NO_PATH and where:
        return UsageError(f"{where}: {NO_PATH[code]}.", "Check the path.")
    # Of an allocator ("CUDA out of memory", "HIP out of memory", "MPS backend out of memory") or of a driver ("CUDA error: …").
    if "can't allocate memory" in text or (isinstance(error, RuntimeError) and "out of memory" in text):
        return OutOfMemory(_at("memory ran out", where), "Lower the batch size or the sequence length in the recipe.")
    return None


def told(kind: str, what: str, todo: str) -> StillroomError:
    """The error that another process ended with, from what it told of it.

    Args:
        kind: The name of its class; one that is no Stillroom error's gives an :class:`EnvironmentProblem`.
        what: What it said happened.
        todo: What it said to do.
    """
    found = globals().get(kind)
    if not (isinstance(found, type) and issubclass(found, StillroomError)):
        found = EnvironmentProblem
    return found(what, todo)


def _at(what: str, where: str) -> str:
    return f"{where}: {what}." if where else f"{what[0].upper()}{what[1:]}."


def first_line(error: BaseException) -> str:
    """The first line of a library's message, as a sentence; the error's name where it says nothing."""
    lines = str(error).strip().splitlines()
    return f"{lines[0].rstrip('.')}." if lines else f"{type(error).__name__}."
