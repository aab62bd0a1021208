"""CPUs, dtypes and determinism."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from stillroom.core import memory
from stillroom.core.errors import EnvironmentProblem
from stillroom.recipe.compute import ComputeConfig

if TYPE_CHECKING:
    import torch


@functools.cache
def fast_bfloat16(device: str) -> bool:
    """Whether matrix products in bfloat16 are done by the hardware itself on this device."""
    import torch

    if device == "cuda":
        # Older cards emulate it, slower than float32.
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu":
        supported = (
            getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
            or getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
        )
        return bool(supported)
    return False


def widest(device: torch.device) -> torch.dtype:
    """The widest floating-point format that a device has: float64, but not on ``mps``."""
    import torch

    return torch.float32 if device.type == "mps" else torch.float64


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers in float64: where they are, or on the CPU where their device has no float64."""
    import torch

    return tensor.double() if widest(tensor.device) == torch.float64 else tensor.cpu().double()


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given: a GPU computes while the CPU goes on, and a clock would be read too
    early.
    """
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def choose_dtype(asked: str, device: str) -> torch.dtype:
    """The dtype for a recipe's ``auto``, ``float32`` or ``bfloat16`` on a device."""
    import torch

    if asked == "auto":
        asked = "bfloat16" if fast_bfloat16(device) else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[asked]


def choose_device(config: ComputeConfig) -> torch.device:
    """The device of a run."""
    import torch

    if config.device != "auto":
        return torch.device(config.device)
    from accelerate import PartialState

    device: torch.device = PartialState().device
    return device


def require_device(config: ComputeConfig) -> None:
    """Refuse a device that this machine, or this build of PyTorch, does not have.

    Raises:
        EnvironmentProblem: Says what is missing.
    """
    import torch

    if config.device == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        raise EnvironmentProblem(
            "`compute.device` is cuda, and "
            + ("PyTorch finds no CUDA GPU here." if built else "the installed PyTorch was built without CUDA."),
            "Write `device: auto`, or "
            + ("check the driver: nvidia-smi." if built else "install a build of PyTorch for this GPU."),
        )
    if config.device == "mps" and not torch.backends.mps.is_available():
        raise EnvironmentProblem(
            "`compute.device` is mps, and PyTorch finds no Apple GPU here.", "Write `device: auto` or `cpu`."
        )


def prepare(config: ComputeConfig, seed: int) -> torch.device:
    """Set threads, determinism and every seed of this process; returns the device. Errors as in :func:`require_device`."""
    import torch

    require_device(config)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config)
    torch.use_deterministic_algorithms(device.type == "cpu" if config.deterministic == "auto" else config.deterministic)
    # Nothing reads memory that nothing wrote; filling all of it first costs a tenth of a training step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(seed)
    memory.keep_freed_memory()
    return device
