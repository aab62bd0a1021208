"""A run's folder and the records of its stages.

A stage is finished when its ``stage.json`` exists. It is written last and atomically, and carries digests of inputs and
outputs, the tool's version, seeds, wall time and peak memory. A stage whose inputs changed is done again.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.core import files
from stillroom.core.errors import RunError
from stillroom.core.memory import MemoryMeter
from stillroom.core.version import tool_version
from stillroom.recipe.reading import dump_recipe, load_recipe
from stillroom.recipe.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from stillroom.core.tracking import Log

AnyPath = str | os.PathLike[str]
"""A path, or a run: it stands for its folder."""
Callback = Callable[[str, Mapping[str, Any]], None]
"""Called with the name of a stage and an event's values."""
RECORD = "stage.json"
BEGUN = "begun.json"
SCRATCH = "checkpoints"
"""The scratch folder's name; runs that an older version left unfinished have their checkpoints there."""
SUMMARY = "summary.json"
MODELS = ("teacher", "shrunk", "repaired", "baseline", "student")
"""Models of a summary, from the teacher to the student."""
COLUMNS = {
    "parameters": "parameters",
    "KL to teacher": "kl_to_teacher",
    "same next token": "top1_agreement",
    "bits per byte": "bits_per_byte",
}
"""Columns of the table that a notebook shows, and their keys in a summary."""
FORMAT = 1


class Run:
    """A run's folder: the resolved recipe, one folder a stage, and ``events.jsonl``.

    Args:
        path: The folder.
        recipe: The resolved recipe.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path = path
        self.recipe = recipe
        self._trackers: list[Log] | None = None
        self._on_stage: Callback | None = None
        self._on_step: Callback | None = None

    def __repr__(self) -> str:
        done = [
            path.parent.name for path in sorted(self.path.glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime)
        ]
        return f"Run({str(self.path)!r}, finished: {', '.join(done) or 'nothing yet'})"

    def _repr_html_(self) -> str:
        """A table of the summary's models, for notebooks."""
        if not (self.path / SUMMARY).is_file():
            return f"<code>{html.escape(repr(self))}</code>"
        rows = [f"<tr><th>{html.escape(self.recipe.name)}</th>{''.join(f'<th>{name}</th>' for name in COLUMNS)}</tr>"]
        for model in MODELS:
            numbers = self.summary.get(model)
            if numbers is not None:
                cells = "".join(f"<td>{_cell(numbers.get(key))}</td>" for key in COLUMNS.values())
                rows.append(f"<tr><td>{model}</td>{cells}</tr>")
        return f"<table>{''.join(rows)}</table>"

    def __fspath__(self) -> str:
        return str(self.path)

    @classmethod
    def create(cls, recipe: Recipe, root: Path) -> Run:
        """Make or reopen the run's folder ``root/<name>`` and write its resolved recipe."""
        path = root / recipe.name
        if path.exists() and not path.is_dir():
            raise RunError(
                f"{path} is a file; the run's folder cannot be made.", "Move it, or change `name` in the recipe."
            )
        run = cls(path, recipe)
        path.mkdir(parents=True, exist_ok=True)
        text = dump_recipe(recipe)
        target = path / "recipe.yaml"
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            files.write_text(target, text)
        return run

    @classmethod
    def open(cls, path: AnyPath) -> Run:
        """Open an existing run.

        Raises:
            RunError: There is no run in this folder.
        """
        path = path.path if isinstance(path, Run) else Path(path)
        if not (path / "recipe.yaml").is_file():
            raise RunError(
                f"{path} is not a run: it has no recipe.yaml.",
                "Give the folder that `stillroom run` made, such as runs/quickstart.",
            )
        return cls(path, load_recipe(path / "recipe.yaml", kept=True))

    def change(self, recipe: Recipe) -> None:
        """Give the run another recipe; stages that depend on what changed are done again."""
        self.recipe = recipe
        files.write_text(self.path / "recipe.yaml", dump_recipe(recipe))

    def listen(self, on_stage: Callback | None, on_step: Callback | None) -> None:
        """Call these with the name of a stage and its events: when it begins and ends, and after each step of training."""
        self._on_stage, self._on_step = on_stage, on_step

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers of a finished run, as ``summary.json`` holds them.

        Raises:
            RunError: The run is not finished.
        """
        path = self.path / SUMMARY
        if not path.is_file():
            raise RunError(f"{self.path}: there is no summary yet.", f"Finish the run: stillroom run {self.path}")
        found: dict[str, Any] = files.read_json(path)
        return found

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Every event that has a step, in order: ``stage``, ``time``, ``step`` and its numbers."""
        return [event for event in self.events() if "step" in event]

    def student(self, dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        """The student as transformers has it: the trained model where there is one, else the pruned one.

        Args:
            dtype: ``float32``, ``bfloat16`` or ``float16``.

        Raises:
            RunError: There is no student yet.
        """
        import torch

        from stillroom.models.load import load_student

        for name in ("distill", "shrink"):
            stage = self.stage(name)
            if stage.record is not None:
                return load_student(stage.path / "model", getattr(torch, dtype))
        raise RunError(f"{self.path}: there is no student yet.", f"Make it: stillroom distill {self.path}")

    @property
    def recipe_digest(self) -> str:
        """SHA-256 of the resolved recipe."""
        return files.digest_json(self.recipe.model_dump(mode="json"))

    def stage(self, name: str) -> Stage:
        """The folder and record of a stage."""
        return Stage(self, name, self.path / name)

    def event(self, stage: str, **values: Any) -> None:
        """Append one line to ``events.jsonl``: stage, time in seconds since 1970, and the values."""
        line = json.dumps({"stage": stage, "time": round(time.time(), 3), **values}) + "\n"
        with open(self.path / "events.jsonl", "a", encoding="utf-8") as stream:
            stream.write(line)
        self._track(stage, values)
        if self._on_step is not None and "step" in values:
            self._on_step(stage, values)
        if self._on_stage is not None and values.get("event") in ("begun", "finished"):
            self._on_stage(stage, values)

    def _track(self, stage: str, values: dict[str, Any]) -> None:
        """Pass numbers on to the trackers that the recipe asks for; they are opened at the first event."""
        if not self.recipe.track:
            return
        from stillroom.core.tracking import metrics_of, open_trackers

        if self._trackers is None:
            self._trackers = open_trackers(self.recipe.track, self.path)
        found = metrics_of(stage, values)
        if found is not None:
            for log in self._trackers:
                log(*found)

    def events(self, stage: str | None = None) -> list[dict[str, Any]]:
        """Every event so far, or those of one stage; a line that a kill cut off is left out."""
        path = self.path / "events.jsonl"
        found: list[dict[str, Any]] = []
        if not path.is_file():
            return found
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                event = json.loads(line)
                if stage is None or event.get("stage") == stage:
                    found.append(event)
        return found

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second process out of this run; the system frees the lock of a killed one."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise RunError(
                f"{self.path}: another process is working on this run.",
                "Wait for it, or stop it; then give the same command again.",
            ) from None
        try:
            yield
        finally:
            lock.release()


