"""Runs that people change and disks that fail: is exactly what must be redone redone, and does every damaged run go on?

    .venv/bin/python -m benchmarks.runs [--quick] [--only edits|damages|grown] [--json FILE]

On a tiny random teacher, whose numbers mean nothing. ``redone_exactly``: 30 edits of a finished run's recipe, text, teacher
and cache; after each the stages that were done are those that the edit touches, no more and no fewer. ``damages``: every file
of the finished run cut, emptied, with one byte changed, not UTF-8, replaced by a folder, and removed (``--quick``: 210 of
them); after each, the same command is given again. ``tracebacks`` are failures without a message for the user, ``dead_ends``
runs that do not finish after it, ``silently_wrong`` runs that finish with another student or other numbers.
``grown_captured_share``: of all pieces of a corpus that grew by 3 %, those that the teacher had to see.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import write
from stillroom import pipeline
from stillroom.core.errors import StillroomError
from stillroom.core.files import digest_file, read_json
from stillroom.runs.run import Run
from tests.tiny_models import tiny_model

STAGES = ("corpus", "capture", "shrink", "distill", "baseline", "export", "evaluate")
TRAINED = {"distill", "baseline", "export", "evaluate"}
"""What hangs on training."""
ALL = set(STAGES)
QUICK_DAMAGES = 210
OWN = {"kind": "own", "decided_by": "Stillroom's benchmarks", "decided_at": "2026-11-24T00:00:00Z"}
KINDS = ("cut", "emptied", "one byte", "not UTF-8", "a folder", "removed")


class Trial:
    """A folder with a teacher, text, a recipe, and its finished run, which is put back before each edit.

    Args:
        folder: An empty folder.
        documents: Documents of text.
    """

    def __init__(self, folder: Path, documents: int) -> None:
        self.folder = folder
        self.recipe = folder / "tiny.yaml"
        self.run = folder / "runs" / "tiny"
        tiny_model("llama", folder / "teacher", layers=3)
        (folder / "text").mkdir()
        for number, content in enumerate(_texts(documents)):
            (folder / "text" / f"{number:03}.txt").write_text(content, encoding="utf-8")
        self.write_recipe(settings())

    def write_recipe(self, value: dict[str, Any]) -> None:
        """Write the recipe's file."""
        self.recipe.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")

    def keep(self) -> None:
        """Finish the run, and keep everything as it is."""
        self.go()
        self.kept = self.folder.with_name(f"{self.folder.name}.kept")
        shutil.copytree(self.folder, self.kept, symlinks=True)

    def put_back(self) -> None:
        """Everything as it was kept, times of change too."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self.kept, self.folder, symlinks=True, dirs_exist_ok=True)

    def go(self) -> tuple[Run, str]:
        """The command ``stillroom run``: the run, and what was said."""
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            made = pipeline.run(self.recipe, quiet=True)
        return made, said.getvalue()

    def results(self) -> dict[str, Any]:
        """What a reader takes home: the student's weights, its file, and its numbers."""
        student = read_json(self.run / "summary.json")["student"]
        return {
            "weights": digest_file(self.run / "distill" / "model" / "model.safetensors"),
            "file": digest_file(next((self.run / "export").glob("*.gguf"))),
            "numbers": {key: student[key] for key in ("kl_to_teacher", "top1_agreement", "parameters")},
        }


def _texts(count: int) -> Iterator[str]:
    from pydoc_data.topics import topics

    stretches = (
        f"{name}\n{content[at : at + 300]}"
        for at in range(0, 3000, 300)
        for name, content in sorted(topics.items())
        if len(content) >= at + 300
    )
    yield from itertools.islice(stretches, count)


def settings() -> dict[str, Any]:
    """The recipe."""
    return {
        "name": "tiny",
        "compute": {"device": "cpu", "threads": 1},
        "corpus": {
            "sources": [{"kind": "text", "path": "text", "licence": "PSF-2.0"}],
            "sequence_length": 64,
            "validation_share": 0.1,
            "heldout_share": 0.2,
        },
        "teacher": {"kind": "huggingface", "name": "teacher"},
        "student": {"kind": "shrink", "layers": 2},
        "distill": {"batch_tokens": 512, "precision": "float32"},
        "evaluate": {"speed_tokens": 4, "bootstrap_samples": 100, "measures": ["fidelity", "cost"]},
        "export": {"gguf": ["F16"], "check_tokens": 64},
        "chat": {"prompt": None},
        "terms": {"decisions": [OWN | {"subject": "teacher"}, OWN | {"subject": "student"}]},
    }


@dataclass(frozen=True)
class Edit:
    """What a user changes, and the stages that must then be done."""

    name: str
    change: Callable[[Trial], object]
    redone: frozenset[str] = frozenset()


