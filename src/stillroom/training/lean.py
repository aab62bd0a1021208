"""AdamW in fewer bytes per parameter, for GPUs on which float32 weights, gradients and averages do not fit.

Each parameter is stepped by itself, in float32, so that only one parameter's float32 numbers exist at a time beside what is
stored. What is stored per parameter, in bytes:

- ``16``: float32 weight 4, bfloat16 copy 2 and gradient 2, float32 averages 8;
- ``12``: the same with bfloat16 averages 4;
- ``10``: the same with averages in 8 bits 2, and a float32 scale for each 256 of them (:mod:`stillroom.training.averages`);
- ``8``: bfloat16 weight 2 and gradient 2, bfloat16 averages 4. Weights are rounded at random to a neighbour, so that their
  expectation is the float32 result: rounded to the nearest, steps below 2⁻⁸ of a weight would be lost.

Where a step has several micro-batches, their gradients are added in float32: 4 bytes more, and 2 less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from stillroom.recipe.training import DistillConfig
from stillroom.training.averages import LEAST, decode, encode
from stillroom.training.optimizer import parameter_groups

STATES: tuple[Literal[16], Literal[12], Literal[10], Literal[8]] = (16, 12, 10, 8)
"""Bytes per parameter, from the most exact to the smallest."""
AVERAGES = {16: torch.float32, 12: torch.bfloat16, 10: torch.uint8, 8: torch.bfloat16}
"""The format of the averages in each."""

NAMES = ("exp_avg", "exp_avg_sq")
SCALE = "_scale"
"""What the name of an average's scales ends with, where it has 8 bits."""


class LeanAdamW(torch.optim.AdamW):
    """AdamW whose averages and weights may be bfloat16.

    Args:
        model: What is trained; float32 or bfloat16.
        config: The recipe's section.
        averages: Format of the two averages: of :data:`AVERAGES`.
        output_share: As :func:`stillroom.training.optimizer.make_optimizer` takes it.
    """

    def __init__(
        self, model: nn.Module, config: DistillConfig, averages: torch.dtype, output_share: float = 1.0
    ) -> None:
        groups, rate = parameter_groups(model, config, output_share)
        super().__init__(groups, lr=rate, betas=config.betas, eps=1e-8, fused=True)
        self.averages = averages
        self.gradients: dict[int, torch.Tensor] = {}
        """Gradients by the id of their parameter, bfloat16 or float32; a step uses them up."""
        self.factor: torch.Tensor | None = None
        """What gradients are multiplied by before the next step."""

    def clip(self, largest: float) -> torch.Tensor:
        """Let the next step scale the gradients so that their joint norm is at most ``largest``; returns the norm before."""
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in self.gradients.values()]
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
        self.factor = torch.clamp(largest / (norm + 1e-6), max=1.0)
        return norm

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:  # noqa: ARG002 - the base class's
        """One step."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                gradient = self.gradients.pop(id(parameter), None)
                if gradient is None:
                    continue
                exact = gradient.float()
                if self.factor is not None:
                    exact = exact * self.factor
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                    self._begin(parameter, state)
                weight = parameter.data.float()
                first, second = (self._float(state, name, parameter) for name in NAMES)
                state["step"] += 1
                torch._fused_adamw_(
                    [weight],
                    [exact],
                    [first],
                    [second],
                    [],
                    [state["step"]],
                    lr=group["lr"],
                    beta1=beta1,
                    beta2=beta2,
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    amsgrad=False,
                    maximize=False,
                )
                for name, found in zip(NAMES, (first, second), strict=True):
                    if name + SCALE in state:
                        state[name], state[name + SCALE] = encode(found, signed=name == NAMES[0])
                    elif state[name] is not found:
                        state[name].copy_(found)
                if parameter.dtype != torch.float32:
                    parameter.copy_(rounded_at_random(weight))
        self.factor = None

    def _begin(self, parameter: torch.Tensor, state: dict[str, Any]) -> None:
        """Averages of a parameter that was not stepped yet."""
        eight = self.averages == torch.uint8
        dtype = torch.float32 if eight else self.averages
        for name in NAMES:
            if eight and parameter.numel() >= LEAST:
                zeros = torch.zeros_like(parameter, dtype=torch.float32)
                state[name], state[name + SCALE] = encode(zeros, signed=name == NAMES[0])
            else:
                state[name] = torch.zeros_like(parameter, dtype=dtype)

    @staticmethod
    def _float(state: dict[str, Any], name: str, parameter: torch.Tensor) -> torch.Tensor:
        """An average as float32 numbers: itself where it is that."""
        if name + SCALE in state:
            return decode(state[name], state[name + SCALE], parameter.shape, signed=name == NAMES[0])
        found: torch.Tensor = state[name].float()
        return found

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self.gradients.clear()
        super().zero_grad(set_to_none=set_to_none)


@torch.no_grad()
def taken_over(
    optimizer: torch.optim.Optimizer, parameter: torch.Tensor, state: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """A parameter's state from a checkpoint, as this optimizer stores it: another one may have written it, where `state: auto`
    chose otherwise on another card. What has the format already stays as it is, to the bit.

    Args:
        optimizer: AdamW, or a lean one.
        parameter: The parameter.
        state: Its number of steps, and its averages.
    """
    found: dict[str, Any] = {"step": state["step"]}
    if isinstance(optimizer, LeanAdamW):
        optimizer._begin(parameter, found)
    else:
        found |= {name: torch.zeros_like(parameter) for name in NAMES}
    for name in NAMES:
        if found[name].dtype == state[name].dtype:
            found |= {key: state[key].to(parameter.device) for key in (name, name + SCALE) if key in state}
            continue
        exact = LeanAdamW._float({key: value.to(parameter.device) for key, value in state.items()}, name, parameter)
        if name + SCALE in found:
            found[name], found[name + SCALE] = encode(exact, signed=name == NAMES[0])
        else:
            found[name].copy_(exact)
    # A fused optimizer's kernel reads the number of steps too, where the parameter is.
    return found | {"step": state["step"].to(parameter.device)}


def rounded_at_random(values: torch.Tensor) -> torch.Tensor:
    """bfloat16 neighbours of float32 values, drawn so that their expectation is the value."""
    bits = values.view(torch.int32)
    noise = torch.randint_like(bits, 1 << 16)
    return ((bits + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)
