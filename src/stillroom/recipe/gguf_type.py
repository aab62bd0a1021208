"""The names of GGUF types, wherever a recipe takes one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from stillroom.core.gguf_types import GGUF_TYPES

if TYPE_CHECKING:
    GgufType: TypeAlias = str
else:
    # The names are in one table only; pydantic checks a value against them and names them all where it is none.
    GgufType = Literal[tuple(GGUF_TYPES)]
