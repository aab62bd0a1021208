"""Llama and Mistral."""

from __future__ import annotations

from stillroom.models.families.family import Family, GgufLayout

FAMILIES = (
    Family("llama", gguf=GgufLayout("llama", permuted=True)),
    Family("mistral", gguf=GgufLayout("llama", permuted=True)),
)
