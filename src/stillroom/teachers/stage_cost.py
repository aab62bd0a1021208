"""What the stage `capture` takes."""

from __future__ import annotations

import torch

from stillroom.models.compute import choose_dtype
from stillroom.recipe.recipe import Recipe
from stillroom.runs.costs import FLOAT_BYTES, Counts, Profile, StageCost


def stage_cost(recipe: Recipe, counts: Counts, profile: Profile) -> StageCost:
    """One pass of the teacher over the training and validation text, in its own dtype.

    Of several teachers the plan takes that all of the text is the largest one's, and that all are in memory, as in a mixture.
    """
    tokens = counts.train_tokens + counts.validation_tokens
    weights = counts.teacher_bytes
    if choose_dtype(recipe.teacher.dtype, "cpu") == torch.bfloat16:
        weights //= 2
    largest = max((counts.teacher_parameters, *counts.other_teachers)) / counts.teacher_parameters
    more = FLOAT_BYTES * sum(counts.other_teachers)
    loads = profile.load_seconds * (1 + sum(counts.other_teachers) / counts.teacher_parameters)
    return StageCost(
        seconds=loads + largest * tokens / profile.capture_rate,
        memory_bytes=profile.base_bytes + weights + more + max(profile.load_bytes, profile.capture_bytes),
        disk_bytes=profile.cache_bytes + profile.bytes_per_position * tokens,
    )
