"""A run's folder and the records of its stages.

A stage is finished when its ``stage.json`` exists. It is written last and atomically, and carries digests of inputs and
outputs, the recipe's keys, the tool's version, seeds, wall time and peak memory. A stage whose inputs changed is done again,
and its previous result is kept in ``history/``.
"""

from __future__ import annotations

import contextlib
import html
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.core import files
from stillroom.core.bounded import least
from stillroom.core.errors import RecipeError, RunError, UsageError
from stillroom.core.memory import MemoryMeter
from stillroom.core.secret import Secret, read_secret, write_secret
from stillroom.core.version import tool_version
from stillroom.recipe.reading import carried_along, dump_recipe, load_recipe, moved_path, name_now, parse_recipe
from stillroom.recipe.recipe import Recipe
from stillroom.runs.known import Known, difference

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
HISTORY = "history"
"""The folder of earlier results in a run's folder: ``history/<stage>-<number>``."""
KEPT_RESULTS = 3
"""Earlier results of a stage that are kept; older ones are removed."""
SECRET = "lineage.secret"  # noqa: S105 - a file's name
"""In a run's folder: 256 random bits, for its owner alone. No package takes it."""
USES_SECRET = ("distill", "baseline", "shrink")
"""Stages whose records may name the secret's commitment."""
ORIGIN = ".recipe.json"
"""In a run's folder: the recipe as it was last given, and the file that it came from."""
LICENCE = "licence"
"""The input of a stage that writes the licences of teachers into files."""
FILES_WRITTEN = "files written"
"""The input of a stage whose choices are others where a GGUF file is written."""
TEXT_OF = {"corpus": ("*.safetensors", "tokenizer"), "write": ("*.jsonl",)}
"""What ``history`` does not keep of these stages: text that was withdrawn has to be gone."""


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
        self.done: list[str] = []
        """Stages that this object finished; those that were finished before are not among them."""
        self.notices: list[str] = []
        """What is to be said of this run before it goes on."""
        self.is_new = False
        """Whether this object made the folder."""
        self.made_root = False
        """Whether it made the folder of runs, too."""
        self.checked: str | None = None
        """Digest of the recipe for which everything that can be refused was looked at; see `planning.plan`."""
        self._known: Known | None = None

    @property
    def known(self) -> Known:
        """Digests of files, and what the stages were made from."""
        if self._known is None:
            self._known = Known.open(self.path)
        return self._known

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
                cells = "".join(f"<td>{least(numbers, key)}{_cell(numbers.get(key))}</td>" for key in COLUMNS.values())
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
        run.is_new = not path.exists()
        run.made_root = not root.exists()
        path.mkdir(parents=True, exist_ok=True)
        run._write_recipe()
        return run

    def remove(self) -> None:
        """Remove the run's folder, and the folder of runs where this object made that too and nothing else is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.is_new = False
        if self.made_root:
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()

    def _write_recipe(self, origin: Path | None = None) -> None:
        """Write ``recipe.yaml`` where it is not there as it should be, and a copy that says where it came from."""
        text = dump_recipe(self.recipe)
        target = self.path / "recipe.yaml"
        if target.is_dir():
            files.make_way(target)
        if not target.is_file() or target.read_bytes() != text.encode():
            files.write_text(target, text)
        held = self._origin() or {}
        here = str(self.path.absolute())
        value = {"recipe": text, "origin": held.get("origin"), "sha256": held.get("sha256"), "here": here}
        if origin is not None:
            value |= {"origin": str(origin.absolute()), "sha256": files.digest_file(origin)}
        if value != held:
            files.make_way(self.path / ORIGIN)
            files.write_json(self.path / ORIGIN, value)

    def came_from(self, origin: Path) -> None:
        """Remember the file that the recipe was read from, so that a later change of it is noticed."""
        self._write_recipe(origin)

    @property
    def origin(self) -> Path | None:
        """The recipe's file, where the run knows it."""
        found = (self._origin() or {}).get("origin")
        return Path(found) if found else None

    def _origin(self) -> dict[str, Any] | None:
        """The copy of the recipe and where it came from; None where there is none, as in runs of 0.1.0."""
        try:
            value = files.read_json(self.path / ORIGIN)
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(value, dict) or not isinstance(value.get("recipe"), str):
            return None
        before = _moved_from(value, self.path)
        if before is not None and isinstance(value.get("origin"), str):
            moved = moved_path(Path(value["origin"]), before, self.path.absolute())
            value["origin"] = value["origin"] if moved is None else str(moved)
        return value

    @classmethod
    def is_at(cls, path: Path) -> bool:
        """Whether a folder is a run's: not one of the user's with a ``recipe.yaml`` that was never run there."""
        return (path / "recipe.yaml").is_file() and ((path / ORIGIN).is_file() or (path / "events.jsonl").is_file())

    @classmethod
    def open(cls, path: AnyPath) -> Run:
        """Open an existing run.

        Raises:
            RunError: There is no run in this folder.
        """
        path = path.path if isinstance(path, Run) else Path(path)
        copy = cls(path, None)._origin()  # type: ignore[arg-type]
        target = path / "recipe.yaml"
        if not target.is_file() and copy is None:
            raise RunError(
                f"{path} is not a run: it has no recipe.yaml.",
                "Give the folder that `stillroom run` made, such as runs/quickstart.",
            )
        try:
            run = cls(path, load_recipe(target, kept=True))
        except RecipeError as error:
            if copy is None:
                raise RecipeError(
                    error.what, f"{error.todo} Or run the recipe itself again: its run keeps a copy."
                ) from None
            run = cls(path, parse_recipe(copy["recipe"], f"{path / ORIGIN}", kept=True))
            run.notices.append(
                f"{target} cannot be read; this run's own copy of the recipe is used and written there again"
            )
            with contextlib.suppress(OSError):
                run._write_recipe()
            return run
        before = None if copy is None else _moved_from(copy, path)
        if before is not None:
            carried = carried_along(run.recipe, before, path.absolute())
            if carried != run.recipe:
                run.recipe = carried
                run.notices.append(
                    f"it was moved here from {before}: what it reads is taken from the files beside it now"
                )
        if copy is not None and copy["recipe"] != target.read_text(encoding="utf-8"):
            run.notices.append(
                f"{target} was changed since the run was last given a recipe: it is taken as it is now"
                + (f"; to set it back: stillroom run {copy['origin']}" if copy["origin"] else "")
            )
        elif copy is not None and copy["origin"] and Path(copy["origin"]).is_file():
            now = files.digest_file(Path(copy["origin"]))
            if now != copy["sha256"]:
                run.notices.append(
                    f"{copy['origin']} was changed since: this goes on with the run's own copy of it; to take the change, "
                    "give that file instead of the run's folder"
                )
        return run

    def change(self, recipe: Recipe) -> None:
        """Give the run another recipe; stages that depend on what changed are done again."""
        self.recipe = recipe
        self._write_recipe()

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
    def randomness(self) -> int | Secret:
        """What decides the order of training and a fresh student's initial weights: the recipe's seed, or the run's secret.

        Raises:
            RunError: The recipe has no seed, and the secret is not here (any more).
        """
        if self.recipe.seed is not None:
            return self.recipe.seed
        path = self.path / SECRET
        if not path.is_file():
            raise RunError(
                f"{path}: the secret that this run's order of training comes from is not here.",
                "Put the file back, or give a copy: --secret FILE.",
            )
        return read_secret(path)

    @property
    def commitment(self) -> str | None:
        """SHA-256 of the run's secret; None where the recipe fixes a seed or nothing was drawn yet."""
        if self.recipe.seed is not None:
            return None
        if (self.path / SECRET).is_file():
            return read_secret(self.path / SECRET).commitment
        for name in USES_SECRET:
            held = (self.stage(name).record or {}).get("sections", {}).get("seed")
            if isinstance(held, str):
                return held
        return None

    def seed_of(self, stage: str) -> int | str:
        """What a stage's random numbers come from, as records have it: a seed, or the commitment to the run's secret."""
        if self.recipe.seed is not None:
            return self.recipe.seed
        secret = stage in ("distill", "baseline") or (stage == "shrink" and self.recipe.student.kind == "fresh")
        return (self.commitment or "to be drawn") if secret else self.recipe.public_seed

    def randomness_record(self) -> dict[str, Any]:
        """What a summary and the signed provenance say of it: where the order of training comes from, and what it can prove."""
        if self.recipe.seed is not None:
            return {
                "kind": "seed",
                "seed": self.recipe.seed,
                "commitment": None,
                "note": "The seed is explicit: anybody can repeat the order of training and the initial weights, so that "
                "neither proves a copy (no evidence of grade A).",
            }
        return {
            "kind": "secret",
            "seed": None,
            "commitment": self.commitment,
            "note": "The order of training, and the initial weights of a fresh student, come from 256 secret bits; the "
            "commitment is their SHA-256.",
        }

    def set_damaged_secret_aside(self) -> bool:
        """Move a secret's file away that holds none: what is finished keeps its commitment, as where the file is missing."""
        path = self.path / SECRET
        if self.recipe.seed is not None or not path.is_file():
            return False
        held = path.read_bytes().strip()
        if len(held) == 64 and not held.translate(None, b"0123456789abcdefABCDEF"):
            return False
        path.replace(path.with_name(f"{SECRET}.damaged"))
        return True

    def draw_secret(self) -> None:
        """Draw the run's secret, where its recipe has no seed and none was drawn."""
        if self.recipe.seed is None and self.commitment is None:
            write_secret(self.path / SECRET, Secret.draw())

    def adopt_secret(self, path: Path) -> None:
        """Take another copy of a secret: the run is then the one that was made with it, to the bit.

        Args:
            path: A file as `lineage.secret` in a run's folder.

        Raises:
            UsageError: It cannot be read, the recipe fixes a seed, or the run has another secret.
        """
        given = read_secret(path)
        if self.recipe.seed is not None:
            raise UsageError(
                f"{self.path}: the recipe fixes `seed: {self.recipe.seed}`, so that no secret is used.",
                "Remove `seed` from the recipe, or give no --secret.",
            )
        held = self.commitment
        if held is not None and held != given.commitment:
            raise UsageError(
                f"{path} is not the secret of {self.path}: its commitment is {given.commitment[:12]}…, and the run's is "
                f"{held[:12]}….",
                "Give the right file, or another name to the new run.",
            )
        if not (self.path / SECRET).is_file():
            write_secret(self.path / SECRET, given)

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
        path = self.path / "events.jsonl"
        files.make_way(path)
        path.touch()  # with the usual rights
        # A kill, or a full disk in an older version, may have cut the last line off: this one may not be lost with it.
        files.append(path, ("\n" * files.is_cut_off(path) + line).encode())
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
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                event = json.loads(line)
                if not isinstance(event, dict):
                    continue
                if stage is None or event.get("stage") == stage:
                    found.append(event)
        return found

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second process out of this run; the system frees the lock of a killed one."""
        from filelock import FileLock, Timeout

        files.make_way(self.path / ".lock")
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise RunError(
                f"{self.path}: another process is working on this run.",
                "Wait for it, or stop it; then give the same command again.",
            ) from None
        try:
            # Beside the run's own files; each stage looks after its folder.
            files.remove_leftovers(self.path, below=False)
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
    inputs: dict[str, str] = field(default_factory=dict)
    """Digests of everything that the result depends on, while the stage works."""
    sections: dict[str, Any] = field(default_factory=dict)
    """The parts of the recipe that it reads, while it works."""
    result: str | None = None
    """What depends on the stage names this digest, where the stage sets one; else that of all outputs."""

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
        except (ValueError, RecursionError):
            return None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            return None
        # Records of 0.1.0 have neither their own digest nor the recipe's keys; every later one has both.
        if ("digest" in record or "sections" in record) and record.get("digest") != _own_digest(record):
            return None
        if not all(isinstance(record.get(key), dict) for key in ("inputs", "outputs")):
            return None
        return record

    def holds(self, inputs: Mapping[str, str]) -> bool:
        """Whether the stage is finished for exactly these inputs and its files are as they were written."""
        record = self.record
        return record is not None and self._same(record, inputs) and not self.damaged()

    def _same(self, record: dict[str, Any], inputs: Mapping[str, str]) -> bool:
        """Whether a record's inputs are these. One of 0.1.0 is held against the files first seen since."""
        before, now = dict(record["inputs"]), dict(inputs)
        before.pop("files", None)
        now.pop("files", None)
        return before == now and self._same_files(record, inputs)

    def _same_files(self, record: dict[str, Any], inputs: Mapping[str, str]) -> bool:
        """Whether the files that it reads are as they were."""
        now, before = inputs.get("files"), record["inputs"].get("files")
        if before is None and "sections" not in record:
            since = self.run.known.made_from.get(self.name)
            return now is None or since is None or files.digest_json(since) == now
        return bool(now == before)

    def damaged(self, *, data: bool = True) -> dict[str, str]:
        """Outputs of a finished stage that are missing or not what they were, and what they are instead.

        Args:
            data: Whether data that is missing counts: everything but the JSON files that the stage tells its result in.
        """
        record = self.record
        found: dict[str, str] = {}
        for name, entry in record["outputs"].items() if record is not None else ():
            path = self.path / name
            try:
                told = "/" not in name and name.endswith(".json")
                if not data and not told and not path.exists():
                    continue
                if not path.is_file():
                    found[name] = f"is {'a folder' if path.is_dir() else 'missing'}"
                elif path.stat().st_size != entry["bytes"]:
                    found[name] = f"has {path.stat().st_size:,} bytes instead of {entry['bytes']:,}"
                elif self.run.known.digest(path) != entry["sha256"]:
                    found[name] = "is damaged"
            except OSError as error:
                found[name] = f"cannot be read ({error.strerror})"
        return found

    def why_again(
        self, inputs: Mapping[str, str], sections: Mapping[str, Any], made_from: Mapping[str, str] | None = None
    ) -> str:
        """Why a stage that was finished is done again, in words; empty where it never was.

        Args:
            inputs: Digests of everything that the result depends on, now.
            sections: The parts of the recipe that it reads, now, as the record keeps them.
            made_from: SHA-256 of each file that it reads, now.
        """
        record = self.record
        if record is None:
            return f"its {RECORD} is damaged" if (self.path / RECORD).exists() else ""
        reasons = []
        before = record["inputs"]
        if before.get("recipe") != inputs.get("recipe"):
            changed = _changed_keys(record["sections"], dict(sections)) if "sections" in record else []
            shown = [f"`{name_now(key)}` changed from {_shown(old)} to {_shown(new)}" for key, old, new in changed[:4]]
            if len(changed) > 4:
                shown.append(f"{len(changed) - 4} more keys changed")
            reasons += shown or ["the recipe changed"]
        if not self._same_files(record, inputs):
            known = self.run.known.made_from.get(self.name)
            words = difference(known, dict(made_from or {})) if known is not None else ""
            reasons.append(words or "files that it reads changed")
        if "teacher" in inputs and before.get("teacher") != inputs["teacher"]:
            reasons.append("the teacher's files changed")
        if before.get(LICENCE) != inputs.get(LICENCE):
            reasons.append("the teacher's licence changed")
        if before.get(FILES_WRITTEN) != inputs.get(FILES_WRITTEN):
            reasons.append("whether `export` writes a GGUF file changed")
        if before.get("method") != inputs.get("method"):
            reasons.append("this version of Stillroom does it in another way")
        others = ("recipe", "files", "teacher", "method", LICENCE, FILES_WRITTEN)
        needs = [name for name in {**before, **inputs} if name not in others and before.get(name) != inputs.get(name)]
        reasons += [f"the files of `{name}` changed" for name in needs if "." in name and name in before]
        needs = [name for name in needs if "." not in name]
        if needs:
            reasons.append(f"the result of {' and '.join(f'`{name}`' for name in needs)} changed")
        reasons = [reason for reason in reasons if reason]
        if not reasons:
            found = self.damaged()
            reasons = [f"{name} {what}" for name, what in itertools.islice(found.items(), 3)]
            reasons += [f"and {len(found) - 3} more"] if len(found) > 3 else []
        return ", ".join(reasons)

    def next_in_history(self) -> str:
        """Where in the run's folder a finished result goes when the stage is done again."""
        return self._aside.relative_to(self.run.path).as_posix()

    @property
    def _aside(self) -> Path:
        newest = next(iter(earlier_results(self.run.path / HISTORY, self.name)), None)
        # A kill while a result was moved there left it without its record: the rest follows.
        return newest if newest and not (newest / RECORD).exists() else _next(self.run.path / HISTORY, self.name)

    @property
    def begun(self) -> dict[str, Any] | None:
        """What a stage that was interrupted keeps of what it is made from: ``inputs`` and ``sections``; or None."""
        found = _begun(self.path / BEGUN)
        return found if found is not None and isinstance(found.get("inputs"), dict) else None

    def is_begun(self, inputs: Mapping[str, str]) -> bool:
        """Whether it was interrupted, and goes on."""
        begun = self.begun
        return begun is not None and begun["inputs"] == inputs

    def set_aside(self, keeps: Sequence[str] = ()) -> Path | None:
        """Move a finished result to ``history``; returns the folder there, None where there is no result.

        Folders that are kept stay where they are; of a corpus only what it counted is kept, not the text.
        """
        if not (self.path / RECORD).exists():
            return None
        for name in self.damaged():
            # What is damaged inside a folder that is kept must not be taken for whole.
            if name.partition("/")[0] in keeps and (self.path / name).exists():
                _remove(self.path / name)
        shutil.rmtree(self.scratch, ignore_errors=True)
        # First: no kill may leave it, neither here nor there.
        for pattern in TEXT_OF.get(self.name, ()):
            for path in self.path.glob(pattern):
                if path.name not in keeps:
                    _remove(path)
        _forget_words(self.path / "ledger.json")
        target = self._aside
        target.mkdir(parents=True, exist_ok=True)
        # The record goes last: after a kill the rest follows at the next start. What is kept does not move, so that no kill can
        # lose what was paid for.
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry.name == RECORD):
            if not (entry.name in keeps and entry.is_dir()):
                os.rename(entry, target / entry.name)
        forget_old(self.run.path / HISTORY, self.name)
        return target

    @contextlib.contextmanager
    def working(
        self,
        inputs: Mapping[str, str],
        seed: int,
        keeps: Sequence[str] = (),
        *,
        sections: Mapping[str, Any] | None = None,
        made_from: Mapping[str, str] | None = None,
        beside: Sequence[str] = (),
    ) -> Iterator[Stage]:
        """Do the stage: work left by another recipe is removed, work left by a kill stays, the record is written last.

        Args:
            inputs: Digests of everything that the result depends on.
            seed: The recipe's.
            keeps: Folders inside the stage's that stay in any case.
            sections: The parts of the recipe that the stage reads, for the record.
            made_from: SHA-256 of the files that it reads.
            beside: Outputs that no other stage reads, so that they are no part of the result's digest.
        """
        inputs = self.inputs = dict(inputs)
        self.sections = dict(sections or {})
        files.make_way(self.path, folder=True)
        self.path.mkdir(parents=True, exist_ok=True)
        self.set_aside(keeps)
        files.remove_leftovers(self.path)
        begun = self.path / BEGUN
        previous = _begun(begun)
        spent = 0.0
        if previous is not None and previous.get("inputs") == inputs:
            spent = previous.get("seconds", 0.0)
        elif previous is not None or any(self.path.iterdir()):
            for entry in self.path.iterdir():
                if entry.name in keeps:
                    continue
                _remove(entry)
        state = {"inputs": inputs, "sections": self.sections}
        files.write_json(begun, {**state, "seconds": spent})
        self.scratch.mkdir(exist_ok=True)
        self.run.event(self.name, event="begun", resumed=previous is not None and previous.get("inputs") == inputs)
        started = time.monotonic()
        meter = MemoryMeter()
        with meter:
            try:
                yield self
            except BaseException:
                with contextlib.suppress(OSError):
                    files.write_json(begun, {**state, "seconds": spent + time.monotonic() - started})
                raise
        seconds = spent + time.monotonic() - started
        outputs = {}
        for file in sorted(self.path.rglob("*")):
            name = file.relative_to(self.path).as_posix()
            if file.is_file() and file != begun and not file.is_relative_to(self.scratch):
                outputs[name] = {"bytes": file.stat().st_size, "sha256": self.run.known.digest(file)}
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
        if sections is not None:
            record["sections"] = dict(sections)
        if self.result is not None:
            record["result"] = self.result
        if beside:
            record["beside"] = list(beside)
        record["digest"] = _own_digest(record)
        files.write_json(self.path / RECORD, record)
        self.run.known.remember(self.name, dict(made_from or {}))
        self.run.known.save()
        self.run.done.append(self.name)
        begun.unlink(missing_ok=True)
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.run.event(self.name, event="finished", seconds=round(seconds, 3))

    @property
    def output_digest(self) -> str:
        """One digest over the result of a finished stage: what depends on it names this."""
        record = self.record
        if record is None:
            raise RunError(
                f"{self.run.path}: the stage `{self.name}` is not finished.", "Run `stillroom run` on its recipe."
            )
        if isinstance(record.get("result"), str):
            return str(record["result"])
        beside = record.get("beside", ())
        return files.digest_json(
            {name: entry["sha256"] for name, entry in record["outputs"].items() if name not in beside}
        )


