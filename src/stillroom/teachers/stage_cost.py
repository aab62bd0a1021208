"""What the stage `capture` takes."""

from __future__ import annotations

import torch

from stillroom.models.compute import choose_dtype
from stillroom.recipe.recipe import Recipe
from stillroom.runs.costs import Counts, Profile, StageCost


def stage_cost(recipe: Recipe, counts: Counts, profile: Profile) -> StageCost:
    """One pass of the teacher over the training and validation text, in its own dtype."""
    tokens = counts.train_tokens + counts.validation_tokens
    weights = counts.teacher_bytes
    if choose_dtype(recipe.teacher.dtype, "cpu") == torch.bfloat16:
        weights //= 2
    return StageCost(
        seconds=profile.load_seconds + tokens / profile.capture_rate,
        memory_bytes=profile.base_bytes + weights + max(profile.load_bytes, profile.capture_bytes),
        disk_bytes=profile.cache_bytes + profile.bytes_per_position * tokens,
    )
