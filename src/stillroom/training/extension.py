"""Going on with a shorter training of the same stage, so that a longer one does not begin at its first step.

With ``schedule: wsd`` (warm-up, stable, decay; Hägele et al. 2024, arXiv 2405.18392) the steps before the fall are the same
for a short and a long run. They are kept in ``stable/`` of the stage's folder, and a run that differs in nothing but more
``epochs`` begins there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stillroom.core import files
from stillroom.runs.run import HISTORY, Run, Stage, earlier_results
from stillroom.runs.stages import CHANGES_NOTHING, without
from stillroom.training.checkpoint import STATE, TENSORS, best_weights, newest
from stillroom.training.sweep import SWEEP

STABLE = "stable"
"""The folder of what a training was before its learning rate fell."""
BEST = "best.safetensors"
BEGIN = "begin.json"
KEPT = tuple(f"{STABLE}/{name}" for name in (TENSORS, STATE, BEST, BEGIN))
"""Files of it that are always there, from a stage's folder."""


@dataclass(frozen=True)
class Begin:
    """What a longer training takes over besides weights and averages.

    Attributes:
        step: Steps that are done.
        rows: Sequences per step.
        warmup: Steps in which the rate rose.
        best_step: The step whose weights were the best so far.
        came_from: The earlier result, from the run's folder; empty in what is kept for later.
    """

    step: int
    rows: int
    warmup: int
    best_step: int
    came_from: str = ""

    @classmethod
    def load(cls, folder: Path) -> Begin | None:
        """That of a scratch folder; None where the training began at its first step."""
        path = folder / BEGIN
        return cls(**files.read_json(path)) if path.is_file() else None


def keep(folder: Path, begin: Begin) -> None:
    """Keep the newest checkpoint of a scratch folder as it is now, in ``folder/stable``; costs no second copy on disk."""
    checkpoint = newest(folder)
    if checkpoint is None:
        return
    with files.replacing(folder / STABLE) as beside:
        beside.mkdir()
        for source, name in (
            (checkpoint / TENSORS, TENSORS),
            (checkpoint / STATE, STATE),
            (best_weights(folder, begin.best_step), BEST),
            (folder / SWEEP, SWEEP),
        ):
            if source.is_file():
                _link(source, beside / name)
        files.write_json(beside / BEGIN, asdict(begin))


def hand_over(scratch: Path, stage: Path) -> None:
    """Make what was kept a part of the finished stage."""
    if (scratch / STABLE).is_dir():
        shutil.rmtree(stage / STABLE, ignore_errors=True)
        os.rename(scratch / STABLE, stage / STABLE)


def extend(run: Run, stage: Stage, inputs: Mapping[str, str], sections: Mapping[str, Any]) -> Begin | None:
    """Put the newest earlier result that this training is longer than into the scratch folder, if there is one.

    Args:
        run: The run.
        stage: The stage, which has no checkpoint yet.
        inputs: Digests of everything that the result depends on, now.
        sections: The parts of the recipe that it reads, now.
    """
    if newest(stage.scratch) is not None:
        return None
    # A kill may have left it without the checkpoint that it belongs to.
    (stage.scratch / BEGIN).unlink(missing_ok=True)
    if sections["distill"].get("schedule") != "wsd":
        return None
    for path in earlier_results(run.path / HISTORY, stage.name):
        earlier = Stage(run, stage.name, path)
        record = earlier.record
        if (
            record is None
            or any(name not in record["outputs"] for name in KEPT)
            or not _same_but_longer(record, inputs, sections)
            or any(name.startswith(STABLE) for name in earlier.damaged())
        ):
            continue
        kept = path / STABLE
        held = files.read_json(kept / BEGIN)
        begin = Begin(**{**held, "came_from": path.relative_to(run.path).as_posix()})
        _link(kept / BEST, stage.scratch / best_weights(stage.scratch, begin.best_step).name)
        if (kept / SWEEP).is_file():
            shutil.copy2(kept / SWEEP, stage.scratch / SWEEP)
        files.write_json(stage.scratch / BEGIN, asdict(begin))
        with files.replacing(stage.scratch / f"step-{begin.step:07}") as beside:
            beside.mkdir()
            for name in (TENSORS, STATE):
                _link(kept / name, beside / name)
        return begin
    return None


def _same_but_longer(record: Mapping[str, Any], inputs: Mapping[str, str], sections: Mapping[str, Any]) -> bool:
    """Whether a record is of a training that differs in nothing but fewer passes over the text."""
    before, now = dict(record["inputs"]), dict(inputs)
    before.pop("recipe", None)
    now.pop("recipe", None)
    idle = CHANGES_NOTHING["distill"]
    old, new = without(record.get("sections", {}), idle), without(sections, idle)
    old_distill, new_distill = dict(old.pop("distill", {})), dict(new.pop("distill", {}))
    fewer, more = old_distill.pop("epochs", 1), new_distill.pop("epochs", 1)
    return before == now and old == new and old_distill == new_distill and fewer < more


def _link(source: Path, target: Path) -> None:
    """A second name for a file that no one changes; a copy where the file system has no second names."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
