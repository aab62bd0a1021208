"""Families by name: the files of this package, and what other packages name under ``stillroom.families``."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import TYPE_CHECKING

from stillroom.core.errors import UnsupportedModel
from stillroom.core.plugins import plugins
from stillroom.models.families.family import Family, GgufLayout

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel, ModelConfig

GROUP = "stillroom.families"


@functools.cache
def families() -> dict[str, Family]:
    """Every family by its Hugging Face ``model_type``.

    Raises:
        EnvironmentProblem: An installed package names something else as a family, or it cannot be loaded.
    """
    found: dict[str, Family] = {}
    package = importlib.import_module("stillroom.models.families")
    for module in pkgutil.iter_modules(package.__path__):
        declared = importlib.import_module(f"{package.__name__}.{module.name}")
        for family in getattr(declared, "FAMILIES", ()):
            found[family.name] = family
    for _, family in plugins(GROUP, Family):
        found[family.name] = family
    return found


def family_of(model: CausalModel) -> Family:
    """The family of a model, for pruning.

    Raises:
        UnsupportedModel: There is none for it.
    """
    return family_for(model.config)


def family_for(config: ModelConfig) -> Family:
    """The family of a model's config. Errors as in :func:`family_of`."""
    name = config.model_type
    family = families().get(name)
    if family is None or not family.cuts:
        keys = ("num_experts", "num_local_experts", "n_routed_experts")
        experts = (
            " It is a mixture of experts whose experts cannot be removed."
            if any(hasattr(config, key) for key in keys)
            else ""
        )
        raise UnsupportedModel(
            f"The family `{name}` cannot be shrunk.{experts}",
            f"Families that can: {', '.join(sorted(name for name, family in families().items() if family.cuts))}. "
            "Or give an existing smaller model: `student: {kind: existing}`.",
        )
    return family


def gguf_layout_of(config: ModelConfig) -> GgufLayout:
    """How llama.cpp stores the family of a config.

    Raises:
        UnsupportedModel: GGUF export does not know it.
    """
    family = families().get(config.model_type)
    if family is None or family.gguf is None:
        raise UnsupportedModel(
            f"The family `{config.model_type}` cannot be exported to GGUF.",
            f"Families that can: {', '.join(sorted(name for name, family in families().items() if family.gguf))}. "
            "Or export nothing: `export: {gguf: []}`.",
        )
    return family.gguf
