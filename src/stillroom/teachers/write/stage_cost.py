"""What the stage `write` takes."""

from __future__ import annotations

from stillroom.recipe.recipe import Recipe
from stillroom.recipe.teacher import EndpointTeacher
from stillroom.runs.costs import FLOAT_BYTES, Counts, Profile, StageCost
from stillroom.teachers.write.writers import ROWS

CHARACTERS_PER_TOKEN = 4.0
DECODED_BYTES_PER_SECOND = 4e9
"""Bytes of weights per second that a step of writing reads, for all its rows together."""


def texts_of(recipe: Recipe, counts: Counts) -> tuple[int, int]:
    """About how many chunks there are, and texts that are asked for: by the length of the training text, as if it were one
    document. How many there are at most, :func:`stillroom.teachers.write.material.bound` counts.
    """
    config = recipe.write
    assert config is not None
    chunks = max(1, round(counts.train_tokens * CHARACTERS_PER_TOKEN / config.chunk_characters))
    chunks = chunks if config.limit is None else min(chunks, config.limit)
    forms = 2 * bool({"question_answer", "open_book"} & set(config.forms)) + ("rephrase" in config.forms)
    return chunks, chunks * config.per_chunk * forms


def tokens_of(recipe: Recipe, counts: Counts) -> tuple[int, int]:
    """About how many prompt tokens and written tokens there are."""
    config = recipe.write
    assert config is not None
    _, texts = texts_of(recipe, counts)
    return round(texts * config.chunk_characters / CHARACTERS_PER_TOKEN), texts * config.max_tokens


def stage_cost(recipe: Recipe, counts: Counts, profile: Profile) -> StageCost:
    """A local writer's seconds: prompts at the rate of a pass, texts step by step. How fast an endpoint is, no one knows."""
    assert recipe.write is not None
    read, written = tokens_of(recipe, counts)
    disk = 8.0 * written
    if isinstance(recipe.every_teacher[recipe.write.by], EndpointTeacher):
        return StageCost(seconds=0.0, memory_bytes=profile.base_bytes, disk_bytes=disk)
    # The pilot ran the recipe's own teacher; another one that writes takes as many times as long as it is larger.
    writer = counts.teacher_parameters if counts.writer_parameters is None else counts.writer_parameters
    larger = writer / counts.teacher_parameters if counts.teacher_is_here else 1.0
    weights = FLOAT_BYTES * writer
    step = weights / DECODED_BYTES_PER_SECOND
    return StageCost(
        seconds=larger * (profile.load_seconds + read / profile.exact_rate) + written / ROWS * step,
        memory_bytes=profile.base_bytes + weights + larger * profile.load_bytes,
        disk_bytes=disk,
    )
