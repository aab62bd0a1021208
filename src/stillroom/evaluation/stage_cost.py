"""What the stage `evaluate` takes."""

from __future__ import annotations

from stillroom.evaluation.fidelity import CHUNK
from stillroom.evaluation.metrics.cost import PROMPT_TOKENS
from stillroom.evaluation.metrics.memorisation import FIRST, PASSAGES, PREFIX
from stillroom.evaluation.original import TOKENS
from stillroom.evaluation.speed import REPETITIONS
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.routes import OWN
from stillroom.recipe.student import DenseStudent, ShrinkStudent
from stillroom.runs.costs import (
    FLOAT_BYTES,
    OPEN_STUDENT_SECONDS,
    Counts,
    Profile,
    StageCost,
    loaded_teacher_bytes,
)

OUTPUT_LAYER_WORK = 1.6
"""Time of a forward pass with its output layer divided by that of one without."""
LANGUAGE_TOKENS = 700
"""Tokens of one language's sample, whose paragraphs are short."""
DECODED_BYTES_PER_SECOND = 9e9
"""Bytes of weights per second that are read while a model decodes one token at a time."""
DECODED_LAYER_SECONDS = 4e-4
"""Seconds per layer and decoded token, besides reading its weights."""
DISTRIBUTIONS = 9
"""Distributions over the vocabulary per position of a chunk that are in memory at once while models are compared."""


def stage_cost(recipe: Recipe, counts: Counts, profile: Profile) -> StageCost:
    """All models over the held-out text and one language's sample, and what the metric `cost` decodes."""
    compared = DISTRIBUTIONS * FLOAT_BYTES * CHUNK * counts.teacher_shape.vocabulary
    # On a CPU one model is in memory at a time, but for the speed of teacher and student, which is compared in turns.
    students = (1 if recipe.compute.device in ("auto", "cpu") else _students(recipe)) * counts.student_bytes
    return StageCost(
        seconds=profile.load_seconds + _seconds(recipe, counts, profile) + _originals_seconds(recipe, counts, profile),
        memory_bytes=loaded_teacher_bytes(counts, profile)
        + FLOAT_BYTES * sum(counts.other_teachers)
        + max(students + compared, _originals_bytes(recipe, counts)),
    )


def _seconds(recipe: Recipe, counts: Counts, profile: Profile) -> float:
    models = _students(recipe)
    body = 1 / profile.exact_rate
    teacher, student = body * OUTPUT_LAYER_WORK, body * OUTPUT_LAYER_WORK * counts.ratio
    tokens = counts.heldout_tokens + LANGUAGE_TOKENS
    seconds = counts.heldout_tokens * teacher * sum(counts.other_teachers) / counts.teacher_parameters
    seconds += models * OPEN_STUDENT_SECONDS + tokens * (teacher + models * student)
    if "memorisation" in recipe.evaluate.measures:
        # Of training and of held-out text.
        seconds += 2 * PASSAGES * (PREFIX + FIRST) * body * counts.ratio
    if recipe.evaluate.speed_tokens:
        seconds += (1 + REPETITIONS) * PROMPT_TOKENS * body * (1 + counts.ratio)
        layers = counts.teacher_shape.layers * (1 + counts.ratio)
        weights = counts.teacher_bytes + counts.student_bytes
        token = weights / DECODED_BYTES_PER_SECOND + layers * DECODED_LAYER_SECONDS
        seconds += REPETITIONS * recipe.evaluate.speed_tokens * token
    if "samples" in recipe.evaluate.measures:
        seconds += _samples_seconds(recipe, counts, profile)
    return seconds


def _originals_bytes(recipe: Recipe, counts: Counts) -> int:
    """What is kept of an original while its quantized teacher runs: its output layer, and hidden states."""
    rows = counts.teacher_shape.vocabulary + max(TOKENS, counts.sequence_length)
    return FLOAT_BYTES * rows * counts.teacher_shape.hidden if recipe.originals else 0


def _originals_seconds(recipe: Recipe, counts: Counts, profile: Profile) -> float:
    """Each original of a quantized teacher is opened, and both read a sample of the validation text."""
    tokens = min(counts.validation_tokens, max(TOKENS, counts.sequence_length))
    reading = 2 * tokens * OUTPUT_LAYER_WORK / profile.exact_rate
    # The recipe's own teacher stays in memory for what follows; another is opened for this alone.
    opened = sum(1 if name == OWN else 2 for name in recipe.originals)
    return opened * profile.load_seconds + len(recipe.originals) * reading


def _samples_seconds(recipe: Recipe, counts: Counts, profile: Profile) -> float:
    """One batch of answers of the teacher, the student and the baseline: each step reads the weights once for all rows."""
    config = recipe.evaluate.samples
    writing = 1 + int(recipe.baseline)
    layers = counts.teacher_shape.layers * (1 + writing * counts.ratio)
    step = (counts.teacher_bytes + writing * counts.student_bytes) / DECODED_BYTES_PER_SECOND
    step += layers * DECODED_LAYER_SECONDS
    rows = config.prompts * OUTPUT_LAYER_WORK / profile.exact_rate * (1 + writing * counts.ratio)
    return config.max_tokens * (step + rows)


def _students(recipe: Recipe) -> int:
    """Models beside the teacher: the student, its start before and after the repair, and the baseline."""
    repaired = isinstance(recipe.student, (ShrinkStudent, DenseStudent)) and recipe.student.heal
    return 2 + int(repaired) + int(recipe.baseline)
