"""Refuses, before anything is spent, what a training in rounds or in several processes cannot be combined with."""

from __future__ import annotations

from pathlib import Path

from stillroom.core.errors import RecipeError, UsageError
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.teacher import EndpointTeacher
from stillroom.recipe.training import RoundsConfig
from stillroom.training.batch_size import pass_steps
from stillroom.training.checkpoint import TENSORS, newest
from stillroom.training.lean import SCALE


def require_rounds(recipe: Recipe) -> None:
    """Refuse, before anything is spent, what rounds cannot be combined with.

    Raises:
        RecipeError: Names the keys, and what to do.
    """
    rounds = recipe.distill.rounds
    if rounds is None:
        return
    off = "Leave one of them out."
    if len(recipe.learned_from) > 1:
        raise RecipeError(
            f"`distill.rounds` with {len(recipe.learned_from)} teachers under `teachers`: text that the student wrote is of no "
            "source, so that it is not told which of them to learn it from.",
            off,
        )
    if isinstance(recipe.teacher, EndpointTeacher):
        raise RecipeError(
            "`distill.rounds` captures the teacher again in the middle of training, and a teacher behind an endpoint is "
            "asked in the stage `capture` alone.",
            "Leave `rounds` out, or take a teacher on this machine.",
        )
    if recipe.student_with_own_tokenizer is not None:
        raise RecipeError(
            "`distill.rounds` with `student.tokenizer: own`: text that the student writes is put into the teacher's tokens "
            "through their common vocabulary, and there is none.",
            "Leave `rounds` out, or take a student with the teacher's tokenizer.",
        )
    if recipe.distill.lora is not None:
        raise RecipeError("`distill.rounds` with `distill.lora`: a student of adapters does not write yet.", off)
    length = recipe.corpus.sequence_length
    if rounds.prompt_tokens + rounds.new_tokens > length:
        given = min(rounds.prompt_tokens, length // 2)
        written = min(rounds.new_tokens, length - given)
        raise RecipeError(
            f"`distill.rounds`: {rounds.prompt_tokens:,} prompt_tokens and {rounds.new_tokens:,} new_tokens are more than the "
            f"{length:,} of `corpus.sequence_length`.",
            f"Write `prompt_tokens: {given}` and `new_tokens: {written}` or less, or longer sequences.",
        )


def require_group(recipe: Recipe, workers: int, nodes: int = 1, *, here: bool = True) -> None:
    """Refuse, before anything is spent, what several processes do not do.

    Args:
        recipe: The run's.
        workers: Processes that are to train together on this machine.
        nodes: Machines.
        here: Whether this machine is one of them; what it lacks does not matter otherwise.

    Raises:
        UsageError: Names the key, or what the machine lacks.
    """
    import torch

    if workers * nodes == 1:
        return
    option = _option(workers, nodes)
    config, device = recipe.distill, recipe.compute.device
    for key in ("lora", "rounds"):
        if getattr(config, key) is not None:
            raise UsageError(
                f"`distill.{key}` trains in one process, and {option} asks for more.",
                f"Leave {option} out, or `distill.{key}`.",
            )
    for key, refused in (
        ("state", config.state != "auto"),
        ("gradient_checkpointing", config.gradient_checkpointing == "on"),
    ):
        if refused:
            raise UsageError(
                f"`distill.{key}: {getattr(config, key)}` is for one process, and {option} asks for more.",
                f"Leave {option} out, or `distill.{key}` at `auto`.",
            )
    if not here:
        return
    if device in ("auto", "cuda") and torch.cuda.is_available():
        if workers > torch.cuda.device_count():
            raise UsageError(
                f"--workers {workers}: each process trains on a GPU of its own, and there are {torch.cuda.device_count()}.",
                f"Give --workers {torch.cuda.device_count()}, or leave it out.",
            )
    elif device in ("auto", "mps") and torch.backends.mps.is_available():
        raise UsageError(
            f"{option}: processes that train together each have a GPU of their own, and a Mac has one.",
            f"Leave {option} out, or set `compute.device: cpu`.",
        )


def require_group_s_checkpoint(folder: Path, workers: int, nodes: int = 1) -> None:
    """Refuse, before a process is started, a checkpoint that only one process goes on from.

    Args:
        folder: Where the training keeps its checkpoints.
        workers: Processes that are to train together on this machine.
        nodes: Machines.

    Raises:
        UsageError: Its averages have 8 bits (`distill.state: 10`).
    """
    from safetensors import safe_open

    found = newest(folder)
    if found is None or not (found / TENSORS).is_file():
        return
    with safe_open(found / TENSORS, "pt") as tensors:
        if any(name.startswith("optimizer.") and name.endswith(SCALE) for name in tensors.keys()):  # noqa: SIM118
            raise UsageError(
                f"{found}: this checkpoint has its averages in 8 bits (`distill.state: 10`), which one process reads, and "
                f"{_option(workers, nodes)} asks for more.",
                f"Leave {_option(workers, nodes)} out, or remove {folder}: the training then begins at its start.",
            )


def _option(workers: int, nodes: int) -> str:
    """What asked for several processes."""
    return f"--nodes {nodes}" if nodes > 1 else f"--workers {workers}"


def require_rounds_fit(recipe: Recipe, text_tokens: int, row_tokens: int, length: int) -> None:
    """Refuse more rounds than the training has steps, once the text is counted. Errors as in :func:`require_steps`.

    Args:
        recipe: The run's.
        text_tokens: Tokens of the training split.
        row_tokens: The same with what pieces repeat and with padding.
        length: Tokens per sequence.
    """
    if recipe.distill.rounds is not None:
        steps = pass_steps(recipe.distill, text_tokens, row_tokens, length)
        require_steps(recipe.distill.epochs * steps, recipe.distill.rounds)


def require_steps(steps: int, rounds: RoundsConfig) -> None:
    """Refuse more rounds than steps.

    Raises:
        RecipeError: There are.
    """
    if steps < rounds.count:
        raise RecipeError(
            f"`distill.rounds.count` is {rounds.count}, and the training has {steps} steps.",
            "Take fewer rounds, more text or more `epochs`, or smaller `batch_tokens`.",
        )
