"""Teachers by the kind that a recipe names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from stillroom.recipe.teacher import Teacher as TeacherConfig
from stillroom.teachers.local import LocalTeacher
from stillroom.teachers.teacher import Teacher

Opener = Callable[[Any, torch.device, torch.dtype], Teacher]
"""Opens a teacher from its section of the recipe, on a device and in a dtype if it computes here."""


def _endpoint(config: Any, _device: torch.device, _dtype: torch.dtype) -> Teacher:
    from stillroom.teachers.endpoint.teacher import open_endpoint

    return open_endpoint(config)


OPENERS: dict[str, Opener] = {"huggingface": LocalTeacher.open, "gguf": LocalTeacher.open, "endpoint": _endpoint}


def open_teacher(config: TeacherConfig, device: torch.device, dtype: torch.dtype) -> Teacher:
    """Open the teacher of a recipe.

    Args:
        config: The recipe's section ``teacher``.
        device: Where a teacher that computes in this process does it.
        dtype: The dtype of its weights.

    Raises:
        TeacherError: It is missing or cannot be read.
        InspectionRefused: It is not safe to open.
        VerificationFailed: It is inside a package that cannot prove what it claims.
        UnsupportedModel: Its family is not a causal language model that transformers knows.
    """
    return OPENERS[config.kind](config, device, dtype)
