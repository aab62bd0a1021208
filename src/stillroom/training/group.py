"""The processes that train together. One process needs nothing of torch.distributed."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, TypeVar

import torch

from stillroom.core.errors import UsageError

Sharding = Literal["replicate", "full", "hybrid"]
"""``replicate``: every process holds all weights, and gradients are summed (as DDP does). ``full``: weights, gradients and the
optimizer's state are divided among the processes (FSDP2; Zhao et al. 2023, arXiv 2304.11277). ``hybrid``: they are
divided among the processes of one machine, and each machine has all of them (HSDP)."""
Item = TypeVar("Item")
BUCKET_NUMBERS = 8 << 20
"""Gradients are summed in buckets of about so many numbers."""


@dataclass(frozen=True)
class Group:
    """A process's place in its group.

    Attributes:
        rank: Its number, from 0. Rank 0 alone writes into the run's folder.
        world: Processes of the group.
        sharding: How they share the student.
    """

    rank: int = 0
    world: int = 1
    sharding: Sharding = "replicate"

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def many(self) -> bool:
        """Whether there are several processes."""
        return self.world > 1

    @property
    def divides(self) -> bool:
        """Whether a process holds only its part of the weights."""
        return self.many and self.sharding != "replicate"

    def mesh_shape(self) -> tuple[int, ...]:
        """Sizes of the device mesh that weights are divided over: ``(world,)``, or ``(machines, processes of one)`` for
        ``hybrid``. Every process has to ask at the same time.

        Raises:
            UsageError: For ``hybrid``, where the machines do not all have the same number of processes. All processes raise
                it together.
        """
        if self.sharding != "hybrid":
            return (self.world,)
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
        sizes = [int(size) for size in self.sum([local if rank == self.rank else 0 for rank in range(self.world)])]
        if min(sizes) < 1 or len(set(sizes)) > 1 or self.world % sizes[0]:
            raise UsageError(
                f"Sharding `hybrid` needs the same number of processes on each machine: of {self.world} in all (WORLD_SIZE), "
                f"the machines have {', '.join(map(str, sorted(set(sizes))))} (LOCAL_WORLD_SIZE).",
                "Start as many processes on each machine, by torchrun or `stillroom run --workers`, or take sharding `full`.",
            )
        return (self.world // local, local)

    @classmethod
    def join(cls, sharding: Sharding = "replicate") -> Group:
        """The group that torchrun, torch elastic or Ray Train started this process in: NCCL on CUDA, else gloo."""
        import torch.distributed as dist

        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if not dist.is_initialized():
            # Its functions take the default group as a default value: read later, they would hold it, and its threads, to the
            # end of the interpreter, whose last moments they do not survive (exit code -6).
            importlib.import_module("torch.distributed.nn.functional")
            cuda = torch.cuda.is_available()
            if cuda:
                # A run on the CPU of such a machine may have more processes than there are cards.
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
            # On cards the sums of a step's few numbers still go through the CPU.
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
        return cls(dist.get_rank(), dist.get_world_size(), sharding)

    def leave(self) -> None:
        """End the group, and its threads where nothing refers to it any more."""
        import torch.distributed as dist

        if self.many and dist.is_initialized():
            dist.destroy_process_group()
            # What was divided refers to it in circles.
            gc.collect()

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's items: every ``world``-th, so that the shares together are all items once."""
        return list(items[self.rank :: self.world])

    def sum(self, values: Sequence[float]) -> list[float]:
        """Numbers summed over the group, in float64; every process gets the same."""
        if not self.many:
            return list(values)
        import torch.distributed as dist

        numbers = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(numbers)
        found: list[float] = numbers.tolist()
        return found

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.sum([0.0])

    @torch.no_grad()
    def sum_gradients(self, parameters: Sequence[torch.Tensor]) -> None:
        """Sum the gradients of weights that every process holds, in their own dtype (float32), bucket by bucket."""
        if not self.many or self.divides:
            return
        import torch.distributed as dist

        pending: list[tuple[object, torch.Tensor, list[torch.Tensor]]] = []
        for bucket in _buckets(parameters):
            gradients = []
            for parameter in bucket:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            pending.append((dist.all_reduce(flat, async_op=True), flat, gradients))
        for work, flat, gradients in pending:
            work.wait()  # type: ignore[attr-defined]
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])


def end_process(code: int = 0) -> NoReturn:
    """End this process as it is: PyTorch's caches of divided tensors hold a group's threads, and one of them that lets go of a
    tensor while the interpreter is taken down ends the process with code -6.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


ALONE = Group()
"""One process."""


def _buckets(parameters: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Trainable weights in buckets of one dtype."""
    found: list[list[torch.Tensor]] = []
    size = 0
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        if not found or size + parameter.numel() > BUCKET_NUMBERS or found[-1][0].dtype != parameter.dtype:
            found.append([])
            size = 0
        found[-1].append(parameter)
        size += parameter.numel()
    return found