def _moved_from(copy: Mapping[str, Any], path: Path) -> Path | None:
    """The folder that a run was in when its copy of the recipe was written; None where it still is, or that is not known."""
    here = copy.get("here")
    return Path(here) if isinstance(here, str) and Path(here).is_absolute() and Path(here) != path.absolute() else None


def _begun(path: Path) -> dict[str, Any] | None:
    """What a stage that was interrupted left of itself; None where there is nothing to go on with."""
    try:
        value = files.read_json(path)
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _own_digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record without this digest."""
    return files.digest_json(json.loads(json.dumps({key: value for key, value in record.items() if key != "digest"})))


def _forget_words(ledger: Path) -> None:
    """Take the first words of near-duplicates out of what a corpus counted."""
    try:
        counted = files.read_json(ledger)
        splits = [each for each in counted["near_duplicates"].values() if isinstance(each, dict) and "named" in each]
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return
    for each in splits:
        del each["named"]
    if splits:
        files.write_json(ledger, counted)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _next(history: Path, name: str) -> Path:
    """The folder for the next earlier result of a name."""
    return history / f"{name}-{max(_numbers(history, name), default=0) + 1}"


def _numbers(history: Path, name: str) -> list[int]:
    found = [path.name.rpartition("-") for path in history.glob(f"{name}-*")]
    return sorted(int(number) for stem, _, number in found if stem == name and number.isdecimal())


def earlier_results(history: Path, name: str) -> list[Path]:
    """The folders of a stage's earlier results, the newest first."""
    return [history / f"{name}-{number}" for number in reversed(_numbers(history, name))]


