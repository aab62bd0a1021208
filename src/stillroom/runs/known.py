"""What a run knows of files: their digests, so that unchanged ones are not read again, and what its stages were made from.

``.known.json`` in the run's folder is a shortcut and nothing more: without it, or where it is damaged, files are read again.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.core import files
from stillroom.core.extras import version_of
from stillroom.core.patterns import divided, matcher
from stillroom.recipe.corpus import TABLES, DatasetSource, ParquetSource, PythonDocsSource, ReasoningGymSource
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.section import Section
from stillroom.recipe.student import ExistingStudent, ShrinkStudent
from stillroom.recipe.task_data import files_of, files_of_folder

NAME = ".known.json"
SETTLED_SECONDS = 0.1
"""A file that changed so recently may change again without its times telling: its digest is not remembered."""


@dataclass
class Known:
    """Digests of files by path, size and times; and by stage what it was made from.

    Attributes:
        path: The file that it is kept in.
        digests: By path, inside the run's folder or absolute: bytes, times of change of content and of inode in nanoseconds,
            SHA-256.
        made_from: By stage: SHA-256 of each file that its present result was made from.
    """

    path: Path
    digests: dict[str, tuple[int, int, int, str]] = field(default_factory=dict)
    made_from: dict[str, dict[str, str]] = field(default_factory=dict)
    changed: bool = False

    @classmethod
    def open(cls, folder: Path) -> Known:
        """What a run's folder keeps; nothing where that cannot be read."""
        known = cls(folder / NAME)
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            value = files.read_json(known.path)
            if value.pop("digest") == files.digest_json(value):
                known.digests = {name: (a, b, c, sha) for name, (a, b, c, sha) in value["digests"].items()}
                known.made_from = {stage: dict(made) for stage, made in value["made_from"].items()}
        return known

    def save(self) -> None:
        """Keep it, where something changed and the folder may be written."""
        if not self.changed or not self.path.parent.is_dir():
            return
        value: dict[str, Any] = {"digests": self.digests, "made_from": self.made_from}
        text = json.dumps({"digest": files.digest_json(value), **value}, ensure_ascii=False)
        with contextlib.suppress(OSError):
            files.write_text(self.path, text)
            self.changed = False

    def digest(self, path: Path) -> str:
        """SHA-256 of a file; one whose size and times are as they were is not read again."""
        found = path.stat()
        times = (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        whole, folder = path.absolute(), self.path.parent.absolute()
        # Files of the run itself by their path inside it, so that a run that was moved as a whole is not read again.
        name = str(whole.relative_to(folder)) if whole.is_relative_to(folder) else str(whole)
        held = self.digests.get(name) or self.digests.get(str(whole))
        if held is not None and tuple(held[:3]) == times:
            return held[3]
        sha = files.digest_file(path)
        if time.time_ns() - max(times[1:]) > SETTLED_SECONDS * 1e9:
            self.digests[name] = (*times, sha)
            self.changed = True
        return sha

    def remember(self, stage: str, made_from: dict[str, str]) -> None:
        """Keep what a stage's result was made from."""
        if self.made_from.get(stage) != made_from:
            self.made_from[stage] = made_from
            self.changed = True


def moved_paths(before: Any, now: Any, by_content: Sequence[Sequence[str]]) -> dict[str, str] | None:
    """Paths of a recipe's sections that are others now, each with what it is now.

    Args:
        before: The sections as a stage's record keeps them.
        now: As they are.
        by_content: Keys under which paths are compared by what is there.

    Returns:
        None where the sections differ in something else too.
    """
    found: dict[str, str] = {}

    def same(one: Any, other: Any, keys: tuple[str, ...]) -> bool:
        if isinstance(one, dict) and isinstance(other, dict):
            return one.keys() == other.keys() and all(same(one[key], other[key], (*keys, key)) for key in one)
        if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
            return len(one) == len(other) and all(same(a, b, keys) for a, b in zip(one, other, strict=True))
        if one == other:
            return True
        if not any(keys[: len(prefix)] == tuple(prefix) for prefix in by_content):
            return False
        if not (isinstance(one, str) and isinstance(other, str) and Path(other).is_absolute()):
            return False
        # Older versions left paths of further teachers relative.
        if not Path(one).is_absolute() and Path(other).parts[-len(Path(one).parts) :] != Path(one).parts:
            return False
        return found.setdefault(one, other) == other

    return found if same(before, now, ()) else None


def carried(made: Mapping[str, str], pairs: Mapping[str, str]) -> dict[str, str]:
    """What a stage was made from, with the paths of today.

    Args:
        made: SHA-256 of each file.
        pairs: Each file, folder or pattern of before with what it is now.
    """
    roots = {_fixed(before): _fixed(now) for before, now in pairs.items()}
    longest = sorted(roots, key=len, reverse=True)
    found = {}
    for name, sha in made.items():
        root = next((root for root in longest if name == root or name.startswith(root.rstrip(os.sep) + os.sep)), None)
        found[name if root is None else roots[root] + name[len(root) :]] = sha
    return found


def _fixed(path: str) -> str:
    """The part of a pattern before its first wildcard; a whole path of another kind."""
    parts = divided(Path(path))
    return str(Path(path) if parts is None else parts[0])


class SourceMissing(Exception):
    """A file or folder that a recipe names is not there."""


def made_from(recipe: Recipe, stage: str, known: Known) -> dict[str, str]:
    """SHA-256 of every file outside the run that a stage reads, besides the teacher's; and versions of what stands for files.

    All files of a source's folder count, also those that no reader takes today: what is read is the reader's to say.

    Raises:
        SourceMissing: A source of the corpus is not there.
    """
    found: dict[str, str] = {}
    if stage in ("corpus", "write"):
        for source in recipe.corpus.sources:
            if isinstance(source, PythonDocsSource):
                import platform

                found["Python's own documentation"] = platform.python_version()
            elif isinstance(source, ReasoningGymSource):
                found["reasoning-gym"] = version_of("reasoning-gym") or "not installed"
            elif isinstance(source, DatasetSource):
                if Path(source.name).exists():
                    found |= _digests(Path(source.name), known)
            else:
                patterns = TABLES if isinstance(source, ParquetSource) else source.pattern
                here = _digests(source.path, known, patterns)
                if not here and not source.path.exists():
                    raise SourceMissing(str(source.path))
                found |= here
    elif stage == "shrink" and isinstance(recipe.student, ExistingStudent):
        if Path(recipe.student.name).exists():
            found |= _digests(Path(recipe.student.name), known)
    elif stage == "shrink" and isinstance(recipe.student, ShrinkStudent):
        if recipe.student.target is not None:
            for path in _paths(recipe.student.target):
                found |= _digests(path, known)
    elif stage == "export":
        for path in _paths(recipe.export):
            found |= _digests(path, known)
    elif stage == "evaluate":
        tasks = recipe.evaluate.tasks
        of_tasks = [part for path in tasks.files for part in files_of(path)]
        if tasks.include_path is not None:
            of_tasks += [tasks.include_path / part for part in files_of_folder(tasks.include_path)]
        for path in (*_paths(recipe.evaluate), *of_tasks):
            found |= _digests(path, known)
    return found


def _digests(path: Path, known: Known, patterns: Sequence[str] = ()) -> dict[str, str]:
    """Of a file, of all files under a folder, or of what a pattern names: files, and all that is in folders.

    Args:
        path: The file, the folder or the pattern.
        known: Remembers digests.
        patterns: Those by which the files of a folder are chosen. Hidden files count where they fit.
    """
    found: dict[str, str] = {}
    for file in _files(path, patterns):
        # A file that cannot be read is the reader's to refuse: by name, when it is read.
        try:
            # What is no file, such as a pipe, would be waited for; it is refused in the same place.
            found[str(file)] = known.digest(file) if file.is_file() or not file.exists() else "no file"
        except OSError as error:
            found[str(file)] = type(error).__name__
    return found


def _files(path: Path, patterns: Sequence[str]) -> Iterator[Path]:
    parts = None if path.exists() else divided(path)
    if parts is None and not path.is_dir():
        yield from [path] if path.exists() else []
        return
    folder, own = parts or (path, "")
    read = matcher((own, *(f"{own}/{pattern}" for pattern in patterns)) if own else patterns)
    inside = matcher((own, f"{own}/**") if own else ("**",))
    for here, folders, names in os.walk(folder, followlinks=False):
        folders.sort()
        for file in (Path(here, name) for name in sorted(names)):
            name = file.relative_to(folder).as_posix()
            hidden = any(part.startswith(".") for part in name.split("/"))
            if file.is_file() and (read(name) or (inside(name) and not hidden)):
                yield file


def _paths(value: Any) -> Iterator[Path]:
    """Every path in a section."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Section):
        for name in type(value).model_fields:
            yield from _paths(getattr(value, name))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _paths(item)
    elif isinstance(value, dict):
        yield from _paths(list(value.values()))


def difference(before: dict[str, str], after: dict[str, str]) -> str:
    """What changed between two states of files, in a few words; empty where nothing did."""
    counts = {
        "added": sum(name not in before for name in after),
        "changed": sum(name in before and before[name] != sha for name, sha in after.items()),
        "gone": sum(name not in after for name in before),
    }
    total = sum(counts.values())
    words = [f"{count:,} {what}" for what, count in counts.items() if count]
    if not words:
        return ""
    first, *rest = words
    number, what = first.split(" ")
    plural = "file" if number == "1" and (total == 1 or counts[what] == 1) else "files"
    return ", ".join([f"{number} {plural} {what}", *rest])
