"""Writes and checks the files of one run's student, one after the other."""

from __future__ import annotations

import functools
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stillroom.core import files
from stillroom.core.errors import ExportMismatch, TrainingDiverged, UnsupportedModel
from stillroom.core.gguf_types import GGUF_TYPES
from stillroom.core.progress import Progress
from stillroom.corpus.sequences import Sequences
from stillroom.formats.check import (
    LONGEST_WINDOW,
    Agreement,
    Passage,
    agreement,
    beyond_window,
    file_says,
    passages,
    require_agreement,
    require_same_tokens,
    student_says,
    window_of,
)
from stillroom.formats.choose import byte_limit, candidates
from stillroom.formats.gguf_file import planned_bytes, tensor_types, write_gguf
from stillroom.formats.importance import load_importance, measure_importance, save_importance
from stillroom.models.families.gguf_keys import faithful_context
from stillroom.models.families.registry import gguf_layout_of
from stillroom.models.load import load_student, save_model
from stillroom.recipe.export import ChooseConfig
from stillroom.runs.run import Run
from stillroom.signals.alignment import load_vocabulary
from stillroom.teachers.several import licence_of_all, records_of

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel, Tokenizer

SAMPLES = (
    "def f(x):\n    return x + 2024",
    "Hello, world! It's 3.14 o'clock.",
    "naïve café — 你好, мир 🙂",
    "a\n\n\n  b\tc",
)


