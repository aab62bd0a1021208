"""Copies of a training's checkpoints in an object store, for machines that may vanish with their disks.

A checkpoint that is whole in the scratch folder is copied with everything beside it that the next step depends on, on another
thread. Where a machine begins with an empty folder, it takes the newest whole copy of the same training.

Keys: ``<stage>-<digest of its inputs>/begun.json`` says what the training is made from, ``…/files/<sha256>`` are files by their
content, so that one that did not change is sent once, and ``…/step-<N>.json`` (:class:`Note`), put last, names the files of a
checkpoint. Two training runs that differ in anything are never mixed up, because their inputs have other digests.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from stillroom.core import files
from stillroom.core.errors import StillroomError, first_line
from stillroom.core.store import Store, read_file
from stillroom.training.checkpoint import newest

BEGUN = "begun.json"
FILES = "files/"
KEPT = 2
"""Checkpoints whose copies stay."""
LEFT_OUT = ("cache", "notes.json")
"""In the scratch folder: a copy of signals that are in a store anyway, and what a process tells another."""
COPYING, RESTORING = "copying.partial", "restoring.partial"
"""In the scratch folder: second names of the files that are being copied, and what is being read. Those of a killed process are
removed when its stage begins again."""


class FileNote(BaseModel):
    """A file of a checkpoint: its length, and SHA-256."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Note(BaseModel):
    """``step-<N>.json``: a checkpoint is whole in the store; its files by their paths in the scratch folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int = Field(ge=0)
    files: dict[str, FileNote] = Field(min_length=1)

    @field_validator("files")
    @classmethod
    def _inside(cls, value: dict[str, FileNote]) -> dict[str, FileNote]:
        for name in value:
            path = PurePosixPath(name)
            if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in name or ":" in name:
                raise ValueError(f"{name!r} is no path inside a folder")
        return value


class CheckpointCopy:
    """The copies of one training.

    Args:
        store: Where they are.
        folder: The training's scratch folder.
        stage: The stage's name.
        inputs: Digests of everything that the training depends on, by name.
        say: Tells the user a line.
    """

    def __init__(
        self, store: Store, folder: Path, stage: str, inputs: Mapping[str, str], say: Callable[[str], None]
    ) -> None:
        self._store, self._folder, self._say = store, folder, say
        self._stage, self._inputs = stage, dict(inputs)
        self._prefix = f"{stage}-{files.digest_json(self._inputs)[:32]}/"
        self._wake = threading.Condition()
        self._waiting: tuple[int, Path] | None = None
        self._working = False
        self._failure: str | None = None

    @property
    def where(self) -> str:
        """The URL of this training's copies."""
        return f"{self._store.where}/{self._prefix.rstrip('/')}"

    def begin(self, step: int) -> None:
        """Copy the newest checkpoint as it is now, while training goes on.

        One that still waits for the copy before it is replaced: at most one waits.
        """
        self._tell()
        snapshot = self._snapshot()
        with self._wake:
            replaced, self._waiting = self._waiting, (step, snapshot)
            starts, self._working = not self._working, True
        if replaced is not None:
            shutil.rmtree(replaced[1], ignore_errors=True)
        if starts:
            threading.Thread(target=self._work, name="checkpoint-copy", daemon=True).start()

    def wait(self) -> bool:
        """Until nothing is being copied; returns whether the last copy is whole."""
        with self._wake:
            while self._working:
                self._wake.wait()
        whole = self._failure is None
        self._tell()
        return whole

    def restore(self) -> int | None:
        """Put the newest whole copy into the scratch folder, where it has no checkpoint; returns its step, None without one.

        Every file is compared with its length and SHA-256 before any takes its place. What is not whole is named, and the one
        before it is taken.

        Raises:
            EnvironmentProblem: The store does not answer, or nothing can be written there.
        """
        begun = {"stage": self._stage, "inputs": self._inputs}
        self._store.put(self._prefix + BEGUN, files.canonical_json(begun))
        if newest(self._folder) is not None:
            return None
        keys = self._notes()
        for key in reversed(keys):
            beside = self._folder / RESTORING
            shutil.rmtree(beside, ignore_errors=True)
            try:
                found = self._read(key, beside)
                if isinstance(found, Note):
                    self._take(found, beside)
                    size = sum(entry.bytes for entry in found.files.values())
                    self._say(f"  goes on from the checkpoint of step {found.step:,} in {self.where} ({size:,} bytes)")
                    return found.step
            finally:
                shutil.rmtree(beside, ignore_errors=True)
            self._say(f"  {self.where}/{key.removeprefix(self._prefix)} is not taken: {found}")
        if not keys:
            self._tell_of_others()
        return None

    def _notes(self) -> list[str]:
        """Keys of whole checkpoints, the newest last."""
        names = self._store.names(self._prefix)
        return [key for key in names if key.startswith(f"{self._prefix}step-") and key.endswith(".json")]

    def _read(self, key: str, beside: Path) -> Note | str:
        """Read a checkpoint's files into a folder; what is wrong with it, where something is."""
        data = self._store.get(key)
        try:
            note = Note.model_validate_json(data or b"")
        except ValidationError:
            return "its note cannot be read"
        for name, entry in note.files.items():
            path = beside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            blob = self._prefix + FILES + entry.sha256
            size = self._store.size(blob)
            if size is None:
                return f"{name} is missing"
            if size != entry.bytes:
                return f"{name} has {size:,} bytes instead of {entry.bytes:,}"
            try:
                read_file(self._store, blob, path, size)
            except FileNotFoundError:
                return f"{name} is missing"
            if files.digest_file(path) != entry.sha256:
                return f"{name} has another SHA-256 than its note says"
        if newest(beside) is None:
            return "it names no whole checkpoint"
        return note

    def _take(self, note: Note, beside: Path) -> None:
        """Give files their places, those of the checkpoint itself last, so that a kill leaves none without the others."""
        for name in sorted(note.files, key=lambda name: (name.startswith("step-"), name)):
            if name.startswith("step-"):
                continue
            target = self._folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(beside / name, target)
        for folder in sorted(beside.glob("step-*")):
            shutil.rmtree(self._folder / folder.name, ignore_errors=True)
            os.rename(folder, self._folder / folder.name)
        files.sync_folder(self._folder)

    def _tell_of_others(self) -> None:
        """Say that the store has checkpoints of this stage made from something else, and what differs."""
        for key in self._store.names(""):
            if not (key.startswith(f"{self._stage}-") and key.endswith(f"/{BEGUN}")):
                continue
            prefix = key.removesuffix(BEGUN)
            try:
                theirs = json.loads(self._store.get(key) or b"")["inputs"]
                differs = sorted(
                    name for name in {**theirs, **self._inputs} if theirs.get(name) != self._inputs.get(name)
                )
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            if differs:
                self._say(
                    f"  {self._store.where}/{prefix.rstrip('/')} is of another training, and not taken: "
                    f"{', '.join(f'`{name}`' for name in differs)} differ{'s' if len(differs) == 1 else ''}"
                    + (
                        " (a recipe without `seed` draws a secret in every run's folder: give the lost run's own with --secret)"
                        if differs == ["recipe"]
                        else ""
                    )
                )

    def _snapshot(self) -> Path:
        """Second names for the files of the newest checkpoint and what is beside it, which a later one may remove."""
        target = self._folder / COPYING / uuid.uuid4().hex[:8]
        target.mkdir(parents=True)
        for path in _files(self._folder):
            name = path.relative_to(self._folder)
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target / name)
            except OSError:
                shutil.copy2(path, target / name)
        return target

    def _work(self) -> None:
        """Copies what waits, until nothing does."""
        while True:
            with self._wake:
                if self._waiting is None:
                    self._working = False
                    self._wake.notify_all()
                    return
                (step, snapshot), self._waiting = self._waiting, None
            try:
                self._copy(step, snapshot)
            except Exception as error:
                # Training goes on: the checkpoint is whole on this machine, and the next one is copied again.
                what = error.what if isinstance(error, StillroomError) else first_line(error)
                self._failure = f"  the checkpoint of step {step:,} was not copied: {what}"
            else:
                self._failure = None
            finally:
                shutil.rmtree(snapshot, ignore_errors=True)

    def _copy(self, step: int, snapshot: Path) -> None:
        found: dict[str, FileNote] = {}
        for path in _files(snapshot):
            entry = FileNote(bytes=path.stat().st_size, sha256=files.digest_file(path))
            key = self._prefix + FILES + entry.sha256
            if self._store.size(key) != entry.bytes:
                self._store.put_file(key, path)
            found[path.relative_to(snapshot).as_posix()] = entry
        note = Note(step=step, files=found)
        self._store.put(f"{self._prefix}step-{step:07}.json", note.model_dump_json().encode())
        self._remove_old(step)

    def _remove_old(self, step: int) -> None:
        """Remove older notes than the newest up to this step, and files that no note names any more."""
        keys = self._notes()
        mine = [key for key in keys if key <= f"{self._prefix}step-{step:07}.json"]
        for key in mine[:-KEPT]:
            self._store.remove(key)
        named: set[str] = set()
        for key in [key for key in keys if key not in mine[:-KEPT]]:
            try:
                note = Note.model_validate_json(self._store.get(key) or b"")
            except ValidationError:
                continue
            named.update(entry.sha256 for entry in note.files.values())
        for key in self._store.names(self._prefix + FILES):
            if key.rpartition("/")[2] not in named:
                self._store.remove(key)

    def _tell(self) -> None:
        """Say what went wrong since the last time."""
        failure, self._failure = self._failure, None
        if failure is not None:
            self._say(failure)


def _files(folder: Path) -> list[Path]:
    """Files of a scratch folder that a checkpoint needs, sorted."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        left_out = LEFT_OUT if here == folder else ()
        folders[:] = [name for name in folders if name not in left_out and not name.endswith(".partial")]
        found += [here / name for name in names if name not in left_out and not name.endswith(".partial")]
    return sorted(found)
