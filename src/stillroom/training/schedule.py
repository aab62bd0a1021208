"""Learning rates and the order of sequences."""

from __future__ import annotations

import math

import torch

from stillroom.core.secret import Secret
from stillroom.recipe.training import DistillConfig


def learning_rate(config: DistillConfig, step: int, steps: int, peak: float) -> float:
    """Learning rate of a step, counted from 0: a linear rise, then the recipe's fall.

    Args:
        config: The recipe's section.
        step: The step.
        steps: Steps of the whole run.
        peak: The largest rate; the recipe's, or what ``auto`` came to.
    """
    warmup = warmup_steps(config, steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    floor = config.final_learning_rate_share
    if config.schedule == "cosine":
        share = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    elif config.schedule == "linear":
        share = floor + (1 - floor) * (1 - progress)
    elif config.schedule == "wsd":
        # Hägele et al. 2024, arXiv 2405.18392, section 3: one minus the square root does better than a linear fall.
        begin = stable_steps(config, steps)
        share = floor + (1 - floor) * (1 - math.sqrt((step - begin) / (steps - begin))) if step > begin else 1.0
    else:
        share = 1.0
    return peak * share


def warmup_steps(config: DistillConfig, steps: int) -> int:
    """Steps in which the rate rises."""
    return max(1, round(steps * config.warmup_share)) if config.warmup_share > 0 else 0


def stable_steps(config: DistillConfig, steps: int) -> int:
    """The step at which the fall of ``schedule: wsd`` begins: everything before it has the peak, or the warm-up's rates."""
    return max(warmup_steps(config, steps), min(steps - 1, round(steps * (1 - config.decay_share))))


def batch_order(count: int, batch: int, epochs: int, seed: int | Secret) -> list[list[int]]:
    """Indices of sequences, batch by batch, shuffled anew in every pass. The last batch of a pass may be smaller.

    Args:
        count: Sequences.
        batch: Sequences per batch.
        epochs: Passes.
        seed: The run's seed, or its secret.
    """
    order: list[list[int]] = []
    for epoch in range(epochs):
        if isinstance(seed, Secret):
            shuffled = seed.permutation(f"order of pass {epoch}", count).tolist()
        else:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            shuffled = torch.randperm(count, generator=generator).tolist()
        order += [shuffled[start : start + batch] for start in range(0, count, batch)]
    return order
