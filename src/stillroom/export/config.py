"""The recipe's words for export."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillroom.section import Section

GgufType = Literal["F16", "Q8_0"]


class ExportConfig(Section):
    """Files for devices, each checked against the PyTorch student before it is accepted."""

    gguf: tuple[GgufType, ...] = ("F16", "Q8_0")
    """GGUF types to write; none leaves GGUF out."""
    max_kl: dict[GgufType, float] = Field(default={"F16": 1e-3, "Q8_0": 2e-2})
    """Largest mean KL(PyTorch student ‖ file) in nats a token that is accepted."""
    check_tokens: int = Field(default=256, ge=16)
    """Held-out tokens on which a file is checked."""


class ChatConfig(Section):
    """The question that a run ends with, answered by the exported student."""

    prompt: str | None = "What does a Python for loop do?"
    """What the student is asked; null asks nothing."""
    max_tokens: int = Field(default=64, ge=1)
    """Longest answer, in tokens."""
