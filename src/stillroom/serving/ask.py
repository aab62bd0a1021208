"""One question, one answer. Knows nothing of conversations."""

from __future__ import annotations

from pathlib import Path

from stillroom.runtime.engine import Engine, EngineOptions
from stillroom.serving.models import open_model


def answer(path: str | Path, prompt: str, max_tokens: int = 128, temperature: float = 0.0, seed: int = 0) -> str:
    """Ask a model once.

    Args:
        path: A package, a run's folder or a GGUF file.
        prompt: The question.
        max_tokens: Longest answer.
        temperature: 0 always takes the most probable token.
        seed: Seed of the sampling.
    """
    with open_model(path) as model, Engine(model.gguf, EngineOptions()) as engine:
        pieces = engine.stream(
            [{"role": "user", "content": prompt}], max_tokens=max_tokens, temperature=temperature, seed=seed
        )
        return "".join(pieces).strip()
