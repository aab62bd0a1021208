"""The installed version of Stillroom."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@functools.cache
def tool_version() -> str:
    """The installed version of Stillroom."""
    from importlib.metadata import version

    return version("stillroom")
