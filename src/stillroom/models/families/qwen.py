"""Qwen 2 and Qwen 3."""

from __future__ import annotations

from stillroom.models.families.family import ATTENTION, FEED_FORWARD, HEAD_NORMS, NORMS_BEFORE, Family, GgufLayout

FAMILIES = (
    Family("qwen2", gguf=GgufLayout("qwen2", square=True)),
    Family("qwen3", ATTENTION | FEED_FORWARD | NORMS_BEFORE | HEAD_NORMS, gguf=GgufLayout("qwen3")),
)
