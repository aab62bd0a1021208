"""What a receiver checks of a package: signatures, lists, revocations, and what it remembers.

``verify`` is the only door to loading a package: ``verification.py`` says its six steps, ``docs/packages.md`` the layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.verification.verification import VerifiedPackage as VerifiedPackage
    from stillroom.verification.verification import verify as verify

__all__ = ["VerifiedPackage", "verify"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import importlib

        return getattr(importlib.import_module("stillroom.verification.verification"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
