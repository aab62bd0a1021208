"""What the stage `corpus` takes."""

from __future__ import annotations

from stillroom.recipe.recipe import Recipe
from stillroom.runs.costs import Counts, Profile, StageCost

DISK_BYTES_PER_TOKEN = 16.0
"""Bytes on disk per token of a split: 6 for the tensors of ``Pieces.save``, and a reserve for those of short pieces and for
what is stored beside them."""
MEMORY_BYTES_PER_TOKEN = 40.0
"""Bytes of memory per token while splits are packed and written."""


def stage_cost(_recipe: Recipe, counts: Counts, profile: Profile) -> StageCost:
    """The time that reading the text took, and what its tokens occupy."""
    tokens = counts.train_tokens + counts.validation_tokens + counts.heldout_tokens
    return StageCost(
        seconds=counts.corpus_seconds,
        memory_bytes=profile.base_bytes + MEMORY_BYTES_PER_TOKEN * tokens,
        disk_bytes=DISK_BYTES_PER_TOKEN * tokens,
    )
