"""Makes a student of a shape out of its teacher: what to prune is measured, pruned, repaired and evaluated.

Which layers can be spared is not the same as which are least: a long run of removed layers leaves one matrix to make up
for all of them, so that pruning in shorter runs of slightly more important layers may end closer. Several choices are
therefore pruned, repaired on a part of the sample and evaluated; the best one is repaired on all of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from stillroom.core.errors import UnsupportedModel
from stillroom.corpus.sequences import Sequences
from stillroom.models.at_hand import whole
from stillroom.models.families.family import Family, cut_config
from stillroom.students.heal import heal
from stillroom.students.importance import judged_kl
from stillroom.students.measured import Measured
from stillroom.students.narrow import Widths, narrow
from stillroom.students.shape import Shape
from stillroom.students.widths import choose_widths

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel, ModelConfig

LONGEST_RUNS = (None, 3, 2)
"""Most layers removed in a row, in the choices that are tried; None is no limit."""


@dataclass(frozen=True)
class Candidate:
    """One choice of layers and what it costs.

    Attributes:
        name: How the layers were chosen.
        kept: Indices of the teacher's layers.
        kl: KL(teacher ‖ pruned) on the evaluating part of the sample, nats per token, before any repair.
        healed_kl: The same after a repair on the screening part; None where nothing was repaired.
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
class Shrunk:
    """A student and how it came about.

    Attributes:
        model: The student.
        kept: Indices of the teacher's layers.
        chosen_by: Name of the candidate.
        kl: KL to the teacher before the repair.
        healed_kl: After the repair; None where there was none.
        healed: Whether the model is the repaired one.
        unrepaired: The same student before the repair; None where the model is that.
        lost: Share of the activations' energy that pruning each width removed.
        candidates: All choices of layers that were evaluated.
    """

    model: CausalModel
    kept: list[int]
    chosen_by: str
    kl: float
    healed_kl: float | None
    healed: bool
    unrepaired: CausalModel | None = None
    lost: dict[str, float] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)

    @property
    def best_kl(self) -> float:
        """KL of the model."""
        return self.healed_kl if self.healed and self.healed_kl is not None else self.kl


def shrink(
    teacher: CausalModel,
    family: Family,
    shape: Shape,
    measured: Measured,
    repair: bool,
    *,
    screen_only: bool = False,
    given: list[int] | None = None,
    moved: Callable[[], None] = lambda: None,
) -> Shrunk:
    """The teacher in a smaller shape; the vocabulary stays the teacher's.

    Args:
        teacher: The teacher; it computes in float32.
        family: Its family.
        shape: Layers, channels, groups, hidden width and experts to keep.
        measured: What was measured of the teacher.
        repair: Whether to repair by least squares; a repair is kept only where it lowers the KL on the evaluating part.
        screen_only: Repair on the screening part only, to compare shapes.
        given: The layers to keep; without it, the best of several choices.
        moved: Called after every repaired layer.

    Raises:
        UnsupportedModel: The teacher has less than is asked.
    """
    count = len(family.layers(teacher))
    if shape.layers > count:
        raise UnsupportedModel(
            f"`student.layers` is {shape.layers}, and the teacher has {count} layers.", f"Ask for at most {count}."
        )
    sample = measured.sample
    if shape.channels < family.channels(teacher.config) or shape.groups < family.groups(teacher.config):
        measured.order(teacher, family)
    if given is None:
        choices = layer_choices(measured.influence, shape.layers, measured.leave_one_out)
    else:
        choices = {"as the recipe says": given}
    choices = described(choices, teacher, family)
    candidates: list[Candidate] = []
    narrowed = _widths(teacher, family, measured, shape, next(iter(choices.values()))).narrows
    foldable = repair and family.repairable and (narrowed or (shape.layers < count and not family.norm_after))
    for name, kept in choices.items():
        if len(choices) == 1:
            candidates.append(Candidate(name, kept, 0.0, None))
            break
        model = _cut(teacher, family, kept, _widths(teacher, family, measured, shape, kept))
        kl = judged_kl(measured.reference, model, sample.judge)
        healed_kl = None
        if foldable:
            healed_kl = _heal(model, teacher, family, kept, measured, shape, sample.screen, lambda: None, False)
        candidates.append(Candidate(name, kept, kl, healed_kl))
        del model  # before the next one is made
    best = min(candidates, key=lambda candidate: candidate.best_kl)
    widths = _widths(teacher, family, measured, shape, best.kept)
    model = _cut(teacher, family, best.kept, widths)
    if shape.layers == count and not narrowed:
        return Shrunk(model, best.kept, best.name, 0.0, None, False)
    kl = judged_kl(measured.reference, model, sample.judge)
    healed_kl, healed, unrepaired = None, False, None
    if foldable:
        repaired = copy.deepcopy(model)
        part = sample.screen if screen_only else sample.repair
        healed_kl = _heal(repaired, teacher, family, best.kept, measured, shape, part, moved, not screen_only)
        if healed_kl < kl:
            model, unrepaired, healed = repaired, model, True
    lost = measured.widths.lost(best.kept, widths)
    return Shrunk(
        model, best.kept, best.name, kl, healed_kl, healed, unrepaired, lost, candidates if len(candidates) > 1 else []
    )


