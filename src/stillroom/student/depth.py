"""Chooses which layers a student keeps, by what the cut costs on the user's own text. Knows nothing of vocabularies."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from stillroom.errors import UnsupportedModel
from stillroom.student.adapters import Adapter, copy_model
from stillroom.student.heal import heal
from stillroom.student.importance import Sample, block_distances, block_influence, judged_kl, judged_logprobs


@dataclass(frozen=True)
class Candidate:
    """One choice of layers and what it costs.

    Attributes:
        name: How the layers were chosen.
        kept: Indices of the teacher's layers.
        kl: KL(teacher ‖ cut) on the judging half of the sample, nats a token, before healing.
        healed_kl: The same after healing; None where nothing could be healed.
    """

    name: str
    kept: list[int]
    kl: float
    healed_kl: float | None

    @property
    def best_kl(self) -> float:
        """The lower of the two."""
        return self.kl if self.healed_kl is None else min(self.kl, self.healed_kl)


@dataclass(frozen=True)
class DepthCut:
    """The chosen cut, its model, and how it was found."""

    model: Any
    chosen: Candidate
    candidates: list[Candidate]
    influence: list[float]
    healed: bool


def cut_depth(teacher: Any, adapter: Adapter, layers: int, sample: Sample, heal_runs: bool) -> DepthCut:
    """The teacher with ``layers`` layers.

    Candidates come from two measures (block influence, angular distance of contiguous blocks); each is cut, healed and
    judged on text that neither measure has seen, and the one with the lowest KL to the teacher is taken.

    Args:
        teacher: The teacher, float32.
        adapter: Its family.
        layers: Layers to keep.
        sample: Text to measure, fit and judge on.
        heal_runs: Whether to repair in closed form.

    Raises:
        UnsupportedModel: The teacher has fewer layers.
    """
    count = len(adapter.layers(teacher))
    if layers > count:
        raise UnsupportedModel(f"`student.layers` is {layers}, and the teacher has {count} layers.", f"Ask for at most {count}.")
    influence = block_influence(teacher, adapter, sample.fit)
    if layers == count:
        everything = Candidate("all", list(range(count)), 0.0, None)
        return DepthCut(copy_model(teacher), everything, [everything], influence, False)
    reference = judged_logprobs(teacher, sample.judge)
    best: tuple[Candidate, Any, bool] | None = None
    candidates = []
    for name, kept in _choices(teacher, adapter, layers, sample, influence).items():
        model = _cut(teacher, adapter, kept)
        kl = judged_kl(reference, model, sample.judge)
        healed_kl = None
        healed = False
        if heal_runs and not adapter.norm_after:
            repaired = copy_model(model)
            if heal(repaired, teacher, adapter, kept, sample.fit):
                healed_kl = judged_kl(reference, repaired, sample.judge)
                if healed_kl < kl:
                    model, healed = repaired, True
        candidate = Candidate(name, kept, kl, healed_kl)
        candidates.append(candidate)
        if best is None or candidate.best_kl < best[0].best_kl:
            best = (candidate, model, healed)
    assert best is not None
    return DepthCut(best[1], best[0], candidates, influence, best[2])


def _choices(
    teacher: Any, adapter: Adapter, layers: int, sample: Sample, influence: list[float]
) -> dict[str, list[int]]:
    """Layers to keep, by the name of the measure; equal choices once."""
    count = len(influence)
    removed = count - layers
    by_influence = sorted(range(count), key=lambda index: -influence[index])[:layers]
    choices = {"block influence": sorted(by_influence)}
    # The first and the last layer change the stream's meaning; keep them whatever the measure says.
    inner = sorted(range(1, count - 1), key=lambda index: influence[index])[:removed]
    if len(inner) == removed:
        choices["block influence, ends kept"] = [index for index in range(count) if index not in inner]
    distances = block_distances(teacher, adapter, sample.fit, removed)
    # A contiguous block behind the first layer, so that its repair can be folded in front of it.
    begin = min(range(1, len(distances)), key=lambda index: distances[index], default=0)
    choices["contiguous block"] = [index for index in range(count) if not begin <= index < begin + removed]
    unique: dict[str, list[int]] = {}
    for name, kept in choices.items():
        if kept not in unique.values():
            unique[name] = kept
    return unique


def _cut(teacher: Any, adapter: Adapter, kept: list[int]) -> Any:
    """A copy of the teacher with these layers only; the others are never copied."""
    layers = adapter.layers(teacher)
    dropped = [layer for index, layer in enumerate(layers) if index not in kept]
    model = copy.deepcopy(teacher, {id(layer): layer for layer in dropped})
    model.config = copy.deepcopy(teacher.config)
    adapter.keep_layers(model, kept)
    with torch.no_grad():
        model.requires_grad_(requires_grad=True)
    return model
