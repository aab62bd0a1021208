"""What the parts of :mod:`benchmarks.guard` share: their setting, small models, training, and sampling."""

from __future__ import annotations

import copy
import functools
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks import report
from benchmarks.serve import default_model
from stillroom.core.errors import StillroomError
from stillroom.guard.findings import subject_digest
from stillroom.guard.lineage_examine import open_owner
from stillroom.guard.lineage_match import default_text, open_model
from stillroom.runs.run import Run

if TYPE_CHECKING:
    from stillroom.models.load import LoadedTeacher

LENGTH = 64
"""Tokens of a training sequence."""
ROWS = 64
"""Sequences that are sampled at once."""
Result = tuple[dict[str, Any], dict[str, Any]]


USES = {
    "lineage": ("model", "student", "teacher"),
    "mark": ("model", "mark_tokens"),
    "judged": ("model", "questions", "teacher"),
    "speed": ("served",),
    "coins": ("model",),
}
"""On what a part's results depend besides the sizes (:meth:`Setting.uses`): with another it is measured anew."""


class NotMeasured(Exception):
    """Why a part has no result here. The others have theirs."""


@functools.cache
def weights_of(path: Path) -> str:
    """A digest of a model's file, or of all files of its folder: another model may be at the same path tomorrow."""
    return subject_digest(path)[:16]


@dataclass(frozen=True)
class Setting:
    """What the parts share.

    Attributes:
        work: Folder of what is kept.
        quick: Tiny sizes.
        model: Hugging Face folder that is marked and copied.
        student: A run, or a model.
        teacher: Its teacher's file or folder.
        mark_tokens: Tokens that a copy learns from; None takes the usual number.
        kept: Finished parts, and finished steps of parts.
    """

    work: Path
    quick: bool
    model: Path | None
    student: Path | None
    teacher: Path | None
    mark_tokens: int | None
    kept: report.Kept

    def pick(self, full: int, quick: int) -> int:
        """A size."""
        return quick if self.quick else full

    def key(self, part: str) -> str:
        """A part's name among the finished ones, with the options on which it depends."""
        given = [f"{use}={value}" for use in USES.get(part, ()) if (value := self.uses(use)) is not None]
        return " ".join([part, *given])

    def uses(self, what: str) -> str | None:
        """What a part takes of the options, as keys say it: digests of weights and of a run's corpus. None where it was not
        given.
        """
        from stillroom.serving.models import open_model as open_served

        try:
            match what:
                case "mark_tokens":
                    return None if self.mark_tokens is None else str(self.mark_tokens)
                case "model":
                    return None if self.model is None else weights_of(self.model)
                case "teacher":
                    return None if self.teacher is None else weights_of(self.teacher)
                case "student":
                    return None if self.student is None else weights_of(open_owner(self.student).model)
                case "questions":
                    return None if self.student is None else Run.open(self.student).stage("corpus").output_digest[:16]
                case _:
                    with open_served(self.served) as opened:
                        return weights_of(opened.gguf)
        except (StillroomError, AssertionError):
            return "none"  # the part itself says why there is none

    @property
    def served(self) -> Path:
        """What is served: the student, or else what servers are measured with."""
        return self.student if self.student is not None else default_model()

    def step(self, part: str, name: str, make: Callable[[], Any]) -> Any:
        """A finished step of a part, or one that is made now."""
        key = f"{self.key(part)}: {name}"
        if key not in self.kept.cells:
            self.kept.add(key, {"value": make()})
            sys.stderr.write(f"{key}\n")
        return self.kept.cells[key]["value"]


@functools.cache
def library_text(size: int) -> str:
    """Characters of Python's own library, which is on every machine: more text than its documentation has."""
    found, total = [], 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        found.append(path.read_text(encoding="utf-8", errors="replace"))
        total += len(found[-1])
        if total >= size:
            break
    if total < size:
        raise NotMeasured(f"Python's library here has only {total} characters of text; {size} are needed.")
    return "\n\n".join(found)[:size]


def batches(ids: list[int], steps: int, rng: np.random.Generator, size: int = 8) -> list[torch.Tensor]:
    """Random windows [size, LENGTH] of a text's tokens."""
    starts = rng.integers(0, len(ids) - LENGTH, size=(steps, size))
    return [torch.tensor([ids[start : start + LENGTH] for start in row]) for row in starts.tolist()]