def _key(where: str, value: Any) -> Callable[[Trial], object]:
    """An edit of one key of the recipe's file."""

    def change(trial: Trial) -> None:
        tree = yaml.safe_load(trial.recipe.read_text(encoding="utf-8"))
        at = tree
        *above, last = where.split(".")
        for part in above:
            at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
        at[last] = value
        trial.write_recipe(tree)

    return change


def _touch(path: Path) -> None:
    for file in [path] if path.is_file() else path.iterdir():
        os.utime(file, ns=(time.time_ns(), time.time_ns()))


def _rewrite(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def _heavier(trial: Trial) -> None:
    """Another teacher in the same folder: one weight changed."""
    from safetensors.torch import load_file, save_file

    path = trial.folder / "teacher" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if "down_proj" in name)
    tensors[name] = tensors[name] * 1.5
    save_file(tensors, path, metadata={"format": "pt"})


def edits() -> list[Edit]:
    """30 edits of recipe, text, teacher and cache."""
    none: frozenset[str] = frozenset()
    trained, everything = frozenset(TRAINED), frozenset(ALL)
    captured = trained | {"capture"}

    def text(name: str) -> Callable[[Trial], Path]:
        return lambda trial: trial.folder / "text" / name

    first, second = text("000.txt"), text("001.txt")
    return [
        Edit("nothing", lambda _trial: None),
        Edit("a comment", lambda trial: _rewrite(trial.recipe, lambda old: f"# mine\n{old}")),
        Edit("chat.prompt", _key("chat.prompt", "What is a list?")),
        Edit("limits.seconds", _key("limits.seconds", 1e6)),
        Edit("a default written out", _key("distill.epochs", 1), none),
        Edit("distill.learning_rate", _key("distill.learning_rate", 0.001), trained),
        Edit("distill.epochs", _key("distill.epochs", 2), trained),
        Edit("distill.batch_tokens", _key("distill.batch_tokens", "1K"), trained),
        Edit("export.gguf", _key("export.gguf", ["F16", "Q8_0"]), frozenset({"export"})),
        Edit("export.check_tokens", _key("export.check_tokens", 32), frozenset({"export"})),
        Edit("evaluate.bootstrap_samples", _key("evaluate.bootstrap_samples", 120), frozenset({"evaluate"})),
        Edit("student.layers", _key("student.layers", 1), trained | {"shrink"}),
        Edit("capture.seed", _key("capture.seed", 1), captured),
        Edit("corpus.sequence_length", _key("corpus.sequence_length", 48), everything),
        Edit("corpus.heldout_share", _key("corpus.heldout_share", 0.35), everything),
        Edit("seed", _key("seed", 1), everything),
        Edit("baseline", _key("baseline", value=False), frozenset({"evaluate"})),
        Edit("a source's licence", _key("corpus.sources.0.licence", "CC0-1.0"), frozenset({"corpus"})),
        Edit("text added", lambda trial: second(trial).with_name("new.txt").write_text("New words. " * 40), everything),
        Edit("text changed", lambda trial: _rewrite(first(trial), lambda old: f"{old} And more."), everything),
        Edit("text removed", lambda trial: first(trial).unlink(), everything),
        Edit("text touched", lambda trial: _touch(trial.folder / "text")),
        Edit("text renamed", lambda trial: first(trial).rename(text("zzz.txt")(trial)), frozenset({"corpus"})),
        Edit("text twice", lambda trial: shutil.copy(first(trial), text("copy.txt")(trial)), frozenset({"corpus"})),
        Edit("teacher's weights", _heavier, everything),
        Edit("teacher touched", lambda trial: _touch(trial.folder / "teacher")),
        Edit("teacher's model card", lambda trial: (trial.folder / "teacher" / "README.md").write_text("# Tiny\n")),
        Edit("cache removed", lambda trial: shutil.rmtree(trial.run / "capture" / "cache"), frozenset({"capture"})),
        Edit(
            "a shard removed",
            lambda trial: next((trial.run / "capture" / "cache").glob("shard-*")).unlink(),
            frozenset({"capture"}),
        ),
        Edit("student removed", lambda trial: shutil.rmtree(trial.run / "distill" / "model"), frozenset({"distill"})),
    ]


def try_edits(trial: Trial) -> list[dict[str, Any]]:
    """Each edit alone, on the finished run."""
    found = []
    for edit in edits():
        trial.put_back()
        edit.change(trial)
        entry: dict[str, Any] = {"edit": edit.name, "expected": sorted(edit.redone, key=STAGES.index)}
        try:
            made, said = trial.go()
            entry |= {"redone": made.done, "said": [line for line in said.splitlines() if ":" in line][:12]}
            entry["exactly"] = set(made.done) == edit.redone
        except Exception as error:
            entry |= {"exactly": False, "error": f"{type(error).__name__}: {error}"}
        found.append(entry)
        _say(f"edit {edit.name}: {'exactly' if entry['exactly'] else entry}")
    return found


