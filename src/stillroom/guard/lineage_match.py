"""Lineage, calibrated: which units of two models are active together? Finds copies whose units an adversary shuffled.

For each pair of layers, the correlation of every suspect unit's activations with every owner unit's, once for gate and once
for up projections (their sign left out), over the same text. A unit matches where both correlations are greatest at the same
owner unit, in both directions. The statistic is the share of the suspect's units that match, averaged over its layers, each
with the owner's layer that matches it best. Permuting units, rotating the stream and rescaling gate, up and down rows change
none of it.

Its distribution under independence is not known: independent models share some units, more the more alike their data. So it
gives a rank among control models and no p-value.

Legend: n units, T positions of text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from stillroom.core.errors import UnsupportedModel, UsageError
from stillroom.models.load import load_teacher
from stillroom.recipe.teacher import GgufTeacher, HuggingFaceTeacher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stillroom.models.load import LoadedTeacher

Floats = npt.NDArray[np.float32]
WORDS = 2048
"""Words of text at whose ends activations are compared."""
LENGTH = 256
"""Words that go through a model at once."""


@dataclass(frozen=True)
class Activity:
    """Standardized activations of a model's units over the same words of text.

    Attributes:
        gates: By layer: gate pre-activations [n, T], each row with mean 0 and length 1; empty where the family has none.
        ups: By layer: the same of the up projection.
    """

    gates: tuple[Floats, ...]
    ups: tuple[Floats, ...]


def open_model(path: Path) -> LoadedTeacher:
    """A model to run: a Hugging Face folder or a GGUF file, in float32 on the CPU. Errors as in :func:`load_teacher`."""
    config = GgufTeacher(path=str(path)) if path.is_file() else HuggingFaceTeacher(name=str(path))
    return load_teacher(config, "cpu", torch.float32)


def default_text() -> str:
    """Python's own documentation of its topics: the same on every machine with this version of Python."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name].strip() for name in sorted(topics))


def activity_of(path: Path, text: str, words: int = WORDS) -> Activity:
    """Run a model over text and keep its units' activations at the end of each word.

    Args:
        path: A Hugging Face folder or a GGUF file.
        text: The text; words are what whitespace parts, so that models with different tokenizers see the same positions.
        words: How many of them.

    Raises:
        UsageError: There is too little text.
        UnsupportedModel: The model has no feed-forward projections by the usual names.
        TeacherError: It cannot be opened.
    """
    split = text.split()[:words]
    if len(split) < 64:
        raise UsageError(f"The text has only {len(split)} words.", "Give at least 64; some thousand are better.")
    loaded = open_model(path)
    return _activity(loaded, split, str(path))


def _activity(loaded: LoadedTeacher, split: list[str], name: str) -> Activity:
    gates: list[list[Floats]] = []
    ups: list[list[Floats]] = []
    for ids, ends in _batches(loaded, split):
        caught: list[tuple[str, Floats]] = []
        hooks = [
            module.register_forward_hook(_catch(caught, part, ends)) for part, module in _projections(loaded.model)
        ]
        try:
            with torch.no_grad():
                loaded.model(input_ids=torch.tensor([ids]), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        for part, kept in (("gate", gates), ("up", ups)):
            for layer, value in enumerate(value for kind, value in caught if kind == part):
                if layer == len(kept):
                    kept.append([])
                kept[layer].append(value)
    if not ups:
        raise UnsupportedModel(
            f"{name}: it has no feed-forward projections by the names gate_proj, up_proj or gate_up_proj.",
            "Such a family cannot be matched yet.",
        )
    return Activity(
        tuple(_standard(np.concatenate(v, 1)) for v in gates), tuple(_standard(np.concatenate(v, 1)) for v in ups)
    )


def _projections(model: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    for name, module in model.named_modules():
        part = {"gate_proj": "gate", "up_proj": "up", "gate_up_proj": "fused"}.get(name.rpartition(".")[2])
        if part is not None and isinstance(module, torch.nn.Linear):
            yield part, module


def _catch(caught: list[tuple[str, Floats]], part: str, ends: list[int]) -> Any:
    def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        values = output[0, ends].float().numpy().T
        if part == "fused":
            half = len(values) // 2
            caught.extend((("gate", values[:half].copy()), ("up", values[half:].copy())))
        else:
            caught.append((part, values.copy()))

    return hook


def _batches(loaded: LoadedTeacher, split: list[str]) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids of a few words at a time, and the index of each word's last token."""
    for start in range(0, len(split), LENGTH):
        ids: list[int] = []
        ends: list[int] = []
        for place, word in enumerate(split[start : start + LENGTH]):
            # Each word alone, so that its end is a token's end in every tokenizer.
            ids += loaded.tokenizer.encode(word if place == 0 else f" {word}", add_special_tokens=False)
            ends.append(max(0, len(ids) - 1))
        yield ids, ends


def _standard(rows: Floats) -> Floats:
    centred = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    standard: Floats = (centred / np.maximum(length, 1e-9)).astype(np.float32)
    return standard


def matched_share(suspect: Activity, owner: Activity) -> tuple[float, list[tuple[int, float]]]:
    """The share of the suspect's units that match an owner's unit, and for each of its layers the owner's layer and share."""
    layers: list[tuple[int, float]] = []
    for place, ups in enumerate(suspect.ups):
        best = (0, 0.0)
        for other, owner_ups in enumerate(owner.ups):
            by_up = _mutual(np.abs(ups @ owner_ups.T))
            if suspect.gates and owner.gates:
                by_gate = _mutual(np.abs(suspect.gates[place] @ owner.gates[other].T))
                both = (by_up == by_gate) & (by_up >= 0)
            else:
                both = by_up >= 0
            share = float(both.mean())
            if share > best[1]:
                best = (other, share)
        layers.append(best)
    return float(np.mean([share for _, share in layers])), layers


def _mutual(similarity: Floats) -> npt.NDArray[np.int64]:
    """For each row its greatest column, where that column's greatest row is this one; -1 elsewhere.

    A unit that is never active is like no other: without this, units 0 of two silent layers would match.
    """
    columns = similarity.argmax(axis=1)
    rows = similarity.argmax(axis=0)
    places = np.arange(len(columns))
    return np.where((rows[columns] == places) & (similarity[places, columns] > 0), columns, -1)