def layer_choices(
    influence: list[float], layers: int, leave_one_out: list[float] | None = None
) -> dict[str, list[int]]:
    """Layers to keep, by how they were chosen; equal choices once.

    The least important layers go first, but never the first and the last, which change what the stream means, as long
    as enough others can go.

    Args:
        influence: Block influence of each layer.
        layers: How many to keep.
        leave_one_out: KL without each single layer; None or empty where it was not measured.
    """
    count = len(influence)
    removed = count - layers
    if removed == 0:
        return {"all": list(range(count))}
    found: dict[str, list[int]] = {}
    for measure, scores, longest in (
        *(("block influence", influence, longest) for longest in LONGEST_RUNS),
        # Single removals say nothing of long runs.
        *(("leave-one-out KL", leave_one_out, longest) for longest in LONGEST_RUNS[1:]),
    ):
        gone = _least(scores, removed, longest) if scores else None
        if gone is None:
            continue
        kept = [index for index in range(count) if index not in gone]
        if kept not in found.values():
            found[measure if longest is None else f"{measure}, runs of at most {longest}"] = kept
    return found


def described(choices: dict[str, list[int]], teacher: CausalModel, family: Family) -> dict[str, list[int]]:
    """The choices whose layers a config of the family can describe: one that says, for example, "every second layer has
    experts" cannot say so of any others.

    Raises:
        UnsupportedModel: There is none.
    """
    if family.uniform:
        return choices
    whole = _tensors_by_layer(teacher.config, family)
    found = {}
    for name, kept in choices.items():
        config = copy.deepcopy(teacher.config)
        cut_config(config, kept)
        if _tensors_by_layer(config, family) == [whole[index] for index in kept]:
            found[name] = kept
    if not found:
        raise UnsupportedModel(
            f"The configuration of the family `{family.name}` cannot describe a model of the layers that matter most: its "
            "layers are of different kinds in a fixed order.",
            "Ask for another number of layers, or keep them all and prune along another axis.",
        )
    return found


def _tensors_by_layer(config: ModelConfig, family: Family) -> list[dict[str, tuple[int, ...]]]:
    """Names and shapes of each layer's tensors, as a config describes them."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: CausalModel = AutoModelForCausalLM.from_config(config)
    return [{name: tuple(value.shape) for name, value in layer.state_dict().items()} for layer in family.layers(model)]


def _least(scores: list[float], removed: int, longest: int | None) -> set[int] | None:
    """The least important layers, with at most ``longest`` in a row; None where there are not enough."""
    count = len(scores)
    inner = range(1, count - 1)
    order = sorted(inner, key=lambda index: scores[index])
    if longest is None:
        if removed > len(order):
            order = [*order, count - 1, 0]
        return set(order[:removed])
    gone: set[int] = set()
    for index in order:
        if len(gone) == removed:
            break
        before = after = 0
        while index - before - 1 in gone:
            before += 1
        while index + after + 1 in gone:
            after += 1
        if before + 1 + after <= longest:
            gone.add(index)
    return gone if len(gone) == removed else None


def _widths(teacher: CausalModel, family: Family, measured: Measured, shape: Shape, kept: list[int]) -> Widths:
    return choose_widths(
        measured.widths,
        teacher.config,
        kept,
        shape.channels,
        shape.groups,
        shape.hidden,
        shape.experts,
        family,
    )


def _heal(
    model: CausalModel,
    teacher: CausalModel,
    family: Family,
    kept: list[int],
    measured: Measured,
    shape: Shape,
    part: Sequences,
    moved: Callable[[], None],
    everywhere: bool,
) -> float:
    """Repair a model in place; returns its KL on the evaluating part."""
    heal(model, teacher, family, kept, part, _widths(teacher, family, measured, shape, kept), moved, everywhere)
    return judged_kl(measured.reference, model, measured.sample.judge)


def _cut(teacher: CausalModel, family: Family, kept: list[int], widths: Widths) -> CausalModel:
    """A copy of the teacher with these layers and widths; removed layers are never copied."""
    layers = family.layers(teacher)
    dropped = [layer for index, layer in enumerate(layers) if index not in kept]
    shared: dict[int, object] = {id(layer): layer for layer in dropped}
    if widths.narrows:
        # What narrower layers are pruned from is not copied.
        shared |= {id(parameter): parameter for parameter in teacher.parameters()}
    model = copy.deepcopy(teacher, shared)
    family.keep_layers(model, kept)
    if widths.narrows:
        model = narrow(model, family, widths)
    else:
        whole(model, model.get_input_embeddings().weight.dtype)
    model.requires_grad_(requires_grad=True)
    return model.eval()
