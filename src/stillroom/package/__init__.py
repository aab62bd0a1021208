"""Exported files and a run's record to a signed package, and its verification. Knows nothing of model internals.

``verify`` is the only door to loading a package: ``verification.py`` says its six steps, ``docs/packages.md`` the layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.package.verification import VerifiedPackage as VerifiedPackage
    from stillroom.package.verification import verify as verify

__all__ = ["VerifiedPackage", "verify"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import importlib

        return getattr(importlib.import_module("stillroom.package.verification"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
