"""What the stages `distill` and `baseline` take: they do the same work, but for text that the student writes."""

from __future__ import annotations

from dataclasses import dataclass

from stillroom.recipe.recipe import Recipe
from stillroom.recipe.routes import OWN
from stillroom.runs.costs import OPEN_STUDENT_SECONDS, WRITE_BYTES_PER_SECOND, Counts, Profile, StageCost
from stillroom.signals.cache.registry import signal_kind
from stillroom.signals.signal import SignalKind
from stillroom.teachers.stage_cost import stage_cost as capture_cost
from stillroom.teachers.write.stage_cost import DECODED_BYTES_PER_SECOND
from stillroom.training.batch_size import pass_steps, step_rows
from stillroom.training.sweep import LARGEST_SHARE, Budget, Origin

VALIDATIONS = 10
"""Validations of a training run whose recipe does not say how often to validate."""
VALIDATION_WORK = 1 / 3
"""Time of a validation divided by a training step's, per token: a forward pass without the backward pass."""
CHECKPOINT_COPIES = 8
"""Sizes of the trained weights that checkpoints and the best weights take on disk at most while the model is trained: the
weights and AdamW's two moments in the checkpoint and in the one that replaces it, and the best weights of each."""
CHECKPOINT_SIZES = 3
"""Sizes of the trained weights in a checkpoint."""
WAITING_SIZES = 2 * (CHECKPOINT_SIZES + 1)
"""The same of two checkpoints with their best weights, of which one is copied to a store and one waits for that."""
CHECKPOINT_SHARE = 0.02
"""Share of the time that checkpoints may take, apart from those at validations."""


FEWEST_HOLES, MOST_HOLES = 1.5, 5.0
"""Bounds of :func:`with_holes`."""


def with_holes(tokens: float) -> float:
    """Memory that a training on a CPU comes to hold for the tokens of a forward pass, over that of its first steps.

    Tensors of changing sizes leave holes, the more of them the longer a step is (:class:`stillroom.core.memory.Trimmer`). A
    line through two measurements, both of half of SmolLM2-135M: with 1,024 tokens a training of 2.7 GB came to hold 2.9,
    which is 1.4 times what its tokens took, and with 4,096 tokens one of 4.1 GB came to hold 9.4, 4.9 times.
    """
    return min(MOST_HOLES, max(FEWEST_HOLES, 0.25 + tokens / 890))


def stage_cost(recipe: Recipe, counts: Counts, profile: Profile) -> StageCost:
    """Training steps, validations, and the weights that are written; at the end the best ones are read back."""
    config = recipe.distill
    forward_tokens = min(config.micro_batch_tokens or step_tokens(recipe, counts), counts.train_tokens)
    tokens = forward_tokens * counts.expansion
    training = profile.train_bytes + tokens * profile.token_bytes * (with_holes(tokens) if profile.holes else 1.0)
    sizes = CHECKPOINT_COPIES + (WAITING_SIZES if config.checkpoint_copy is not None else 0)
    return StageCost(
        seconds=_seconds(recipe, counts, profile),
        memory_bytes=profile.base_bytes + training + counts.student_bytes,
        disk_bytes=counts.student_bytes + sizes * counts.trained_bytes,
    )


@dataclass(frozen=True)
class Written:
    """What a training in rounds writes and has scored, about.

    Attributes:
        rounds: Rounds that begin with writing.
        tokens: Tokens that the student writes.
        scored_tokens: Tokens that the teacher reads: those and the beginnings that they continue.
        learned_rows: Sequences that the student's text takes the place of.
        seconds: Of writing and scoring, with opening student and teacher.
    """

    rounds: int
    tokens: int
    scored_tokens: int
    learned_rows: int
    seconds: float


WRITTEN_TOGETHER = 16
"""Texts that a student writes together."""