def damage(path: Path, kind: str) -> None:
    """Damage a file in one way."""
    data = path.read_bytes()
    if kind == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "emptied":
        path.write_bytes(b"")
    elif kind == "one byte":
        path.write_bytes(bytes([*data[: len(data) // 2], data[len(data) // 2] ^ 1, *data[len(data) // 2 + 1 :]]))
    elif kind == "not UTF-8":
        path.write_bytes(b"\xff\xfe\xff" + data)
    else:
        path.unlink()
        if kind == "a folder":
            path.mkdir()


def damages(run: Path, quick: bool) -> list[tuple[str, str]]:
    """Every file of the run, in every way; the quick ones are spread over files and ways."""
    files = sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    pairs = [
        (name, KINDS[(index + turn) % len(KINDS)]) for turn in range(len(KINDS)) for index, name in enumerate(files)
    ]
    # An empty file cannot be cut, and has no byte to change.
    pairs = [
        (name, kind)
        for name, kind in pairs
        if (run / name).stat().st_size or kind in ("a folder", "removed", "not UTF-8")
    ]
    return pairs[:QUICK_DAMAGES] if quick else pairs


def try_damages(trial: Trial, quick: bool) -> list[dict[str, Any]]:
    """Each damage alone; then the same command again."""
    trial.put_back()
    trial.go()
    expected = trial.results()
    found = []
    pairs = damages(trial.run, quick)
    for number, (name, kind) in enumerate(pairs, start=1):
        trial.put_back()
        damage(trial.run / name, kind)
        entry: dict[str, Any] = {"file": name, "kind": kind, "end": "finished"}
        try:
            made, said = trial.go()
            entry |= {"redone": made.done, "said": said.splitlines()[:4]}
            if trial.results() != expected:
                entry["end"] = "silently wrong"
        except StillroomError as error:
            entry |= {"end": "dead end", "error": str(error)}
        except Exception:
            entry |= {"end": "traceback", "error": traceback.format_exc().splitlines()[-12:]}
        # Every other command that reads a run has to say something of it, too.
        if entry["end"] == "finished":
            try:
                repr(Run.open(trial.run)._repr_html_())
            except StillroomError:
                pass
            except Exception:
                entry |= {"end": "traceback", "error": traceback.format_exc().splitlines()[-12:]}
        found.append(entry)
        _say(f"damage {number} of {len(pairs)}: {entry if entry['end'] != 'finished' else f'{name}, {kind}: finished'}")
    return found


def grow(folder: Path) -> dict[str, Any]:
    """A corpus of 100 documents, and three more."""
    trial = Trial(folder, 100)
    pipeline.run(trial.recipe, until="capture", quiet=True)
    for number, content in enumerate(list(_texts(103))[100:]):
        (folder / "text" / f"grown-{number}.txt").write_text(content, encoding="utf-8")
    made = pipeline.run(trial.recipe, until="capture", quiet=True)
    from stillroom.corpus.sequences import Sequences

    splits = [Sequences.load(made.path / "corpus" / f"{name}.safetensors") for name in ("train", "validation")]
    pieces = len({address for split in splits for address in split.digests})
    reused = (made.stage("capture").record or {})["notes"]["reused"]
    return {"pieces": pieces, "reused": reused, "share": round(1 - reused / pieces, 4), "redone": made.done}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Try, print and write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--only", choices=("edits", "damages", "grown"))
    options = arguments.parse_args()
    figures: dict[str, Any] = {}
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only in (None, "grown"):
            (folder / "grown").mkdir()
            details["grown"] = grow(folder / "grown")
            figures["grown_captured_share"] = details["grown"]["share"]
        if options.only != "grown":
            (folder / "trial").mkdir()
            trial = Trial(folder / "trial", 40)
            trial.keep()
        if options.only in (None, "edits"):
            details["edits"] = try_edits(trial)
            figures |= {
                "edits": len(details["edits"]),
                "redone_exactly": sum(entry["exactly"] for entry in details["edits"]),
            }
        if options.only in (None, "damages"):
            details["damages"] = try_damages(trial, options.quick)
            ends = [entry["end"] for entry in details["damages"]]
            figures |= {
                "damages": len(ends),
                "tracebacks": ends.count("traceback"),
                "dead_ends": ends.count("dead end"),
                "silently_wrong": ends.count("silently wrong"),
            }
    write(figures, details, options.json)


if __name__ == "__main__":
    main()
