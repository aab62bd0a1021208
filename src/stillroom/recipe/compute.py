"""Recipe keys of the section `compute`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillroom.recipe.section import BEFORE, Section


class ComputeConfig(Section):
    """Where and how numbers are computed."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """``auto`` takes what accelerate finds: a CUDA GPU, an Apple GPU, or the CPU."""
    threads: int | None = Field(default=None, ge=1, le=4096)
    """Threads on the CPU; without it, PyTorch's choice. Bit-identical repetition needs the same number."""
    deterministic: bool | Literal["auto"] = Field(default="auto", json_schema_extra={BEFORE: True})
    """Refuse operations whose result depends on the order of execution. ``auto`` does so on the CPU; on a GPU such
    operations are many times slower, and some there are none of."""
