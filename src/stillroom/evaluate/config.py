"""The recipe's words for evaluation."""

from __future__ import annotations

from pydantic import Field

from stillroom.section import Section


class EvaluateConfig(Section):
    """What is measured of teacher, shrunk, student and baseline on held-out text."""

    bootstrap_samples: int = Field(default=2000, ge=100)
    """Resamplings of documents behind every interval."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Share of resamplings inside an interval."""
    speed_tokens: int = Field(default=64, ge=0)
    """Tokens decoded to measure speed; 0 leaves speed out."""
