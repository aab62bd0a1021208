"""Checkpoints of training: everything that the next step depends on, written whole or not at all, without pickle."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillroom.core import files
from stillroom.core.errors import RunError, StillroomError
from stillroom.training.lean import taken_over

STATE = "state.json"
"""The file of a checkpoint that is written last."""
SIZES = "sizes.json"
"""Of a checkpoint of several processes: its files and their bytes."""
TENSORS = "state.safetensors"
"""The tensors of a checkpoint of one process."""
BASE = "base"
"""In the metadata of a file of adapters: the identity of the weights that they belong to."""


@dataclass
class State:
    """How far training is.

    Attributes:
        step: Steps done.
        best_value: The lowest validation KL so far, or cross-entropy where that is what is trained for; None at the start.
        best_kl: The validation KL of the same step.
        best_step: The step that they were measured after.
        history: One entry per validation.
        clipped: Steps whose gradient was clipped.
        tokens: Tokens trained on, without padding; known at the end.
        lost: What the KLs here count less of the teacher's entropy because the student's ids do not tell all of the teacher's
            apart, nats per token; 0 in checkpoints from before that was counted.
    """

    step: int = 0
    best_value: float | None = None
    best_kl: float | None = None
    best_step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    clipped: int = 0
    tokens: int = 0
    lost: float = 0.0

    def count_lost(self, lost: float, distill: bool) -> None:
        """Make the KLs so far comparable with those that are measured from now on.

        Args:
            lost: As :attr:`lost`, for the validations to come.
            distill: Whether the best value is a KL.
        """
        more, self.lost = lost - self.lost, lost
        if distill and self.best_value is not None:
            self.best_value += more
        if self.best_kl is not None:
            self.best_kl += more
        for entry in self.history:
            entry["kl"] += more


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: State, base: str = ""
) -> None:
    """Write ``folder/step-N`` and remove older ones, and best weights that no checkpoint names any more.

    Frozen weights are not in it; ``base`` says which they are.

    Only folders that carry ``state.json``, written last, are checkpoints. The best weights that the newest checkpoint names are
    never removed before the next one is whole, so that both are always of one trajectory.
    """
    from safetensors.torch import save_file

    target = folder / f"step-{state.step:07}"
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in unique_tensors(model).items():
        tensors[f"model.{name}"] = tensor.cpu().contiguous()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{names[id(parameter)]}.{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    tensors["random.cpu"] = torch.get_rng_state()
    device = next(model.parameters()).device
    if device.type != "cpu" and _random_of(device).is_available():
        tensors["random.device"] = _random_of(device).get_rng_state()
    with files.replacing(target) as beside:
        beside.mkdir()
        save_file(tensors, beside / TENSORS, metadata={BASE: base} if base else None)
        (beside / STATE).write_text(json.dumps(vars(state), allow_nan=False), encoding="utf-8")
    remove_old(folder, target, state)


def remove_old(folder: Path, target: Path, state: State) -> None:
    """Remove checkpoints other than ``target``, and best weights that it does not name."""
    for old in folder.glob("step-*"):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)
    for old in folder.glob("best*.safetensors"):
        if old != best_weights(folder, state.best_step):
            old.unlink()


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint; None where there is none.

    One of several processes names its files and their sizes: where one is missing or cut off, it is none.
    """
    found = sorted(path for path in folder.glob("step-*") if is_whole(path))
    return found[-1] if found else None


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is there, and the files that it names are as long as they were."""
    if not (path / STATE).is_file():
        return False
    if not (path / SIZES).is_file():
        return True
    try:
        sizes = files.read_json(path / SIZES)
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError, StillroomError):
        return False


def best_weights(folder: Path, step: int) -> Path:
    """The file of the best weights, measured after this step; what 0.1.0 left unfinished has it without the step."""
    path = folder / f"best-{step:07}.safetensors"
    old = folder / "best.safetensors"
    return old if old.is_file() and not path.is_file() and list(folder.glob("step-*")) else path


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, base: str = "") -> State:
    """Put model, optimizer and random state back to the newest checkpoint of one process; a fresh state where there is none.

    Raises:
        RunError: It belongs to other frozen weights than ``base``.
    """
    from safetensors.torch import load_file

    found = newest(folder)
    if found is None:
        return State()
    require_base(found / TENSORS, base)
    state = State(**files.read_json(found / STATE))
    tensors = load_file(found / TENSORS)
    with torch.no_grad():
        for name, tensor in unique_tensors(model).items():
            tensor.copy_(tensors[f"model.{name}"])
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        prefix = f"optimizer.{name}."
        entries = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if entries:
            optimizer.state[parameter] = taken_over(optimizer, parameter, entries)
    torch.set_rng_state(tensors["random.cpu"])
    device = next(iter(parameters.values())).device
    if "random.device" in tensors and device.type != "cpu":
        _random_of(device).set_rng_state(tensors["random.device"])
    return state


@torch.no_grad()
def load_weights(folder: Path, model: nn.Module) -> None:
    """Put a model's weights to those of the newest checkpoint of one process; nothing else of it is read.

    Raises:
        RunError: There is no checkpoint.
    """
    from safetensors import safe_open

    found = newest(folder)
    if found is None:
        raise RunError(f"{folder} has no checkpoint.", "Give the same `run` again.")
    with safe_open(found / TENSORS, "pt") as tensors:
        for name, tensor in unique_tensors(model).items():
            tensor.copy_(tensors.get_tensor(f"model.{name}"))


def require_base(path: Path, base: str) -> None:
    """Refuse a file of adapters that were trained beside other frozen weights.

    Raises:
        RunError: They were, or the file is of a model whose every weight was trained.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as stream:
        theirs = (stream.metadata() or {}).get(BASE, "")
    if theirs != base:
        raise RunError(
            f"{path}: this checkpoint holds {_adapters_of(theirs)}, and the training is of {_adapters_of(base)}.",
            f"Remove {path.parent.parent}, and give the same command again: the training then begins at its start.",
        )


def _adapters_of(base: str) -> str:
    return f"adapters (LoRA) of the weights {base[:12]}…" if base else "all of a model's weights"


def _random_of(device: torch.device) -> Any:
    """The module with a GPU's random state: ``torch.cuda`` or ``torch.mps``."""
    return torch.cuda if device.type == "cuda" else torch.mps


def unique_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and saved buffers by name, tied ones once; frozen parameters, which stay as they are, are left out."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen and (tensor.requires_grad or not isinstance(tensor, nn.Parameter)):
            seen.add(id(tensor))
            found[name] = tensor.detach()
    return found
