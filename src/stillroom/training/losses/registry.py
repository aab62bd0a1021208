"""Objectives by the names that a recipe uses: the files of this package, and what other packages add.

Only the file of the objective that is asked for is imported.
"""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import entry_points

from stillroom.core.errors import RecipeError, SignalError
from stillroom.core.plugins import load_plugin, not_a_plugin, plugin_names
from stillroom.recipe.capture import CaptureConfig
from stillroom.recipe.student import ExistingStudent, Student
from stillroom.recipe.training import GROUP, OBJECTIVES, DistillConfig
from stillroom.signals.cache.registry import signal_kind
from stillroom.signals.signal import SignalKind
from stillroom.training.losses.objective import Objective


def objective_names() -> tuple[str, ...]:
    """Every name that ``distill.objective`` can have here: the built-in ones, then those of other packages."""
    return (*OBJECTIVES, *(name for name in plugin_names(GROUP) if name not in OBJECTIVES))


def objective_class(name: str) -> type[Objective]:
    """The class of an objective.

    Raises:
        RecipeError: There is none of this name.
        EnvironmentProblem: Another package's entry point does not name an objective, or cannot be loaded.
    """
    if name in OBJECTIVES:
        module = importlib.import_module(f"stillroom.training.losses.{name}")
        return next(
            found
            for _, found in inspect.getmembers(module, inspect.isclass)
            if issubclass(found, Objective) and found.__module__ == module.__name__ and found.name == name
        )
    for point in entry_points(group=GROUP, name=name):
        found = load_plugin(point)
        if not (inspect.isclass(found) and issubclass(found, Objective) and not inspect.isabstract(found)):
            raise not_a_plugin(point, "a class derived from stillroom.training.losses.objective.Objective")
        if getattr(found, "name", None) != name or not isinstance(getattr(found, "linear", None), bool):
            raise not_a_plugin(point, f'a class with `name = "{name}"` and `linear = True` or `False`')
        if not isinstance(found.partial, bool):
            raise not_a_plugin(point, "a class whose `partial` is `True` or `False`")
        return found
    raise RecipeError(
        f"`distill.objective`: there is no objective `{name}` here.",
        f"Known: {', '.join(objective_names())}. Or install the package that adds it.",
    )


def make_objective(name: str) -> Objective:
    """An objective by its name. Errors as in :func:`objective_class`."""
    return objective_class(name)()


def require_fit(distill: DistillConfig, capture: CaptureConfig, student: Student | None = None) -> None:
    """Refuse, before anything is captured, an objective that cannot take what the recipe has captured for it.

    Raises:
        RecipeError: No model learns at the learning rate or with the weight decay, the objective cannot take the codec's
            signals, they are biased and the recipe does not say so, or capture and training have different temperatures;
            names the keys. Or as in :func:`objective_class`.
        EnvironmentProblem: As in :func:`objective_class`.
    """
    if distill.learning_rate != "auto" and distill.learning_rate >= 1:
        raise RecipeError(
            f"`distill.learning_rate` is {distill.learning_rate:g}: AdamW moves every weight by about so much in each step, "
            "and weights are far smaller than 1.",
            "Write `auto`, or a number such as 5e-4.",
        )
    if distill.learning_rate != "auto" and distill.learning_rate * distill.weight_decay >= 1:
        raise RecipeError(
            f"`distill.learning_rate` is {distill.learning_rate:g} and `distill.weight_decay` {distill.weight_decay:g}: a step "
            "would take all of every weight away, or more.",
            "Write a `weight_decay` such as 0.01.",
        )
    objective = objective_class(distill.objective)
    if isinstance(student, ExistingStudent) and student.tokenizer == "own":
        _require_alignable(objective, distill, capture)
    try:
        objective.require(signal_kind(capture.codec), biased=distill.biased)
    except SignalError as error:
        raise RecipeError(
            f"`distill.objective: {distill.objective}` with `capture.codec: {{kind: {capture.codec.kind}}}`: {error.what}",
            error.todo,
        ) from None
    if distill.temperature != capture.temperature:
        raise RecipeError(
            f"`distill.temperature` is {distill.temperature:g} and `capture.temperature` is {capture.temperature:g}: teacher "
            "and student have to be compared at one temperature.",
            "Give both the same value.",
        )


def _require_alignable(objective: type[Objective], distill: DistillConfig, capture: CaptureConfig) -> None:
    """Refuse what a student with another tokenizer cannot learn from."""
    if signal_kind(capture.codec) not in (SignalKind.DENSE, SignalKind.COARSE):
        raise RecipeError(
            f"`student.tokenizer: own` with `capture.codec: {{kind: {capture.codec.kind}}}`: a student with another tokenizer "
            "needs the teacher's exact probabilities, and this codec keeps a part or a sample of them.",
            "Write `capture: {codec: {kind: hidden}}` (exact, 2 bytes per channel and position), or `{kind: dense}`.",
        )
    if not objective.coarse:
        raise RecipeError(
            f"`student.tokenizer: own` with `distill.objective: {distill.objective}`: this objective does not take the events "
            "that both tokenizers have in common.",
            "Use one of the built-in objectives.",
        )
    if distill.temperature != 1 or capture.temperature != 1:
        raise RecipeError(
            "`student.tokenizer: own` needs `distill.temperature` and `capture.temperature` 1: the probability of a stretch of "
            "text is one at temperature 1 only.",
            "Leave both out.",
        )
