"""What a quantized folder takes on disk, and in memory once its weights are floats again. Reads configs and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stillroom.core import sizes
from stillroom.models.load import AnyTeacher, config_parameters, model_folder, quantization_words
from stillroom.recipe.teacher import HuggingFaceTeacher


@dataclass(frozen=True)
class StoredSize:
    """The size of a quantized model.

    Attributes:
        quantization: How its weights are stored, in words.
        parameters: Its weights, as its config says: scales are none, and packed ones count each.
        stored_bytes: Bytes of its files of weights.
    """

    quantization: str
    parameters: int
    stored_bytes: int

    @property
    def dequantized_bytes(self) -> dict[str, int]:
        """Bytes of its weights in memory, by dtype."""
        return {"float32": 4 * self.parameters, "bfloat16": 2 * self.parameters}

    @property
    def words(self) -> str:
        """One line for people."""
        floats = self.dequantized_bytes
        return (
            f"quantized: {self.quantization}; {sizes.in_words(self.stored_bytes)} on disk, "
            f"{sizes.in_words(floats['float32'])} once dequantized to float32 "
            f"({sizes.in_words(floats['bfloat16'])} in bfloat16)"
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "quantization": self.quantization,
            "parameters": self.parameters,
            "stored_bytes": self.stored_bytes,
            "dequantized_bytes": self.dequantized_bytes,
            "words": self.words,
        }


def stored_size(config: AnyTeacher) -> StoredSize | None:
    """The size of a teacher that is a quantized folder; None of any other.

    Raises:
        UnsupportedModel: It is quantized in a way that is not made floats again here, or is no causal language model.
        TeacherError: There is no such folder.
    """
    if not isinstance(config, HuggingFaceTeacher):
        return None
    quantization = quantization_words(config)
    if quantization is None:
        return None
    weights = model_folder(config.name, config.revision).glob("*.safetensors")
    return StoredSize(quantization, config_parameters(config), sum(file.stat().st_size for file in weights))
