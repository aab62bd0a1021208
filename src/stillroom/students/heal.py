"""Least-squares repair of a pruned model, before any training.

1. **Removed layers** (depth). A removed run of layers is replaced by a linear map that is folded into the last matrix before
   the run, as Shopkhoev et al. (2025, arXiv 2505.02819) do. Here the whole matrix is fitted, on its own inputs, not only an
   H × H map behind it: with F > H inputs it can represent more.
2. **Removed channels and heads** (width). The matrix behind them is fitted again on the inputs that are left: the structured
   form of SparseGPT and SlimGPT (arXiv 2301.00774, 2412.18110).

Layers are repaired from the bottom up. Each is fitted on what the student, repaired so far, really produces, so that a later
layer also compensates errors of earlier ones. The fit is ridge regression towards the old matrix (:func:`ridge_change`), and
how far each may move is decided on tokens that it was not fitted on; tokens weigh less the larger their residual stream is,
because what follows reads it through a norm.

Legend: N tokens of the sample, F inputs of the matrix, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import nn

from stillroom.corpus.sequences import Sequences
from stillroom.models.compute import exact
from stillroom.models.families.family import Family, matrix_of
from stillroom.students.layerwise import Layerwise
from stillroom.students.narrow import Widths

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Ridge penalties on the change of a matrix that are tried, as shares of the mean square of its inputs."""
RIDGE = 0.3
"""The one to begin with, and what is taken for fewer than :data:`BLOCKS` tokens."""
BLOCKS, HELD_OUT = 32, 8
"""About how many blocks of tokens a sample has at least, and of how many blocks one is held out while ridges are compared."""
COMPARED = 256
"""Rows of a matrix on which ridges are compared, at most: what all rows share is the costly part."""
POWER = 0.5
"""A token weighs one over its mean square to this power."""
AT_ONCE, ROUNDED_AT_ONCE = 8192, 1024
"""Tokens whose products are computed at a time; in bfloat16 fewer, because each sum over them is rounded once."""


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
        student: The pruned teacher; changed in place.
        teacher: The teacher.
        family: Their family. Where a norm is behind a matrix, what removed layers did cannot be folded into it;
            removed channels, heads and widths are repaired all the same.
        kept: Indices of the teacher's layers that the student has.
        sample: Sequences to fit on.
        widths: What was removed of widths, if anything.
        moved: Called after every layer of the student.
        everywhere: After removed layers, fit both matrices of every later layer too: it takes about twice the time and
            compensates more of the errors that propagate.
    """
    widths = widths or Widths()
    student_pass, teacher_pass = (Layerwise(model, family, sample, rounded=True) for model in (student, teacher))
    residual_scale = float(getattr(student.config, "residual_multiplier", None) or 1.0)
    everywhere = everywhere and not family.norm_after and len(kept) < len(teacher_pass.layers)
    fit_feed_forward = widths.channels is not None or widths.hidden is not None or everywhere
    fit_attention = widths.groups is not None or widths.hidden is not None or everywhere
    # Student layer i has to do what the teacher's layers kept[i] to ends[i] − 1 do.
    ends = [*kept[1:], len(teacher_pass.layers)]
    fitted = 0
    first, last = _to_fit(kept, ends, widths.narrows, everywhere, family)
    if first > 0:
        # Below the first run of removed layers the student is the teacher.
        teacher_pass.advance(first)
        student_pass.states, student_pass.place = list(teacher_pass.states), first
    repair = _Repair(student_pass, teacher_pass, family, widths.hidden, residual_scale)
    for number, (index, end) in enumerate(zip(kept, ends, strict=True)):
        if not first <= number <= last:
            continue
        teacher_pass.advance(index)
        # Where the residual stream is still the teacher's, there is nothing to repair of attention.
        attention = fit_attention and (widths.narrows or number > first or kept[0] != 0)
        feed_forward = fit_feed_forward or (end > index + 1 and not family.norm_after)
        output = repair.attention(attention, feed_forward)
        # The teacher goes on to the next layer that the student has, through those that were removed.
        teacher_pass.advance(end)
        if feed_forward:
            repair.feed_forward(output)
        else:
            student_pass.move(student_pass.run()[0])
        fitted += attention + feed_forward
        moved()
    return fitted


@dataclass
class _Repair:
    """The repair of one layer after the other. Each method lets go of the sample's activations when it returns.

    Attributes:
        student: Before the layer that is repaired.
        teacher: At the place whose stream is aimed at.
        family: Theirs.
        hidden: Entries of the hidden width that the student has; None is all.
        scale: What a layer's outputs are multiplied by before they are added to the stream.
    """

    student: Layerwise
    teacher: Layerwise
    family: Family
    hidden: torch.Tensor | None
    scale: float

    def attention(self, fit: bool, feed_forward: bool) -> torch.Tensor | None:
        """Run the teacher's layer and, with ``fit``, fit attention's output matrix to it.

        Returns:
            What the teacher's feed-forward part adds, where it is aimed at itself; None where the stream is.
        """
        family, name, feed = self.family, self.family.attention_output, self.family.feed_forward_output
        output = feed_forward and family.norm_after
        before = _cut(self.teacher.stream, self.hidden) if fit else None
        wanted = ([name] if fit else []) + ([feed] if output else [])
        results, caught = self.teacher.run(outputs=wanted)
        self.teacher.move(results)
        if before is not None:
            aim = _cut(caught.pop(f"out:{name}"), self.hidden)
            _, seen = self.student.run(inputs=[name], outputs=[name], upto=name)
            missing = seen.pop(f"out:{name}").neg_()
            if family.norm_after:
                # The norm is between the matrix and the stream: the target is the teacher's output itself.
                weights = _normed_weights(aim, before)
                missing += aim
            else:
                # The target is the teacher's stream behind attention, whatever the student's own stream lacks before it.
                target = before.add_(aim, alpha=self.scale)
                weights = _weights(target)
                missing += target.sub_(self.student.stream).div_(self.scale)
            del before, aim
            _fit(family.attention_matrix(self.layer), seen.pop(f"in:{name}"), missing, weights, self.student.rounded)
        return _cut(caught[f"out:{feed}"], self.hidden) if output else None

    def feed_forward(self, output: torch.Tensor | None) -> None:
        """Fit the feed-forward output matrix, with the removed layers behind it folded in, and move on.

        Args:
            output: What the teacher's adds, [N, H], where a norm is behind it.
        """
        family, name = self.family, self.family.feed_forward_output
        results, seen = self.student.run(inputs=[name], outputs=[name] if output is not None else [])
        target = _cut(self.teacher.stream, self.hidden)
        if output is not None:
            weights = _normed_weights(output, target)
            missing = output - seen.pop(f"out:{name}")
        else:
            weights = _weights(target)
            missing = target.sub_(self.student.pick(results)).div_(self.scale)
        del target
        inputs = seen.pop(f"in:{name}")
        change = _fit(family.feed_forward_matrix(self.layer), inputs, missing, weights, self.student.rounded)
        del missing
        # The layer's new output follows from the matrix's inputs; behind a norm it has to be run again.
        if output is not None:
            results = self.student.run()[0]
        else:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.student.rounded):
                added = inputs @ change.T
            results = self.student.add(added, results, self.scale)
        self.student.move(results)

    @property
    def layer(self) -> nn.Module:
        """The student's layer at hand."""
        return self.student.layers[self.student.place]


