"""Verbs that share their name with a module: ``stillroom.runs.run`` is the floor's module, and calling it runs a recipe.

The import system puts a submodule's name on its package, so that a function of the same name would be hidden as soon as
anything imports the module. A module that can be called serves both. Knows nothing of what the verbs do.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


def resolve(target: str) -> Any:
    """The object of ``module:name``, imported now."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


class _Verb(ModuleType):
    """A module that can be called; ``__verb__`` names the function, imported at the first call."""

    __verb__: str

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return resolve(self.__verb__)(*arguments, **options)

    @property
    def __wrapped__(self) -> Any:
        """For :func:`inspect.signature`."""
        return resolve(self.__verb__)


def make_callable(module: str, target: str) -> None:
    """Let a module be called as ``target`` (``module:name``)."""
    found = sys.modules[module]
    found.__class__ = _Verb
    found.__verb__ = target  # type: ignore[attr-defined]
