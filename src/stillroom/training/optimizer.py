"""The optimizer of a run."""

from __future__ import annotations

import torch
from torch import nn

from stillroom.recipe.training import DistillConfig


def make_optimizer(model: nn.Module, config: DistillConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) in one fused pass; vectors (norms, biases) do not decay.

    Where the recipe leaves the learning rate to ``auto``, it is 0 until a step sets it.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [
        {"params": group, "weight_decay": decay}
        for group, decay in ((matrices, config.weight_decay), (vectors, 0.0))
        if group
    ]
    rate = 0.0 if isinstance(config.learning_rate, str) else config.learning_rate
    return torch.optim.AdamW(groups, lr=rate, betas=config.betas, eps=1e-8, fused=True)


def clip_gradients(model: nn.Module, largest: float) -> float:
    """Scale all gradients so that their joint norm is at most ``largest``; returns the norm before.

    Gradients that are small enough are left alone, which saves a pass over memory.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if float(norm) > largest:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), largest, norm)
    return float(norm)
