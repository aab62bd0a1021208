"""Checkpoints of a group of processes: each writes its part as safetensors, and any number of processes reads them.

They are written by PyTorch's distributed checkpoint with its Hugging Face writer, because the default one stores pickle. The
names of tensors are those of :mod:`stillroom.training.checkpoint`, so that a checkpoint of one process is read by several and
the reverse.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from stillroom.core import files
from stillroom.core.errors import EnvironmentProblem
from stillroom.training.checkpoint import (
    SIZES,
    STATE,
    TENSORS,
    State,
    is_whole,
    load_checkpoint,
    newest,
    remove_old,
    unique_tensors,
)
from stillroom.training.group import Group

APPEAR_SECONDS = 90.0
"""NFS shows new names on other machines after up to 60."""


def save_sharded(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: State, group: Group) -> None:
    """Write ``folder/step-N``; every process calls it. It is a checkpoint once rank 0 has written its state, last."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    target = folder / f"step-{state.step:07}"
    beside = folder / f".{target.name}.partial"
    if group.first:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    group.barrier()
    with _quiet():
        save(tensors_of(model, optimizer), storage_writer=HuggingFaceStorageWriter(str(beside), save_distributed=True))
    group.barrier()
    if group.first:
        sizes = {}
        for path in sorted(beside.rglob("*")):
            if path.is_file():
                with open(path, "rb") as stream:
                    os.fsync(stream.fileno())
                sizes[path.relative_to(beside).as_posix()] = path.stat().st_size
        files.write_text(beside / SIZES, json.dumps(sizes))
        files.write_text(beside / STATE, json.dumps(vars(state), allow_nan=False))
        shutil.rmtree(target, ignore_errors=True)
        os.rename(beside, target)
        files.sync_folder(folder)
        remove_old(folder, target, state)
    group.barrier()


def load_sharded(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, group: Group, base: str = ""
) -> State:
    """Put model, optimizer and random state back to the newest whole checkpoint, of however many processes it is.

    All processes go on from the same one. ``base`` and errors are those of
    :func:`stillroom.training.checkpoint.load_checkpoint`.

    Raises:
        EnvironmentProblem: This process does not find the one that rank 0 goes on from.
    """
    found = _of_all(folder, newest(folder), group)
    if found is None:
        return State()
    if not group.many and (found / TENSORS).is_file():
        return load_checkpoint(folder, model, optimizer, base)
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    state = State(**files.read_json(found / STATE))
    begin(optimizer)
    tensors = tensors_of(model, optimizer)
    with _quiet():
        reader = HuggingFaceStorageReader(str(found))
        there = reader.read_metadata().state_dict_metadata
        # A weight that never had a gradient has no state of the optimizer.
        wanted = {name: tensor for name, tensor in tensors.items() if name in there or name.startswith("model.")}
        load(wanted, storage_reader=reader, no_dist=not group.many)
    for group_ in optimizer.param_groups:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for parameter in group_["params"]:
            if f"optimizer.{names[id(parameter)]}.exp_avg" not in there:
                optimizer.state.pop(parameter, None)
    torch.set_rng_state(tensors["random.cpu"])
    return state


def _of_all(folder: Path, found: Path | None, group: Group) -> Path | None:
    """The checkpoint that rank 0 goes on from: a file system may show it to another machine a little later.

    Raises:
        EnvironmentProblem: It does not.
    """
    mine = int(found.name.removeprefix("step-")) + 1 if found is not None else 0
    first = int(group.sum([float(mine if group.first else 0)])[0])
    if first == mine:
        return found
    wanted = folder / f"step-{first - 1:07}" if first else None
    until = time.monotonic() + APPEAR_SECONDS
    while wanted is not None and not is_whole(wanted):
        if time.monotonic() > until:
            raise EnvironmentProblem(
                f"{wanted}: the first process goes on from this checkpoint, and another on {socket.gethostname()} does not "
                f"find it within {APPEAR_SECONDS:.0f} s.",
                "Give all machines the same file system, and the same command again.",
            )
        time.sleep(0.1)
    return wanted


def begin(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter the state that AdamW begins with, all of it where the parameter is: a fused optimizer's kernel reads
    the number of steps there.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not optimizer.state.get(parameter):
                optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Everything that the next step depends on, by name; the tensors themselves, not copies."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {f"model.{name}": tensor for name, tensor in unique_tensors(model).items()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                found[f"optimizer.{names[id(parameter)]}.{key}"] = value
    found["random.cpu"] = torch.get_rng_state()
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's checkpoint without its notes on what it is about to do."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
