"""The optimizer of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from stillroom.models.threads import run_together
from stillroom.recipe.training import DistillConfig

SHARE = "share"
"""The key of a group of parameters that says what share of the learning rate it takes; without it, all."""

OBSERVED_SHARE = 0.1
"""Of the output layer, where the signal is what an endpoint lists (docs/benchmarks/teachers.md)."""


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group of parameters the learning rate, or its share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(SHARE, 1.0)


def make_optimizer(model: nn.Module, config: DistillConfig, output_share: float = 1.0) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) in one fused pass; vectors (norms, biases) do not decay.

    Where the recipe leaves the learning rate to ``auto``, it is 0 until a step sets it.

    Args:
        model: What is trained.
        config: The recipe's section.
        output_share: Share of the learning rate that the output layer takes (:func:`set_rate`).
    """
    groups, rate = parameter_groups(model, config, output_share)
    return SharedAdamW(groups, lr=rate, betas=config.betas, eps=1e-8, fused=True)


def parameter_groups(
    model: nn.Module, config: DistillConfig, output_share: float = 1.0
) -> tuple[list[dict[str, Any]], float]:
    """Matrices, which decay, and vectors, which do not, as an optimizer takes them, those of the output layer apart where it
    takes a share of the learning rate; and the learning rate to begin with.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    whole: Any = model
    slow = {id(parameter) for parameter in whole.get_output_embeddings().parameters()} if output_share != 1.0 else set()
    groups: list[dict[str, Any]] = []
    for ids_of_output in (False, True) if slow else (False,):
        chosen = [parameter for parameter in parameters if (id(parameter) in slow) == ids_of_output]
        share = {SHARE: output_share} if ids_of_output else {}
        for matrices, decay in ((True, config.weight_decay), (False, 0.0)):
            group = [parameter for parameter in chosen if (parameter.ndim >= 2) == matrices]
            groups += [{"params": group, "weight_decay": decay, **share}] if group else []
    rate = 0.0 if isinstance(config.learning_rate, str) else config.learning_rate
    return groups, rate


class SharedAdamW(torch.optim.AdamW):
    """AdamW whose parameters are shared out among threads on a CPU; every number is as AdamW's own."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step; see :class:`torch.optim.AdamW`."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        shares = shares_of(parameters)
        if closure is not None or len(shares) == 1:
            return super().step(closure)
        parts = []
        for share in shares:
            mine = {id(parameter) for parameter in share}
            groups = [
                group | {"params": [parameter for parameter in group["params"] if id(parameter) in mine]}
                for group in self.param_groups
            ]
            part = torch.optim.AdamW([group for group in groups if group["params"]])
            part.state = self.state
            parts.append(part)
        run_together(len(parts), lambda share: parts[share].step())
        return None


def shares_of(parameters: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Parameters shared out among PyTorch's threads, so that each has about as many numbers; one share on other devices."""
    count = torch.get_num_threads()
    divided = any(hasattr(parameter, "full_tensor") for parameter in parameters)
    if (
        count == 1
        or len(parameters) < count
        or divided
        or any(parameter.device.type != "cpu" for parameter in parameters)
    ):
        return [list(parameters)]
    shares: list[list[torch.Tensor]] = [[] for _ in range(count)]
    sizes = [0] * count
    for parameter in sorted(parameters, key=lambda parameter: -parameter.numel()):
        least = sizes.index(min(sizes))
        shares[least].append(parameter)
        sizes[least] += parameter.numel()
    return shares


def clip_on_device(model: nn.Module, largest: float) -> torch.Tensor:
    """As :func:`clip_gradients`, for a GPU: it is not waited for, and returns the norm as a tensor there."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    torch._foreach_mul_(gradients, torch.clamp(largest / (norm + 1e-6), max=1.0))
    return norm


def clip_gradients(model: nn.Module, largest: float) -> float:
    """Scale all gradients so that their joint norm is at most ``largest``; returns the norm before.

    Gradients that are small enough are left alone, which saves a pass over memory.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    shares = shares_of(gradients)
    norms = run_together(len(shares), lambda share: torch.nn.utils.get_total_norm(shares[share]))
    norm: Any = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    divided = hasattr(norm, "full_tensor")
    norm = norm.full_tensor() if divided else norm
    found = float(norm)
    if divided:
        if found > largest:
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), largest, norm)
    elif found > largest:
        factor = torch.clamp(largest / (norm + 1e-6), max=1.0)

        def scale(share: int) -> None:
            torch._foreach_mul_(shares[share], factor)

        run_together(len(shares), scale)
    return found
