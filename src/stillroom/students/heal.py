"""Repairs a cut model in closed form, before any training.

A removed run of layers is replaced by a linear map that is folded into the last matrix before the run, as Shopkhoev et
al. (2025, arXiv 2505.02819) do; but the whole matrix is fitted, on its own inputs, not only a map behind it: with F > H
inputs it can say more. Removed channels and heads are made up for in the same way (the structured form of SparseGPT and
SlimGPT: arXiv 2301.00774, 2412.18110): the matrix behind them is fitted again on the inputs that are left. Layers are
repaired from the bottom up, each on what the student, repaired so far, really produces, so that a later layer also
takes back errors of earlier ones.

Tokens weigh less the larger their stream is, for what follows reads it through a norm.

Legend: N tokens of the sample, F inputs of the matrix, H hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from stillroom.corpus.sequences import Sequences
from stillroom.models.families.family import Family
from stillroom.students.layerwise import Layerwise
from stillroom.students.narrow import Widths

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

RIDGE = 0.3
"""Pull of the fitted matrix to the old one, as a share of the mean square of its inputs."""


POWER = 0.5
"""A token weighs one over its mean square to this power."""


@torch.no_grad()
def heal(
    student: CausalModel,
    teacher: CausalModel,
    family: Family,
    kept: list[int],
    sample: Sequences,
    widths: Widths | None = None,
    moved: Callable[[], None] = lambda: None,
    everywhere: bool = False,
) -> int:
    """Fit the matrices behind everything that was removed; returns how many were fitted.

    Args:
        student: The cut teacher; changed in place.
        teacher: The teacher.
        family: Their family. Where a norm stands behind a matrix, what removed layers did cannot be folded into it;
            removed channels, heads and widths are made up for all the same.
        kept: Indices of the teacher's layers that the student has.
        sample: Sequences to fit on.
        widths: The cut of widths, if there was one.
        moved: Called after every layer of the student.
        everywhere: After removed layers, fit both matrices of every later layer too: it takes about twice the time and
            takes back more of the errors that run through.
    """
    widths = widths or Widths()
    ours, theirs = Layerwise(student, family, sample), Layerwise(teacher, family, sample)
    scale = float(getattr(student.config, "residual_multiplier", None) or 1.0)
    narrowed = widths.narrows
    everywhere = everywhere and not family.norm_after and len(kept) < len(theirs.layers)
    narrow_ffn = widths.channels is not None or widths.hidden is not None or everywhere
    narrow_attention = widths.groups is not None or widths.hidden is not None or everywhere
    hidden = widths.hidden
    ends = [*kept[1:], len(theirs.layers)]
    fitted = 0
    first, last = _to_fit(kept, ends, narrowed, everywhere, family)
    if first > 0:
        # Below the first run of removed layers the student is the teacher.
        theirs.advance(first)
        ours.states, ours.place = list(theirs.states), first
    for place, (index, end) in enumerate(zip(kept, ends, strict=True)):
        if not first <= place <= last:
            continue
        theirs.advance(index)
        layer = ours.layers[place]
        incoming = theirs.stream if narrow_attention else None
        their_results, seen = theirs.run(outputs=_outputs(family, narrow_attention, narrow_ffn))
        # Where the stream is still the teacher's, attention has nothing to make up for.
        attention_too = narrow_attention and (narrowed or place > first or kept[0] != 0)
        if attention_too:
            module = family.attention_matrix(layer)
            name = family.attention_output
            _, caught = ours.run(inputs=[name], outputs=[name])
            theirs_out = _cut(seen[f"out:{name}"], hidden)
            if family.norm_after:
                missing, weigh = theirs_out - caught[f"out:{name}"], theirs_out
            else:
                weigh = _cut(incoming, hidden) + scale * theirs_out  # type: ignore[arg-type]
                missing = (weigh - ours.stream) / scale - caught[f"out:{name}"]
            _fit(module, caught[f"in:{name}"], missing, weigh)
            fitted += 1
        theirs.move(their_results)
        theirs.advance(end)
        name = family.feed_forward_output
        gap = end > index + 1 and not family.norm_after
        if gap or narrow_ffn:
            module = family.feed_forward_matrix(layer)
            results, caught = ours.run(inputs=[name], outputs=[name])
            if family.norm_after:
                weigh = _cut(seen[f"out:{name}"], hidden)
                missing = weigh - caught[f"out:{name}"]
            else:
                weigh = _cut(theirs.stream, hidden)
                missing = (weigh - ours.pick(results)) / scale
            change = _fit(module, caught[f"in:{name}"], missing, weigh)
            fitted += 1
            # The layer's new output follows from its inputs to the matrix; behind a norm it has to be run again.
            if family.norm_after:
                results = ours.run()[0]
            else:
                results = ours.add(scale * caught[f"in:{name}"] @ change.T, results)
        else:
            results = ours.run()[0]
        ours.move(results)
        moved()
    return fitted


def _to_fit(kept: list[int], ends: list[int], narrowed: bool, everywhere: bool, family: Family) -> tuple[int, int]:
    """The first and the last layer of the student that is fitted; the first behind the last where none is."""
    if narrowed:
        return 0, len(kept) - 1
    gaps = [place for place, (index, end) in enumerate(zip(kept, ends, strict=True)) if end > index + 1]
    if family.norm_after or not gaps:
        return 0, -1
    # With the first layer gone already, nothing below is the teacher's.
    return (gaps[0] if kept[0] == 0 else 0), (len(kept) - 1 if everywhere else gaps[-1])


def _outputs(family: Family, attention: bool, feed_forward: bool) -> list[str]:
    """Modules of the teacher whose own output is a target."""
    wanted = [family.attention_output] if attention else []
    return wanted + ([family.feed_forward_output] if feed_forward and family.norm_after else [])


def _cut(values: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
    return values if hidden is None else values[:, hidden.to(values.device)]


def _fit(module: nn.Linear, inputs: torch.Tensor, missing: torch.Tensor, weigh: torch.Tensor) -> torch.Tensor:
    """Change a linear layer's matrix so that it gives what is missing; returns the change [H, F].

    Args:
        module: The layer.
        inputs: Its inputs, [N, F].
        missing: What its output lacks, [N, H].
        weigh: The wanted stream; a token weighs one over its mean square, [N, H].
    """
    weights = weigh.square().mean(1).clamp_min(1e-12) ** -POWER
    change = ridge_change(inputs, missing, weights / weights.mean())
    module.weight.add_(change.to(module.weight.dtype))
    return change


def ridge_change(
    inputs: torch.Tensor, missing: torch.Tensor, weights: torch.Tensor, ridge: float = RIDGE
) -> torch.Tensor:
    """The matrix M [H, F] of least ``Σ w |M x − missing|² + λ |M|²``, λ being ``ridge`` times the inputs' mean
    square.

    Args:
        inputs: x, [N, F].
        missing: [N, H].
        weights: w, [N].
        ridge: Share of the inputs' weighted mean square.
    """
    weighted = inputs * weights[:, None]
    gram = (inputs.T @ weighted).double().cpu()
    wanted = (weighted.T @ missing).double().cpu()
    diagonal = gram.diagonal()
    diagonal.add_(ridge * diagonal.mean() + 1e-12)
    change: torch.Tensor = torch.cholesky_solve(wanted, torch.linalg.cholesky(gram)).T.to(inputs)
    return change
