"""The recipe's words for export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator, model_validator

from stillroom.core.gguf_types import GGUF_TYPES
from stillroom.recipe.gguf_type import GgufType
from stillroom.recipe.section import LEAST_CLIP, Section

MAX_KL: dict[GgufType, float] = {name: row.max_kl for name, row in GGUF_TYPES.items() if row.since == "0.1.0"}
"""What a type may lose, unless the recipe says otherwise. Those of the first release are in every written-out recipe; a
later type only where it is used, so that no finished run has other inputs than it was made from."""


class ChooseConfig(Section):
    """One file besides those of ``gguf``, chosen among types by what a device allows and how close it has to be.

    With ``max_kl`` it is the smallest that is close enough; without, the largest that fits.
    """

    among: tuple[GgufType, ...] = tuple(name for name, row in GGUF_TYPES.items() if row.candidate)
    """Types to choose among."""
    file_bytes: int | None = Field(default=None, gt=0)
    """At most this many bytes."""
    device: str | None = None
    """A device profile by name (docs/shrink.md lists them): the file fits its limit, and with the KV cache
    at its context it fits the memory."""
    profiles: Path | None = None
    """A YAML file with profiles of one's own."""
    max_kl: float | None = Field(default=None, gt=0)
    """Largest mean KL(PyTorch student ‖ file) in nats per token."""

    @model_validator(mode="after")
    def _something(self) -> ChooseConfig:
        if self.file_bytes is None and self.device is None and self.max_kl is None:
            raise ValueError("a choice needs a limit: file_bytes, device or max_kl")
        if not self.among:
            raise ValueError("a choice needs at least one type")
        return self


class RecoverConfig(Section):
    """Distillation after quantisation, for each type under Q8_0: a short training pass on weights rounded as the file holds
    them. Its result is kept only where it lowers the measured KL to the PyTorch student.
    """

    steps: int = Field(default=24, ge=1, le=100_000)
    """Steps of training."""
    batch_tokens: int = Field(default=2048, ge=1, le=2**20)
    """Tokens of training text a step."""
    learning_rate: float = Field(default=5e-5, gt=0, lt=1)
    """Largest learning rate. Where the pass diverges at it, the file that was not recovered stays."""
    gradient_clip: float = Field(default=1.0, ge=LEAST_CLIP)
    """Largest norm of a gradient."""


class ExportConfig(Section):
    """Files for devices, each checked against the PyTorch student before it is accepted."""

    gguf: tuple[GgufType, ...] = ("F16", "Q8_0")
    """GGUF types to write; none leaves GGUF out."""
    choose: ChooseConfig | None = None
    """One more file, chosen by a target."""
    max_kl: dict[GgufType, Annotated[float, Field(ge=0)]] = Field(default=MAX_KL, validate_default=True)
    """Largest mean KL(PyTorch student ‖ file) in nats per token that is accepted; types that are not named keep their
    limits."""
    check_tokens: int = Field(default=256, ge=16)
    """Held-out tokens on which a file is checked."""
    importance_tokens: int = Field(default=8192, ge=0)
    """Tokens of training text on which the importance matrix of the types under Q8_0 is measured; 0 does without."""
    recover: RecoverConfig | None = None
    """Distil after quantisation; null leaves the rounded weights as they are."""
    onnx: bool = False
    """Write ONNX too, with a KV cache, for ONNX Runtime (extra ``onnx``)."""

    @property
    def writes_gguf(self) -> bool:
        """Whether any GGUF file is written."""
        return bool(self.gguf) or self.choose is not None

    @field_validator("max_kl", mode="after")
    @classmethod
    def _all_types(cls, value: dict[GgufType, float], info: ValidationInfo) -> dict[GgufType, float]:
        choose: ChooseConfig | None = info.data.get("choose")
        used = (*info.data.get("gguf", ()), *(choose.among if choose else ()))
        return MAX_KL | {name: GGUF_TYPES[name].max_kl for name in used if name not in MAX_KL} | value


class ChatConfig(Section):
    """The question that a run ends with, answered by the exported student."""

    prompt: str | None = "What does a Python for loop do?"
    """The question to the student; null asks nothing."""
    max_tokens: int = Field(default=64, ge=1)
    """Longest answer, in tokens."""