class Exporter:
    """Writes and checks files of one run's student.

    Args:
        run: The run.
        folder: Where files and the record of the accepted ones go.
        progress: Draws what takes time.

    Attributes:
        source: The student's Hugging Face folder.
        heldout: The held-out text, in the teacher's ids.
        used: Rows of the student's output that are real ids.
    """

    def __init__(self, run: Run, folder: Path, progress: Progress) -> None:
        self.run = run
        self.folder = folder
        self.progress = progress
        self.config = run.recipe.export
        self.source = run.stage("distill").path / "model"
        self.vocabulary = load_vocabulary(run.stage("shrink").path / "vocabulary.safetensors")
        self.used = self.vocabulary.student_used
        self.heldout = Sequences.load(run.stage("corpus").path / "heldout.safetensors")
        self._record = folder / "accepted.json"
        self.accepted: dict[str, Any] = files.read_json(self._record) if self._record.is_file() else {}

    @functools.cached_property
    def student(self) -> tuple[CausalModel, Tokenizer]:
        """The PyTorch student, float32, and its tokenizer."""
        model, tokenizer = load_student(self.source, torch.float32)
        return model.eval(), tokenizer

    @functools.cached_property
    def texts(self) -> list[Passage]:
        """Held-out passages that files are checked on. llama.cpp takes one token less than the context that a file names."""
        try:
            longest = faithful_context(self.student[0].config) - 1
        except UnsupportedModel:
            # No GGUF file is made of such a student, and other formats have no such limit.
            longest = self.config.check_tokens
        return passages(self.heldout, self.vocabulary, self.config.check_tokens, longest)

    @functools.cached_property
    def expected(self) -> list[torch.Tensor]:
        """What the PyTorch student predicts on the passages."""
        return student_says(self.student[0], self.texts, self.used)

    @functools.cached_property
    def long_text(self) -> Passage | None:
        """A prompt longer than the student's attention window; None where it has none, or one too long to check."""
        config = self.student[0].config
        window = window_of(config)
        # Where llama.cpp has no windows of this family, the file's context ends with the window.
        if window is None or not gguf_layout_of(config).windows:
            return None
        if window > LONGEST_WINDOW:
            self.progress.say(
                f"  the attention window of {window:,} tokens is longer than what the check reads ({LONGEST_WINDOW:,}): what "
                "files say behind it is not compared"
            )
            return None
        return beyond_window(self.heldout, self.vocabulary, window)

    @functools.cached_property
    def expected_behind(self) -> list[torch.Tensor]:
        """What the PyTorch student predicts behind its attention window."""
        return student_says(self.student[0], [self.long_text] if self.long_text else [], self.used)

    @functools.cached_property
    def importance(self) -> dict[str, Any] | None:
        """The importance matrix; None where the recipe does without."""
        tokens = self.config.importance_tokens
        if tokens == 0:
            return None
        name = "importance.safetensors"
        found = load_importance(self.folder / name)
        if found is None and self._exported:
            found = load_importance(self.run.stage("export").path / name)
        if found is None:
            train = Sequences.load(self.run.stage("corpus").path / "train.safetensors")
            with self.progress.task("importance", total=min(tokens, train.tokens)) as task:
                found = measure_importance(self.student[0], train, self.vocabulary, tokens, task)
            save_importance(found, self.folder / name)
        return found

    @property
    def _exported(self) -> bool:
        """Whether what the stage `export` measured is of this student, and of as many tokens."""
        record = self.run.stage("export").record
        if record is None or record["inputs"].get("distill") != self.run.stage("distill").output_digest:
            return False
        section = record.get("sections", {}).get("export", {})
        return bool(section.get("importance_tokens") == self.config.importance_tokens)

    def write(self, kind: str, target: Path, weighted: bool = True, source: Path | None = None) -> None:
        """Write a file of the student, or of another ``source``; ``weighted`` uses the importance matrix where the type
        takes one.
        """
        importance = self.importance if weighted and GGUF_TYPES[kind].importance else None
        name = self.run.recipe.name
        write_gguf(
            source or self.source, target, kind, name=name, licence=self._licence, rows=self.used, importance=importance
        )

    def size(self, kind: str) -> int:
        """Bytes of a file, before it is written."""
        model, tokenizer = self.student
        return planned_bytes(
            model.config,
            tokenizer,
            kind,
            name=self.run.recipe.name,
            licence=self._licence,
            rows=self.used,
            importance=self.config.importance_tokens > 0 and GGUF_TYPES[kind].importance,
        )

    def make(self, kind: str) -> dict[str, Any]:
        """Write a file and check it; one that was accepted before is kept.

        Raises:
            ExportMismatch: It says something else than its student, or makes other tokens.
        """
        target = self.folder / f"{self.run.recipe.name}-{kind}.gguf"
        entry = self.accepted.get(kind)
        if entry is not None and target.is_file() and files.digest_file(target) == entry["sha256"]:
            kept: dict[str, Any] = entry
            return kept
        started = time.monotonic()
        recovery = None
        try:
            self.write(kind, target)
            require_same_tokens(self.student[1], target, list(SAMPLES))
            found = self._compare(target, kind)
            if self.config.recover is not None and GGUF_TYPES[kind].importance:
                found, recovery = self._recover(kind, target, found)
            require_agreement(found, kind, self.config.max_kl[kind], target)
            behind = self._compare_behind(target, kind)
        except ExportMismatch:
            # No one is to find and run a file that was refused.
            target.unlink(missing_ok=True)
            raise
        made: dict[str, Any] = {
            "type": kind,
            "path": target.relative_to(self.run.path).as_posix(),
            "bytes": target.stat().st_size,
            "sha256": files.digest_file(target),
            "importance_tokens": self.config.importance_tokens if GGUF_TYPES[kind].importance else 0,
            "kl_to_pytorch": found.kl,
            "largest_kl_to_pytorch": found.largest_kl,
            "top1_agreement": found.top1,
            "positions": found.positions,
            "seconds": round(time.monotonic() - started, 3),
            **({"behind_window": behind} if behind else {}),
            **({"recovery": recovery} if recovery else {}),
        }
        self.accepted[kind] = made
        files.write_json(self._record, self.accepted)
        self.progress.say(
            f"  {target.name}: {made['bytes'] / 1e6:.1f} MB, KL to PyTorch {found.kl:.1e}, "
            f"same next token {found.top1:.1%}"
        )
        return made

    def choose(self, choice: ChooseConfig) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The file that the target asks for, and what was tried on the way.

        Raises:
            ExportMismatch: No type fits and is close enough; names what was tried.
        """
        limit = byte_limit(choice, self.student[0].config)
        sizes = {kind: self.size(kind) for kind in choice.among}
        tried: list[dict[str, Any]] = []
        for kind in candidates(choice, sizes, limit):
            try:
                made = self.make(kind)
            except ExportMismatch as error:
                tried.append({"type": kind, "bytes": sizes[kind], "refused": error.what})
                self._drop(kind)
                continue
            tried.append({"type": kind, "bytes": made["bytes"], "kl_to_pytorch": made["kl_to_pytorch"]})
            if choice.max_kl is None or made["kl_to_pytorch"] <= choice.max_kl:
                self.progress.say(f"  chosen: {kind}")
                return made, tried
            self._drop(kind)
        shown = ", ".join(f"{kind} {size / 1e6:.1f} MB" for kind, size in sizes.items())
        seen = "; ".join(
            f"{entry['type']}: {entry.get('refused') or 'KL {:.1e}'.format(entry['kl_to_pytorch'])}" for entry in tried
        )
        raise ExportMismatch(
            f"No type fits `export.choose`{f' (at most {limit / 1e6:.1f} MB)' if limit is not None else ''}: {shown}."
            + (f" Tried: {seen}." if tried else ""),
            "Allow more bytes or a larger `max_kl`, name more types under `among`, or make a smaller student.",
        )

    def _compare(self, file: Path, kind: str) -> Agreement:
        positions = sum(len(text.ids) for text in self.texts)
        with self.progress.task(f"check {kind}", total=positions, unit="positions") as task:
            said = file_says(file, self.student[1], self.texts, self.used, task)
        return agreement(self.expected, said)

    def _compare_behind(self, file: Path, kind: str) -> dict[str, Any] | None:
        """Compare what a file says behind the student's attention window; None where there is none.

        Raises:
            ExportMismatch: It is further from the student there than the recipe allows.
        """
        text = self.long_text
        if text is None:
            return None
        with self.progress.task(f"check {kind} behind the window", total=len(text.compared), unit="positions") as task:
            said = file_says(file, self.student[1], [text], self.used, task)
        found = agreement(self.expected_behind, said)
        require_agreement(found, kind, self.config.max_kl[kind], file, "behind its attention window, ")
        return {
            "window": text.compared.start,
            "positions": found.positions,
            "kl_to_pytorch": found.kl,
            "largest_kl_to_pytorch": found.largest_kl,
            "top1_agreement": found.top1,
        }

    def _recover(self, kind: str, target: Path, before: Agreement) -> tuple[Agreement, dict[str, Any]]:
        """Distil after quantisation, and keep the result where it predicts more nearly what the student does."""
        try:
            after = self._recovered(kind, target, before)
        except (TrainingDiverged, ExportMismatch) as error:
            self.progress.say(f"  recovery of {kind}, not kept: {error.what} {error.todo}")
            return before, {"kl_before": before.kl, "kl_after": None, "kept": False}
        kept = after.kl < before.kl
        self.progress.say(
            f"  recovery of {kind}: KL to PyTorch {before.kl:.4f} before, {after.kl:.4f} after"
            f"{'' if kept else '; not kept'}"
        )
        return (after if kept else before), {"kl_before": before.kl, "kl_after": after.kl, "kept": kept}

    def _recovered(self, kind: str, target: Path, before: Agreement) -> Agreement:
        """How the file of the recovered student agrees; it takes the place of the one before where it is closer.

        Raises:
            TrainingDiverged: The recovery ended in numbers that are not finite.
            ExportMismatch: The recovered file computes none that are.
        """
        from stillroom.formats.recover import recover

        config = self.config.recover
        assert config is not None
        student, tokenizer = self.student
        shapes = {key: tuple(parameter.shape) for key, parameter in student.named_parameters()}
        kinds = tensor_types(student.config, shapes, kind, rows=self.used, importance=self.importance is not None)
        train = Sequences.load(self.run.stage("corpus").path / "train.safetensors")
        with self.progress.task(f"recover {kind}", total=config.steps, unit="steps") as task:
            better = recover(student, kinds, self.importance, train, self.vocabulary, config, task)
        with tempfile.TemporaryDirectory(dir=self.folder, suffix=".partial") as folder:
            save_model(better, tokenizer, Path(folder) / "model")
            del better
            file = Path(folder) / target.name
            self.write(kind, file, source=Path(folder) / "model")
            after = self._compare(file, kind)
            if after.kl < before.kl:
                os.replace(file, target)
        return after

    def _drop(self, kind: str) -> None:
        """Remove a file that was only tried."""
        if kind not in self.config.gguf:
            (self.folder / f"{self.run.recipe.name}-{kind}.gguf").unlink(missing_ok=True)
            if self.accepted.pop(kind, None) is not None:
                files.write_json(self._record, self.accepted)

    @functools.cached_property
    def _licence(self) -> str | None:
        facts = self.run.stage("capture").path / "teacher.json"
        return licence_of_all(records_of(self.run)) if facts.is_file() else None
