"""Learning rates and the order of sequences."""

from __future__ import annotations

import math

import torch

from stillroom.recipe.training import DistillConfig


def learning_rate(config: DistillConfig, step: int, steps: int) -> float:
    """Learning rate of a step, counted from 0: a linear rise, then the recipe's fall.

    Args:
        config: The recipe's section.
        step: The step.
        steps: Steps of the whole run.
    """
    warmup = max(1, round(steps * config.warmup_share)) if config.warmup_share > 0 else 0
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    floor = config.final_learning_rate_share
    if config.schedule == "cosine":
        share = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    elif config.schedule == "linear":
        share = floor + (1 - floor) * (1 - progress)
    else:
        share = 1.0
    return config.learning_rate * share


def batch_order(count: int, batch: int, epochs: int, seed: int) -> list[list[int]]:
    """Indices of sequences, batch by batch, shuffled anew in every pass. The last batch of a pass may be smaller.

    Args:
        count: Sequences.
        batch: Sequences a batch.
        epochs: Passes.
        seed: The run's seed.
    """
    order: list[list[int]] = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        shuffled = torch.randperm(count, generator=generator).tolist()
        order += [shuffled[start : start + batch] for start in range(0, count, batch)]
    return order