def _to_fit(kept: list[int], ends: list[int], narrowed: bool, everywhere: bool, family: Family) -> tuple[int, int]:
    """The first and the last layer of the student that is fitted; the first behind the last where none is."""
    if narrowed:
        return 0, len(kept) - 1
    gaps = [number for number, (index, end) in enumerate(zip(kept, ends, strict=True)) if end > index + 1]
    if family.norm_after or not gaps:
        return 0, -1
    # Where the first layer was removed, nothing below is the teacher's.
    return (gaps[0] if kept[0] == 0 else 0), (len(kept) - 1 if everywhere else gaps[-1])


def _cut(values: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
    return values if hidden is None else values[:, hidden.to(values.device)]


def _weights(stream: torch.Tensor) -> torch.Tensor:
    """What an error of each token's stream weighs, [N]: one over its mean square to the power :data:`POWER`.

    Args:
        stream: The teacher's stream that is aimed at, [N, H].
    """
    return stream.square().mean(1).clamp_min(1e-12) ** -POWER


def _normed_weights(output: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
    """The same, [N], where a root mean square norm is between a matrix and the stream: it divides an error of the
    matrix's output by the output's root mean square. Without that, the tokens with the largest outputs (in Gemma 3 270M up to
    five times the usual) are fitted at the others' cost.

    Args:
        output: The matrix's output that is aimed at, [N, H].
        stream: The teacher's stream there, [N, H].
    """
    return _weights(stream) / output.square().mean(1).clamp_min(1e-12)


def _fit(
    module: nn.Linear, inputs: torch.Tensor, missing: torch.Tensor, weights: torch.Tensor, rounded: bool
) -> torch.Tensor:
    """Change a linear layer's matrix so that it adds what its output lacks; returns the change [H, F].

    Args:
        module: The layer.
        inputs: Its inputs, [N, F].
        missing: What its output lacks, [N, H].
        weights: What an error weighs at each token, [N].
        rounded: As in :func:`ridge_change`.
    """
    change = ridge_change(inputs, missing, weights / weights.mean(), rounded=rounded)
    matrix_of(module).add_(change.to(module.weight.dtype))
    return change


def ridge_change(
    inputs: torch.Tensor,
    missing: torch.Tensor,
    weights: torch.Tensor,
    ridge: float | None = None,
    *,
    rounded: bool = False,
) -> torch.Tensor:
    """Weighted ridge regression: the matrix M [H, F] that minimizes ``Σ w |M x − missing|² + λ |M|²``.

    λ is ``ridge`` times the inputs' mean square. The normal equations are ``(Xᵀ W X + λ I) Mᵀ = Xᵀ W missing``. They are solved
    in float64, on the inputs' device if it has that.

    Args:
        inputs: x, [N, F].
        missing: [N, H].
        weights: w, [N].
        ridge: Share of the inputs' weighted mean square. Without it, the one of :data:`RIDGES` that leaves the least error on
            an eighth of the tokens when it is fitted to the rest; where none leaves less than no change does, the change is 0.
        rounded: Compute the sums of products over a thousand tokens in bfloat16; what they add up to stays exact.
    """
    fitted, held = _moments(inputs, missing, weights, rounded)
    if ridge is None and len(inputs) >= BLOCKS:
        ridges = _compared(fitted, held)
    else:
        ridges = (RIDGE if ridge is None else ridge,)
    total = fitted.add(held)
    change = next((found for each in ridges if (found := total.solved(each)) is not None), None)
    return torch.zeros_like(total.cross).T.to(inputs) if change is None else change.T.to(inputs)


@dataclass
class _Moments:
    """Weighted second moments of a part of the sample.

    Attributes:
        gram: Xᵀ W X, [F, F].
        cross: Xᵀ W missing, [F, H].
    """

    gram: torch.Tensor
    cross: torch.Tensor

    def add(self, other: _Moments) -> _Moments:
        """Those of both parts; in place."""
        self.gram += other.gram
        self.cross += other.cross
        return self

    def solved(self, ridge: float, rows: slice = slice(None)) -> torch.Tensor | None:
        """Mᵀ [F, H] of :func:`ridge_change`; None where the sums with the ridge are not positive definite.

        Args:
            ridge: Share of the inputs' weighted mean square.
            rows: Of M, those that are wanted.
        """
        diagonal = self.gram.diagonal()
        before = diagonal.clone()
        diagonal.add_(ridge * before.mean() + 1e-12)
        factor, failed = torch.linalg.cholesky_ex(self.gram)
        diagonal.copy_(before)
        return None if failed else torch.cholesky_solve(self.cross[:, rows], factor)


def _compared(fitted: _Moments, held: _Moments) -> tuple[float, ...]:
    """The one of :data:`RIDGES` that leaves the smallest error on what was held out, from :data:`RIDGE` on in the direction in
    which the error falls, and the larger ones, for sums that rounding spoiled; none where it leaves no less than no change.
    """
    rows = slice(None, None, -(-fitted.cross.shape[1] // COMPARED))
    wanted = held.cross[:, rows]

    @cache
    def error(place: int) -> float:
        """Σ w |M x − missing|² − Σ w |missing|² over what was held out."""
        change = fitted.solved(RIDGES[place], rows)
        return math.inf if change is None else float(((held.gram @ change - 2 * wanted) * change).sum())

    place = RIDGES.index(RIDGE)
    while (best := min(range(max(0, place - 1), min(len(RIDGES), place + 2)), key=error)) != place:
        place = best
    return RIDGES[place:] if error(place) < 0 else ()


def _moments(
    inputs: torch.Tensor, missing: torch.Tensor, weights: torch.Tensor, rounded: bool
) -> tuple[_Moments, _Moments]:
    """Of what is fitted on and of what is held out, added up over blocks: a weighted copy of the sample is never whole."""
    dtype, at_once = (torch.bfloat16, ROUNDED_AT_ONCE) if rounded else (inputs.dtype, AT_ONCE)
    size = min(at_once, -(-len(inputs) // BLOCKS))
    shapes = (inputs.shape[1], inputs.shape[1]), (inputs.shape[1], missing.shape[1])
    fitted, held = (_Moments(*(exact(inputs.new_zeros(shape)) for shape in shapes)) for _part in range(2))
    blocks = zip(*(torch.split(rows, size) for rows in (inputs, missing, weights.sqrt())), strict=True)
    for number, (part, lacks, root) in enumerate(blocks):
        weighted = (part * root[:, None]).to(dtype)
        moments = held if number % HELD_OUT == HELD_OUT - 1 else fitted
        moments.gram += exact(weighted.T @ weighted)
        moments.cross += exact(weighted.T @ (lacks * root[:, None]).to(dtype))
    return fitted, held
