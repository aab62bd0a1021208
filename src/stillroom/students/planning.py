"""From a target to a shape: measures how much each axis costs, lets the solver choose, evaluates the best few."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from stillroom.core.errors import RecipeError
from stillroom.core.progress import Progress
from stillroom.models.families.family import Family
from stillroom.recipe.student import ShrinkStudent, Target
from stillroom.students.limits import Limits, limits_of
from stillroom.students.measured import Measured
from stillroom.students.shape import KEYS, Anatomy, Shape
from stillroom.students.shrink import shrink
from stillroom.students.solver import Choice, LossModel, Solution, grid, require_pruned, shortlist, solve

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

AXIS_NAMES = {key: axis for axis, key in KEYS.items()}
"""A recipe's keys, and the axes of a shape that they size."""
SHARES = (0.75, 0.5)
"""Sizes of an axis, as shares of the teacher's, at which its cost is measured."""
JUDGED = 3
"""Shapes of the shortlist that are really pruned and evaluated."""


@dataclass(frozen=True)
class ShapePlan:
    """The chosen shape and how it was found.

    Attributes:
        shape: What is pruned to.
        limits: What had to hold.
        model: Measured cost of each axis.
        solution: What the solver found.
        judged: Shapes that were really pruned, with their KL on the evaluating part, best first.
    """

    shape: Shape
    limits: Limits
    model: LossModel
    solution: Solution
    judged: list[tuple[Choice, float]]

    def record(self) -> dict[str, Any]:
        """For ``shrink.json``: the limits, the choice and the alternatives that were rejected."""
        limits = {
            name: value for name, value in asdict(self.limits).items() if value is not None and value != float("inf")
        }
        kls = {choice.shape: kl for choice, kl in self.judged}

        def row(choice: Choice) -> dict[str, Any]:
            finite = {name: value for name, value in choice.measured.items() if value != float("inf")}
            return {
                "shape": asdict(choice.shape),
                "takes": finite,
                "predicted_kl": choice.loss,
                "kl": kls.get(choice.shape),
            }

        chosen = next(choice for choice, _ in self.judged if choice.shape == self.shape)
        turned_down = {
            name: row(choice) for name, choice in self.solution.alternatives.items() if choice.shape != self.shape
        }
        if self.solution.chosen.shape != self.shape:
            turned_down["least predicted"] = row(self.solution.chosen)
        return {"limits": limits, "chosen": row(chosen), "turned_down": turned_down, "curves": self.model.curves}


def given_sizes(student: ShrinkStudent) -> dict[str, int]:
    """The sizes that a recipe gives, by a shape's axis."""
    return {axis: size for key, axis in AXIS_NAMES.items() if (size := getattr(student, key)) is not None}


def kept_layers(student: ShrinkStudent, count: int) -> list[int] | None:
    """The layers that stay where a recipe says which are removed; None where they are to be found.

    Args:
        student: The recipe's section.
        count: Layers of the teacher.

    Raises:
        RecipeError: The teacher has no such layer, or another number of layers stays than the recipe says.
    """
    removed = student.remove_layers
    if removed is None:
        return None
    if removed and max(removed) >= count:
        raise RecipeError(
            f"`student.remove_layers` names layer {max(removed)}, and the teacher has {count}, counted from 0.",
            f"Name layers from 0 to {count - 1}.",
        )
    kept = [index for index in range(count) if index not in removed]
    if len(kept) != student.layers:
        raise RecipeError(
            f"`student.layers` is {student.layers}, and {len(kept)} of the teacher's {count} layers stay without those of "
            "`student.remove_layers`.",
            f"Write `layers: {len(kept)}`, or name {count - (student.layers or 0)} layers.",
        )
    return kept


def plan_shape(
    teacher: CausalModel,
    family: Family,
    anatomy: Anatomy,
    target: Target,
    fixed: dict[str, int],
    vocabulary: int,
    measured: Measured,
    repair: bool,
    progress: Progress,
    kept: list[int] | None = None,
) -> ShapePlan:
    """Choose a shape within a target.

    Args:
        teacher: The teacher, float32.
        family: Its family.
        anatomy: What shapes of it take.
        target: The recipe's.
        fixed: Sizes that the recipe gives.
        vocabulary: Rows of the student's embedding.
        measured: What was measured of the teacher.
        repair: Whether the student will be repaired; so are the shapes that are compared.
        progress: Draws the bar.
        kept: The layers that stay, where the recipe says which.

    Raises:
        RecipeError: Nothing fits; the message names the limit that binds and the nearest target that can be met. Or the
            teacher fits as it is, and there is nothing to prune.
    """
    anatomy.require_counted()
    limits = limits_of(target)
    axes = [AXIS_NAMES[axis] for axis in target.axes if AXIS_NAMES[axis] not in fixed]
    shapes = grid(anatomy.teacher, fixed, axes, vocabulary)
    # Whether anything fits at all, and whether the whole teacher does, is known before anything is measured.
    note = require_pruned(
        anatomy.teacher, solve(anatomy, limits, LossModel(anatomy.teacher, {}), shapes).chosen, limits
    )
    if note:
        progress.say(f"  {note}")
    model = measure_curves(teacher, family, anatomy.teacher, axes, measured, repair, progress)
    solution = solve(anatomy, limits, model, shapes)
    judged = []
    best = shortlist(solution, JUDGED)
    with progress.task("evaluating shapes", total=len(best), unit="shapes") as task:
        for choice in best:
            cut = shrink(teacher, family, choice.shape, measured, repair, screen_only=True, given=kept)
            judged.append((choice, cut.best_kl))
            task.advance(1, note=f"KL {cut.best_kl:.2f}")
    judged.sort(key=lambda pair: pair[1])
    shape = judged[0][0].shape
    progress.say(f"  within the target: {shape.words()}, KL {judged[0][1]:.2f}")
    for choice, kl in judged[1:]:
        progress.say(f"  rejected: {choice.shape.words()}, KL {kl:.2f}")
    return ShapePlan(shape, limits, model, solution, judged)


def measure_curves(
    teacher: CausalModel,
    family: Family,
    whole: Shape,
    axes: list[str],
    measured: Measured,
    repair: bool,
    progress: Progress,
) -> LossModel:
    """Prune along one axis at a time, to a few sizes, and evaluate each."""
    curves: dict[str, list[tuple[int, float]]] = {}
    points = [(axis, size) for axis in axes for size in _points(getattr(whole, axis))]
    with progress.task("measuring axes", total=len(points), unit="cuts") as task:
        for axis, size in points:
            cut = shrink(teacher, family, replace(whole, **{axis: size}), measured, repair, screen_only=True)
            curves.setdefault(axis, []).append((size, cut.best_kl))
            task.advance(1, note=f"{axis} {size}: KL {cut.best_kl:.2f}")
    return LossModel(whole, {axis: sorted(points) for axis, points in curves.items()})


def _points(whole: int) -> list[int]:
    """Sizes at which an axis is measured."""
    return sorted({max(1, round(whole * share)) for share in SHARES} - {whole})
