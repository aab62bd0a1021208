"""What the stages `distill` and `baseline` take: they do the same work."""

from __future__ import annotations

from stillroom.recipe.recipe import Recipe
from stillroom.runs.costs import OPEN_STUDENT_SECONDS, Counts, Profile, StageCost

VALIDATIONS = 10
"""Validations of a training run whose recipe does not say how often to validate."""
VALIDATION_WORK = 1 / 3
"""Time of a validation divided by a training step's, per token: a forward pass without the backward pass."""
CHECKPOINT_COPIES = 4
"""Sizes of the student's weights that the checkpoint and the best weights take on disk while the model is trained: the
weights and AdamW's two moments in the checkpoint, and the best weights so far."""


def stage_cost(recipe: Recipe, counts: Counts, profile: Profile) -> StageCost:
    """Training steps, validations, and the weights that are written; at the end the best ones are read back."""
    config = recipe.distill
    forward_tokens = min(config.micro_batch_tokens or config.batch_tokens, counts.train_tokens)
    training = profile.train_bytes + forward_tokens * counts.expansion * profile.token_bytes
    return StageCost(
        seconds=_seconds(recipe, counts, profile),
        memory_bytes=profile.base_bytes + training + counts.student_bytes,
        disk_bytes=(1 + CHECKPOINT_COPIES) * counts.student_bytes,
    )


def training_steps(recipe: Recipe, counts: Counts) -> int:
    """Optimizer steps."""
    per_step = max(1, recipe.distill.batch_tokens // counts.sequence_length)
    return recipe.distill.epochs * -(-counts.train_tokens // (per_step * counts.sequence_length))


def training_operations(recipe: Recipe, counts: Counts) -> int:
    """Floating-point operations of the student's training, without the baseline's.

    They are 6 S n for S parameters and n tokens (Kaplan et al. 2020, arXiv 2001.08361).
    """
    tokens = counts.train_tokens * counts.expansion
    return round(6 * counts.student_parameters * tokens * recipe.distill.epochs)


def _seconds(recipe: Recipe, counts: Counts, profile: Profile) -> float:
    config = recipe.distill
    steps = training_steps(recipe, counts)
    validations = 1 + -(-steps // (config.evaluate_every or max(1, -(-steps // VALIDATIONS))))
    tokens = counts.train_tokens * config.epochs + counts.validation_tokens * validations * VALIDATION_WORK
    work = tokens * counts.expansion * profile.token_seconds + steps * profile.step_seconds
    checkpoints = 3 * work / max(config.checkpoint_seconds, 1.0)
    return OPEN_STUDENT_SECONDS + work + counts.write_seconds(validations + checkpoints + 1)