def train(model: Any, fed: list[torch.Tensor], rate: float, teacher: Any = None) -> None:
    """Train on next tokens, or on a teacher's predictions.

    Args:
        model: It is changed.
        fed: Batches of ids [rows, length]; below 0 is padding, on the right.
        rate: Learning rate.
        teacher: Its predictions are learnt instead of the text; then without padding.
    """
    model.requires_grad_(True)  # as opened, models are frozen
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    for ids in fed:
        logits = model(input_ids=ids.clamp(min=0), use_cache=False).logits
        if teacher is None:
            targets = torch.where(ids < 0, -100, ids)[:, 1:]
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten())
        else:
            with torch.no_grad():
                wanted = torch.log_softmax(teacher(input_ids=ids, use_cache=False).logits, -1)
            loss = torch.nn.functional.kl_div(
                torch.log_softmax(logits, -1).flatten(0, 1),
                wanted.flatten(0, 1),
                log_target=True,
                reduction="batchmean",
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()


def small_models(setting: Setting, count: int) -> list[Path]:
    """Independently drawn models, each trained on a window of text; thirds share all, half or none of it. Kept in ``work``."""
    from tests.tiny_models import tiny_model

    steps = setting.pick(200, 3)
    found = []
    for number in range(count):
        folder = setting.work / "models" / f"{number}-{steps}"
        done = folder.with_suffix(".done")
        if not done.exists():
            tiny_model("llama", folder, layers=2, seed=1000 + number, tied=False)
            loaded = open_model(folder)
            shift = (0, 100_000 * (number % 2), 200_000 * (number // 3 + 1))[number % 3]
            text = library_text(shift + 200_000)[shift : shift + 200_000]
            ids = loaded.tokenizer.encode(text, add_special_tokens=False)
            train(loaded.model, batches(ids, steps, np.random.default_rng(number)), 1e-3)
            loaded.model.save_pretrained(folder)
            done.touch()
        found.append(folder)
    return found


def tuned(source: Path, target: Path, steps: int, rate: float = 3e-4) -> Path:
    """A model trained further on another text."""
    loaded = open_model(source)
    ids = loaded.tokenizer.encode(default_text()[:200_000], add_special_tokens=False)
    train(loaded.model, batches(ids, steps, np.random.default_rng(7)), rate)
    return keep(loaded, loaded.model, target)


def keep(loaded: LoadedTeacher, model: Any, target: Path) -> Path:
    """Write a model and its tokenizer."""
    model.save_pretrained(target)
    loaded.tokenizer.save_pretrained(target)
    return target


def sampled(
    loaded: LoadedTeacher,
    count: int,
    seed: int,
    biases: list[tuple[int, float]] | None = None,
    length: int = LENGTH,
) -> torch.Tensor:
    """Tokens [rows, length] that a model samples at temperature 1, each row from a word of the documentation."""
    model: Any = loaded.model
    added = bias_row(loaded, biases or [])
    generator = torch.Generator().manual_seed(seed)
    first = torch.tensor(loaded.tokenizer.encode(default_text()[:200_000], add_special_tokens=False))
    rows = []
    for _ in range(-(-count // (ROWS * length))):
        ids = first[torch.randint(len(first), (ROWS, 1), generator=generator)]
        fed, past = ids, None
        with torch.inference_mode():
            for _ in range(length):
                out = model(input_ids=fed, past_key_values=past, use_cache=True)
                past = out.past_key_values
                fed = torch.multinomial(torch.softmax(out.logits[:, -1].float() + added, -1), 1, generator=generator)
                ids = torch.cat([ids, fed], 1)
        rows.append(ids[:, 1:].clone())
    return torch.cat(rows)[: -(-count // length)].clone()


def bias_row(loaded: LoadedTeacher, biases: list[tuple[int, float]]) -> torch.Tensor:
    """What is added to every id's logit, [V]."""
    added = torch.zeros(loaded.model.get_output_embeddings().weight.shape[0])
    for token, bias in biases:
        added[token] = bias
    return added


def spoken(loaded: LoadedTeacher, count: int, seed: int) -> str:
    """What a model samples, as text."""
    return "\n".join(str(loaded.tokenizer.decode(row)) for row in sampled(loaded, count, seed))


def with_model(loaded: LoadedTeacher, model: Any) -> LoadedTeacher:
    """The same with another model."""
    other = copy.copy(loaded)
    object.__setattr__(other, "model", model)
    return other