def written(recipe: Recipe, counts: Counts, profile: Profile) -> Written | None:
    """What the student writes and the teacher scores in a training in rounds; None without rounds."""
    rounds = recipe.distill.rounds
    if rounds is None:
        return None
    rows = recipe.distill.epochs * -(-counts.train_tokens // counts.sequence_length)
    learned = round(rounds.own_share * rows * (rounds.count - 1) / rounds.count)
    text = rounds.prompt_tokens + rounds.new_tokens
    texts = learned * counts.sequence_length / text
    if rounds.tokens != "auto":
        texts = min(texts, (rounds.count - 1) * rounds.tokens / rounds.new_tokens)
    tokens, scored = round(texts * rounds.new_tokens), round(texts * text)
    later = rounds.count - 1
    step = counts.student_bytes / DECODED_BYTES_PER_SECOND
    read = counts.ratio * texts * rounds.prompt_tokens / profile.exact_rate
    opening = later * (2 * OPEN_STUDENT_SECONDS + profile.load_seconds)
    seconds = opening + read + tokens * counts.expansion / WRITTEN_TOGETHER * step + scored / profile.capture_rate
    return Written(later, tokens, scored, learned, seconds)


def distill_cost(recipe: Recipe, counts: Counts, profile: Profile) -> StageCost:
    """As :func:`stage_cost`; before it, the teacher's pass over the validation text where its entropy is measured again
    (`projected_entropy.json`, which the baseline reads); with rounds, writing, the teacher's passes over it and their signals
    too. One after the other.
    """
    cost, found = stage_cost(recipe, counts, profile), written(recipe, counts, profile)
    entropy = projected_seconds(recipe, counts, profile)
    if found is None and not entropy:
        return cost
    signals = 0.0 if found is None else profile.cache_bytes + profile.bytes_per_position * found.scored_tokens
    return StageCost(
        seconds=cost.seconds + entropy + (0.0 if found is None else found.seconds),
        memory_bytes=max(cost.memory_bytes, capture_cost(recipe, counts, profile).memory_bytes),
        disk_bytes=cost.disk_bytes + signals,
    )


def measures_entropy(recipe: Recipe, *, merges_ids: bool) -> bool:
    """Whether the entropy of a teacher on this machine over its student's ids is measured before training: where those do not
    tell all of the teacher's apart (``merges_ids``), and the signal is a sample, which does not tell it.
    """
    sampled = signal_kind(recipe.capture.codec) is SignalKind.SAMPLED
    return merges_ids and sampled and set(recipe.learned_from) == {OWN}


def projected_seconds(recipe: Recipe, counts: Counts, profile: Profile) -> float:
    """Seconds of the pass that measures the teacher's entropy over its student's ids (:mod:`stillroom.teachers.projected`);
    0 where it is not needed or not possible.

    It goes about as fast as capture: each position's distribution is carried over to the student's ids instead of encoded.
    """
    if not (counts.teacher_is_here and measures_entropy(recipe, merges_ids=counts.merges_ids)):
        return 0.0
    return profile.load_seconds + counts.validation_tokens / profile.capture_rate


def step_tokens(recipe: Recipe, counts: Counts) -> int:
    """Tokens per optimizer step: as the recipe has them where that is a sequence at least, else whole sequences."""
    asked = recipe.distill.batch_tokens
    if asked != "auto" and asked >= counts.sequence_length:
        return asked
    return step_rows(recipe.distill, counts.text_tokens, counts.sequence_length) * counts.sequence_length


def training_steps(recipe: Recipe, counts: Counts) -> int:
    """Optimizer steps."""
    steps = pass_steps(recipe.distill, counts.text_tokens, counts.train_tokens, counts.sequence_length)
    return recipe.distill.epochs * steps


def learning_rate_from(recipe: Recipe, counts: Counts) -> Origin:
    """Where the learning rate will come from."""
    if recipe.distill.learning_rate != "auto":
        return "given"
    rows = max(1, -(-counts.train_tokens // counts.sequence_length))
    per_step = step_rows(recipe.distill, counts.text_tokens, counts.sequence_length)
    validation_rows = max(1, -(-counts.validation_tokens // counts.sequence_length))
    steps = [min(per_step, rows - start) for start in range(0, rows, per_step)]
    return "sweep" if Budget.of(steps, recipe.distill.epochs * rows, validation_rows) else "table"


def training_operations(recipe: Recipe, counts: Counts) -> int:
    """Floating-point operations of the student's training, without the baseline's.

    They are 6 S n for S parameters and n tokens (Kaplan et al. 2020, arXiv 2001.08361). Frozen weights have no gradients, which
    are a third of it; adapters come on top.
    """
    tokens = counts.train_tokens * counts.expansion
    if counts.adapter_parameters is not None:
        return lora_operations(counts.student_parameters, counts.adapter_parameters, tokens * recipe.distill.epochs)
    return round(6 * counts.student_parameters * tokens * recipe.distill.epochs)


def lora_operations(frozen: int, trained: int, tokens: float) -> int:
    """Floating-point operations of training adapters: forward, and backward to what enters each layer; 6 per trained one."""
    return round((4 * frozen + 6 * trained) * tokens)


def _seconds(recipe: Recipe, counts: Counts, profile: Profile) -> float:
    config = recipe.distill
    steps = training_steps(recipe, counts)
    validations = 1 + -(-steps // (config.evaluate_every or max(1, -(-steps // VALIDATIONS))))
    tokens = counts.train_tokens * config.epochs + counts.validation_tokens * validations * VALIDATION_WORK
    work = tokens * counts.expansion * profile.token_seconds + steps * profile.step_seconds
    if learning_rate_from(recipe, counts) == "sweep":
        work *= 1 + LARGEST_SHARE
    once = counts.trained_bytes / WRITE_BYTES_PER_SECOND
    validating = once * (1 + CHECKPOINT_SIZES) * validations + counts.write_seconds(1)
    by_time = once * CHECKPOINT_SIZES * work / max(config.checkpoint_seconds, 1.0)
    return OPEN_STUDENT_SECONDS + work + validating + min(by_time, CHECKPOINT_SHARE * work)
