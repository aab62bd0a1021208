"""How much each layer does, measured in one pass over a sample of the user's own text.

Legend: B sequences, L tokens, H hidden width, P positions with a target.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from stillroom.core import progress
from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.models.compute import widest
from stillroom.models.families.family import Family
from stillroom.models.forward import hidden_states, logits_from_hidden, way_of

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel
    from stillroom.recipe.student import ImportanceConfig, ShrinkStudent
    from stillroom.students.shape import Shape

POSITIONS = 1024
"""Positions on which a candidate's KL is measured."""
JUDGED_AT_ONCE = 128
"""Of them, held at the same time."""
TOKENS_PER_INPUT = 4
"""Tokens of the sample for each input of a matrix, from which a least-squares fit is determined well."""
LEFT_OUT_POSITIONS = 256
"""Positions on which the KL without a single layer is measured: there is one such student a layer."""


@dataclass(frozen=True)
class Sample:
    """A sample of packed sequences.

    Attributes:
        fit: Measures and fits.
        judge: Evaluates what was fitted; none of it is in ``fit`` or ``repair``.
        repair: What the repair of the chosen shape is fitted on: ``fit``, and what comes after ``judge``.
    """

    fit: Sequences
    judge: Sequences
    repair: Sequences

    @classmethod
    def of(cls, sequences: Sequences, tokens: int, repair_tokens: int | None = None) -> Sample:
        """The first sequences of a split, about ``tokens`` tokens; the last sixth of them is held out for evaluation.

        Args:
            sequences: The split.
            tokens: Of the sample.
            repair_tokens: For the repair; None takes what is not held out.
        """
        count = max(2, min(len(sequences), round(tokens / sequences.length)))
        part = sequences.take(count)
        if len(part) < 2:
            return cls(part, part, part)
        middle = len(part) - max(1, len(part) // 6)
        fit, judge = part.take(middle), between(part, middle, len(part))
        if repair_tokens is None:
            return cls(fit, judge, fit)
        wanted = max(1, round(repair_tokens / sequences.length))
        behind = range(len(part), min(len(sequences), len(part) + max(0, wanted - middle)))
        return cls(fit, judge, sequences.part([*range(min(wanted, middle)), *behind]))

    @property
    def digests(self) -> list[str]:
        """Digests of its sequences: what was measured on it holds for the same ones."""
        return [*self.fit.digests, "", *self.judge.digests]

    @property
    def screen(self) -> Sequences:
        """The part of ``fit`` that candidates are compared on before the chosen one is fitted on all of it."""
        return self.fit.take(max(1, len(self.fit) // 3))


def few_tokens(student: ShrinkStudent, tokens: int, teacher: Shape, shape: Shape) -> str:
    """What is to be said where the repair is fitted on few tokens; empty where there are enough.

    The fit is ridge regression towards the matrix as it was: with few tokens it changes less, and repairs less.

    Args:
        student: The recipe's section.
        tokens: Of the training text.
        teacher: The unpruned shape.
        shape: The student's.
    """
    fitted, inputs = repaired_on(student.importance, tokens), shape.channels
    pruned = replace(shape, vocabulary=teacher.vocabulary) != teacher
    if not student.heal or not pruned or inputs == 0 or fitted >= TOKENS_PER_INPUT * inputs:
        return ""
    return (
        f"the least-squares repair is fitted on {fitted:,} tokens, {fitted / inputs:.1f} for each of a matrix's {inputs:,} "
        f"inputs: `student.importance.repair_tokens: {TOKENS_PER_INPUT * inputs}` (and as much text) would give "
        f"{TOKENS_PER_INPUT}"
    )


def cut_short(importance: ImportanceConfig, tokens: int) -> list[str]:
    """What is to be said where the recipe asks for a larger sample than the training text, of ``tokens`` tokens, has."""
    fields = type(importance).model_fields
    keys = [key for key in ("tokens", "repair_tokens") if getattr(importance, key) != fields[key].default]
    return [
        f"`student.importance.{key}` is {asked:,}, and the training text has {tokens:,} tokens: all of them are taken"
        for key in keys
        if (asked := getattr(importance, key)) is not None and asked > tokens
    ]


def repaired_on(importance: ImportanceConfig, tokens: int) -> int:
    """About how many tokens the repair is fitted on, of ``tokens`` of training text."""
    sample = min(tokens, importance.tokens)
    fitted = sample * 5 // 6
    if importance.repair_tokens is None:
        return fitted
    return min(importance.repair_tokens, tokens - (sample - fitted))


def between(sequences: Sequences, begin: int, end: int) -> Sequences:
    """The sequences from ``begin`` up to ``end``."""
    return sequences.part(slice(begin, end))


@contextmanager
def watching(modules: dict[str, torch.nn.Module], inputs: bool) -> Iterator[dict[str, torch.Tensor]]:
    """Catch the first input, or the output, of modules while the body runs a forward pass; float32, [B · L, H]."""
    caught: dict[str, torch.Tensor] = {}

    def keep(name: str, value: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        tensor = value[0] if isinstance(value, tuple) else value
        caught[name] = tensor.detach().flatten(0, 1).float()

    handles = []
    for name, module in modules.items():
        if inputs:
            handles.append(
                module.register_forward_pre_hook(
                    lambda _module, args, kwargs, name=name: keep(name, args[0] if args else kwargs["hidden_states"]),
                    with_kwargs=True,
                )
            )
        else:
            handles.append(module.register_forward_hook(lambda _m, _a, output, name=name: keep(name, output)))
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def texts(model: CausalModel, sample: Sequences) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """What goes through a model in one row: whole sequences, or, of a model that runs each document by itself, documents.

    Args:
        model: A causal language model.
        sample: Sequences.

    Yields:
        Ids and positions, both [1, L], and which of the L tokens are real, [N], on the model's device.
    """
    packed = way_of(model).packed
    device = next(model.parameters()).device
    for index in range(len(sample)):
        progress.ask()
        one = slice(index, index + 1)
        segments = sample.segments[index]
        real = (segments >= 0).nonzero().squeeze(1)
        if packed:
            yield sample.ids[one], sample.positions[one], real.to(device)
            continue
        for segment in sorted(set(segments[real].tolist())):
            own = (segments == segment).nonzero().squeeze(1)
            yield sample.ids[one, own], sample.positions[one, own], torch.arange(len(own), device=device)


@torch.no_grad()
def block_influence(model: CausalModel, family: Family, sample: Sequences) -> list[float]:
    """One minus the cosine between a layer's input and output, mean over tokens (Men et al. 2024, arXiv 2403.03853).

    Args:
        model: The teacher.
        family: Its family.
        sample: Sequences to measure on.
    """
    layers = family.layers(model)
    sums = torch.zeros(len(layers), dtype=torch.float64)
    named = {str(index): layer for index, layer in enumerate(layers)}
    count = 0
    for ids, positions, chosen in texts(model, sample):
        with watching(named, inputs=True) as inputs, watching(named, inputs=False) as outputs:
            hidden_states(model, ids, positions)
        count += len(chosen)
        changes = []
        for index in range(len(layers)):
            before, after = inputs[str(index)][chosen], outputs[str(index)][chosen]
            changes.append((1 - torch.cosine_similarity(before, after, dim=1)).sum())
        sums += torch.stack(changes).cpu().double()
    influence: list[float] = (sums / count).tolist()
    return influence


@torch.no_grad()
def leave_one_out_kl(model: CausalModel, family: Family, sample: Sequences) -> list[float]:
    """KL(model ‖ model without one layer) in nats per token, of each layer (Muralidharan et al. 2024, arXiv 2407.14679,
    measure a layer by the loss without it).

    What is below the layer is the same for all, so that it is run once.

    Args:
        model: The teacher.
        family: Its family.
        sample: Sequences to measure on; the first ones, up to 256 positions with a target.
    """
    from stillroom.students.layerwise import Layerwise

    enough = (sample.targets != IGNORED).sum(1).cumsum(0) >= LEFT_OUT_POSITIONS
    sample = sample.take(int(enough.nonzero()[0]) + 1 if bool(enough.any()) else len(sample))
    chosen = (sample.targets.flatten() != IGNORED).nonzero().squeeze(1)[:LEFT_OUT_POSITIONS]
    if len(sample) == 1 and len(chosen):
        # Nothing behind the last of them is seen by it.
        sample = sample.part(slice(None), int(chosen[-1]) + 1)
    walk = Layerwise(model, family, sample)
    chosen = chosen.to(walk.states[0].device)
    count = len(walk.layers)

    def logprobs(states: list[torch.Tensor]) -> torch.Tensor:
        hidden = family.last_norm(model)(torch.cat(states)).flatten(0, 1)
        return torch.log_softmax(logits_from_hidden(model, hidden[chosen]), dim=1)

    kept = []
    for _ in range(count):
        progress.ask()
        kept.append(walk.states)
        walk.move(walk.run()[0])
    whole = logprobs(walk.states)
    found = []
    for index in range(count):
        progress.ask()
        walk.states, walk.place = kept[index], index + 1
        walk.advance(count)
        found.append(float((whole.exp() * (whole - logprobs(walk.states))).sum(1).mean()))
    return found


@torch.no_grad()
def judged_logprobs(model: CausalModel, sample: Sequences) -> torch.Tensor:
    """Log-probabilities of the sample's first positions with a target, [P, V] float32; P is at most 1,024."""
    return torch.cat(list(_judged_parts(model, sample)))


@torch.no_grad()
def judged_kl(teacher: torch.Tensor, model: CausalModel, sample: Sequences) -> float:
    """Mean KL(teacher ‖ model) in nats per token on the same positions as ``teacher``, [P, V] log-probabilities."""
    divergence, begin = 0.0, 0
    for student in _judged_parts(model, sample):
        mine = teacher[begin : begin + len(student)]
        # In place: at a large vocabulary each of these is large.
        divergence += float(student.neg_().add_(mine).mul_(mine.exp()).sum(dtype=widest(mine.device)))
        begin += len(mine)
    return divergence / len(teacher)


def _judged_parts(model: CausalModel, sample: Sequences) -> Iterator[torch.Tensor]:
    """Log-probabilities of the positions for evaluation, a few rows at a time."""
    rows = []
    for one in range(len(sample)):
        progress.ask()
        rows.append(hidden_states(model, sample.ids[one : one + 1], sample.positions[one : one + 1]).flatten(0, 1))
    hidden = torch.cat(rows)
    chosen = (sample.targets.flatten() != IGNORED).nonzero().squeeze(1)
    chosen = chosen[:: max(1, len(chosen) // POSITIONS)][:POSITIONS].to(hidden.device)
    for begin in range(0, len(chosen), JUDGED_AT_ONCE):
        yield torch.log_softmax(logits_from_hidden(model, hidden[chosen[begin : begin + JUDGED_AT_ONCE]]), dim=1)
