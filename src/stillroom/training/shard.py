"""Divides a student among the processes of a group: FSDP2 (``fully_shard``) of a loss network, over all of them or,
as HSDP, over those of one machine.

Four things are needed here, and each has a test: the loss is divided by the whole step's positions already, so gradients are
summed and not averaged; inputs are not cast, or the teacher's signal would become bfloat16; the root holds network and loss,
so that the output matrix is whole while the loss runs; and every process makes the same number of passes
(:mod:`stillroom.training.loop`).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from stillroom.models.forward import way_of
from stillroom.models.passes import WAY
from stillroom.training.group import Group

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel
    from stillroom.training.network import LossNetwork


def shard(network: LossNetwork, model: CausalModel, group: Group, dtype: torch.dtype) -> None:
    """Divide a network's weights, in place.

    Args:
        network: The network; its worker has to be the model itself.
        model: The student, float32.
        group: The processes.
        dtype: Format of the passes; sums of gradients are float32.

    Raises:
        UsageError: The sharding is ``hybrid`` and the machines have unequal numbers of processes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    # The pass by hand reads weights behind the layers' backs, where they are not gathered.
    setattr(model, WAY, dataclasses.replace(way_of(model), by_hand=False))
    shape = group.mesh_shape()
    # Of two dimensions FSDP2 takes the first as copies and the second as parts.
    mesh = init_device_mesh(model.device.type, shape, mesh_dim_names=("machines", "processes")[-len(shape) :])
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    layers = list(model.base_model.layers)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module in (network, *layers):
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        # Without it gloo refuses the factor, which NCCL alone can apply.
        module.set_force_sum_reduction_for_comms(True)


def part_again(network: LossNetwork) -> None:
    """Divide again what a pass without gradients left gathered: until then the model has other weights than the optimizer."""
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(network, FSDPModule)
    network.reshard()


def is_divided(tensor: torch.Tensor) -> bool:
    """Whether a process holds only its part of a tensor (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor; every process has to ask at the same time."""
    found: torch.Tensor = tensor.full_tensor() if is_divided(tensor) else tensor  # type: ignore[attr-defined]
    return found


@torch.no_grad()
def fill(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Put a whole tensor's numbers into one that may be divided; every process has the whole one."""
    if is_divided(tensor):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(tensor, DTensor)
        value = distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)
    tensor.copy_(value)