@dataclass
class Stage:
    """One stage of a run: its folder and, when finished, its record."""

    run: Run
    name: str
    path: Path
    notes: dict[str, Any] = field(default_factory=dict)
    """What the stage wants in its record; kept under ``notes``."""

    @property
    def scratch(self) -> Path:
        """The folder for what the stage needs only while it works.

        It exists while the stage works, outlives a kill, is no part of the outputs, and is removed when the stage is
        finished.
        """
        return self.path / SCRATCH

    @property
    def record(self) -> dict[str, Any] | None:
        """The record of a finished stage, or None."""
        path = self.path / RECORD
        if not path.is_file():
            return None
        try:
            record = files.read_json(path)
        except (json.JSONDecodeError, UnicodeDecodeError):
            return None
        return record if isinstance(record, dict) and record.get("format") == FORMAT else None

    def holds(self, inputs: dict[str, str]) -> bool:
        """Whether the stage is finished for exactly these inputs and its files are still there."""
        record = self.record
        if record is None or record["inputs"] != inputs:
            return False
        return all(
            (self.path / name).is_file() and (self.path / name).stat().st_size == entry["bytes"]
            for name, entry in record["outputs"].items()
        )

    @contextlib.contextmanager
    def working(self, inputs: dict[str, str], seed: int, keeps: Sequence[str] = ()) -> Iterator[Stage]:
        """Do the stage: work left by another recipe is removed, work left by a kill stays, the record is written last.

        Args:
            inputs: Digests of everything that the result depends on.
            seed: The recipe's.
            keeps: Folders inside the stage's that stay in any case.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / RECORD).unlink(missing_ok=True)
        files.remove_leftovers(self.path)
        begun = self.path / BEGUN
        previous = files.read_json(begun) if begun.is_file() else None
        spent = 0.0
        if previous is not None and previous.get("inputs") == inputs:
            spent = previous.get("seconds", 0.0)
        elif previous is not None or any(self.path.iterdir()):
            for entry in self.path.iterdir():
                if entry.name in keeps:
                    continue
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        files.write_json(begun, {"inputs": inputs, "seconds": spent})
        self.scratch.mkdir(exist_ok=True)
        self.run.event(self.name, event="begun", resumed=previous is not None)
        started = time.monotonic()
        meter = MemoryMeter()
        with meter:
            try:
                yield self
            except BaseException:
                with contextlib.suppress(OSError):
                    files.write_json(begun, {"inputs": inputs, "seconds": spent + time.monotonic() - started})
                raise
        seconds = spent + time.monotonic() - started
        outputs = {}
        for file in sorted(self.path.rglob("*")):
            name = file.relative_to(self.path).as_posix()
            if file.is_file() and file != begun and not file.is_relative_to(self.scratch):
                outputs[name] = {"bytes": file.stat().st_size, "sha256": files.digest_file(file)}
        record = {
            "format": FORMAT,
            "stage": self.name,
            "version": tool_version(),
            "inputs": inputs,
            "outputs": outputs,
            "seed": seed,
            "seconds": round(seconds, 3),
            "peak_memory_bytes": meter.peak,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "notes": self.notes,
        }
        files.write_json(self.path / RECORD, record)
        begun.unlink(missing_ok=True)
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.run.event(self.name, event="finished", seconds=round(seconds, 3))

    @property
    def output_digest(self) -> str:
        """One digest over all outputs of a finished stage: what depends on it names this."""
        record = self.record
        if record is None:
            raise RunError(
                f"{self.run.path}: the stage `{self.name}` is not finished.", "Run `stillroom run` on its recipe."
            )
        return files.digest_json({name: entry["sha256"] for name, entry in record["outputs"].items()})


def _cell(value: object) -> str:
    """A number of a summary as a notebook's table shows it."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else ""
