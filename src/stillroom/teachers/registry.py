"""Teachers by the kind that a recipe names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from stillroom.models.at_hand import Keep, where_layers_go
from stillroom.models.load import config_parameters, stored_in_half
from stillroom.recipe.teacher import EndpointTeacher
from stillroom.recipe.teacher import Teacher as TeacherConfig
from stillroom.teachers.local import LocalTeacher
from stillroom.teachers.teacher import Teacher

Opener = Callable[[Any, torch.device, torch.dtype], Teacher]
"""Opens a teacher from its section of the recipe, on a device and in a dtype if it computes here."""


def _endpoint(config: Any, _device: torch.device, _dtype: torch.dtype) -> Teacher:
    from stillroom.teachers.endpoint.teacher import open_endpoint

    return open_endpoint(config)


def keep_of(config: TeacherConfig, device: torch.device, dtype: torch.dtype, memory: float | None = None) -> Keep:
    """Where a teacher's layers are stored (:func:`stillroom.models.at_hand.where_layers_go`).

    Args:
        config: The recipe's section ``teacher``.
        device: Where it computes.
        dtype: What it computes in.
        memory: Bytes of the device that are free; without it, those of the GPU as it is.
    """
    if isinstance(config, EndpointTeacher) or device.type != "cuda":
        return "device"
    if memory is None:
        if not torch.cuda.is_available():
            return "device"
        memory = float(torch.cuda.mem_get_info(device)[0])
    half = dtype == torch.float32 and stored_in_half(config)
    return where_layers_go(config_parameters(config), dtype.itemsize, memory, half=half)


OPENERS: dict[str, Opener] = {"huggingface": LocalTeacher.open, "gguf": LocalTeacher.open, "endpoint": _endpoint}


def open_teacher(config: TeacherConfig, device: torch.device, dtype: torch.dtype, keep: Keep | None = None) -> Teacher:
    """Open the teacher of a recipe.

    Args:
        config: The recipe's section ``teacher``.
        device: Where a teacher that computes in this process does it.
        dtype: The dtype of its weights.
        keep: Where and how its layers are stored; without it, as they fit (:func:`keep_of`).

    Raises:
        TeacherError: It is missing or cannot be read.
        InspectionRefused: It is not safe to open.
        VerificationFailed: It is inside a package that cannot prove what it claims.
        UnsupportedModel: Its family is not a causal language model that transformers knows.
    """
    keep = keep_of(config, device, dtype) if keep is None else keep
    if keep == "device" or isinstance(config, EndpointTeacher):
        return OPENERS[config.kind](config, device, dtype)
    return LocalTeacher.open(config, device, dtype, keep)