def forget_old(history: Path, name: str) -> None:
    """Remove the oldest results of a name beyond those that are kept."""
    for number in _numbers(history, name)[:-KEPT_RESULTS]:
        shutil.rmtree(history / f"{name}-{number}", ignore_errors=True)


def keep_summary(run: Run) -> None:
    """Copy the summary and report of a finished run to ``history``, before they are written anew."""
    present = [run.path / name for name in (SUMMARY, "report.html", "report.md") if (run.path / name).is_file()]
    if present:
        target = _next(run.path / HISTORY, "summary")
        target.mkdir(parents=True)
        for path in present:
            shutil.copy2(path, target)
        forget_old(run.path / HISTORY, "summary")


def _changed_keys(before: Any, after: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted keys that differ between two parts of recipes, with what they were and what they are; sections in a list that is
    as long as before have their number.
    """
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = list(zip(before, after, strict=True))
        if all(isinstance(one, dict) and isinstance(other, dict) for one, other in pairs):
            return [
                change
                for number, (one, other) in enumerate(pairs)
                for change in _changed_keys(one, other, f"{name}.{number}")
            ]
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            change
            for key in {**before, **after}
            for change in _changed_keys(before.get(key), after.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if before == after else [(name, before, after)]


def _shown(value: Any) -> str:
    """A recipe's value in a message; a key that was not written has its default."""
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _cell(value: object) -> str:
    """A number of a summary as a notebook's table shows it."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else ""
