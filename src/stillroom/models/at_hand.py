"""Models whose layers are stored in fewer bytes, or in the host's memory, and computed one at a time.

Only the layer at hand is on the device in the dtype that is computed in; what is outside the layers (embedding, last norm,
output matrix) is there all the time. Two uses:

- **half**: a model that has to compute in float32 (measuring and repairing, evaluating) is stored in 16 bits where that loses
  nothing. Each weight is compared: one that 16 bits cannot hold exactly stays as it is. So results are those of float32.
- **host**: a teacher that is larger than a GPU's memory. A layer is carried over for one forward pass of many tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from stillroom.core.errors import UnsupportedModel

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

Keep = Literal["device", "half", "host"]
"""Where and how layers are stored: on the device as they are computed; there in 16 bits; or in the host's memory."""
HALVES = (torch.bfloat16, torch.float16)
MOST = 0.8
"""Of a GPU's memory that a teacher's weights may fill; where they do not fit, its layers are stored elsewhere."""
_STORED = "stillroom_stored"
"""The attribute of a layer that holds its own tensors while its copies are computed with."""


@dataclass(frozen=True)
class Fetch:
    """Before a layer's forward pass: puts copies of its tensors on the device in place of the stored ones."""

    device: torch.device
    dtype: torch.dtype

    def __call__(self, layer: nn.Module, _args: Any) -> None:
        """A forward pre-hook."""
        held: list[tuple[dict[str, Any], str, torch.Tensor]] = []
        copies: dict[int, torch.Tensor] = {}
        for store, name, tensor in _tensors(layer):
            if id(tensor) not in copies:
                copies[id(tensor)] = tensor.to(self.device, _wider(tensor.dtype, self.dtype))
            if copies[id(tensor)] is not tensor:
                held.append((store, name, tensor))
        for store, name, tensor in held:
            copy = copies[id(tensor)]
            store[name] = nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy
        layer.__dict__[_STORED] = held


@dataclass(frozen=True)
class Release:
    """After a layer's forward pass, or an error in it: the stored tensors are the layer's again."""

    def __call__(self, layer: nn.Module, _args: Any, _output: Any) -> None:
        """A forward hook."""
        for store, name, tensor in layer.__dict__.pop(_STORED, ()):
            store[name] = tensor


OWN_HOOKS = (Fetch, Release)
"""Hooks without which a model cannot be run: nothing may take them away for a while."""


def hold(model: CausalModel, device: torch.device | str, dtype: torch.dtype, keep: Keep) -> None:
    """Put a model on a device in one of the ways; it computes in ``dtype`` there, without gradients.

    Args:
        model: A causal language model in the host's memory; changed in place.
        device: Where it computes.
        dtype: What it computes in.
        keep: Where and how its layers are stored.

    Raises:
        UnsupportedModel: It has no list of layers.
    """
    device = torch.device(device)
    if keep == "device":
        model.to(device)
        return
    layers = stack_of(model)
    inside = {id(tensor) for tensor in (*layers.parameters(), *layers.buffers())}

    def put(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in inside:
            return tensor.to(device, _wider(tensor.dtype, dtype))
        if keep == "host":
            return tensor
        return (_halved(tensor) if isinstance(tensor, nn.Parameter) else tensor).to(device)

    _change(model, put)
    for layer in layers:
        layer.register_forward_pre_hook(Fetch(device, dtype))
        layer.register_forward_hook(Release(), always_call=True)


def whole(model: CausalModel, dtype: torch.dtype) -> None:
    """Undo :func:`hold` in a copy of a model that is on the device: its layers are stored as they are computed."""
    if not is_held(model):
        return
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, OWN_HOOKS)]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)
    _change(model, lambda tensor: tensor.to(_wider(tensor.dtype, dtype)))


def _change(model: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Put others in place of all parameters and buffers; what is shared stays shared."""
    made: dict[int, torch.Tensor] = {}
    for store, name, tensor in _tensors(model):
        if id(tensor) not in made:
            new = change(tensor)
            if new is not tensor and isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new.detach(), requires_grad=tensor.requires_grad)
            made[id(tensor)] = new
        store[name] = made[id(tensor)]


def _tensors(model: nn.Module) -> Iterator[tuple[dict[str, Any], str, torch.Tensor]]:
    """Every parameter and buffer, by the dictionary and the name under which a module has it; it may be replaced there."""
    for module in model.modules():
        stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for store in stores:
            yield from ((store, name, tensor) for name, tensor in store.items() if tensor is not None)


def is_held(model: nn.Module) -> bool:
    """Whether a model's layers are computed one at a time."""
    return any(isinstance(hook, Fetch) for module in model.modules() for hook in module._forward_pre_hooks.values())


def where_layers_go(parameters: int, number: int, memory: float, *, half: bool) -> Keep:
    """Where a teacher's layers are stored: on the device if its weights fit there, in 16 bits if they do so then, or else in
    the host's memory.

    Args:
        parameters: The teacher's.
        number: Bytes of the format that it computes in.
        memory: Bytes of the device that are free.
        half: Whether its files hold every weight in 16 bits.
    """
    if parameters * number <= MOST * memory:
        return "device"
    if number > HALVES[0].itemsize and half and parameters * HALVES[0].itemsize <= MOST * memory:
        return "half"
    return "host"


def stack_of(model: CausalModel) -> nn.ModuleList:
    """The list of a model's layers: the one that holds most of its parameters.

    Raises:
        UnsupportedModel: There is none.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise UnsupportedModel(
            f"The layers of the family `{model.config.model_type}` are in no list, so that they cannot be computed one by one.",
            "Use a device with enough memory for the whole model, or compute.device: cpu.",
        )
    return max(lists, key=lambda found: sum(parameter.numel() for parameter in found.parameters()))


def _wider(stored: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    """What a tensor of one dtype is computed in; it is never rounded."""
    return dtype if stored in HALVES and dtype.itemsize > stored.itemsize else stored


def _halved(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers in 16 bits, where these hold all of them exactly."""
    if tensor.dtype != torch.float32:
        return tensor
    for dtype in HALVES:
        half = tensor.to(dtype)
        if torch.equal(half.float(), tensor):
            return half
    return tensor
