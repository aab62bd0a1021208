"""Prefill and decode speed and memory of models, paired and interleaved. Knows nothing of quality.

Legend: L prompt tokens.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from stillroom.run import MemoryMeter

REPETITIONS = 3


@torch.inference_mode()
def measure_speed(
    models: dict[str, Any], prompt: dict[str, torch.Tensor], new_tokens: int
) -> dict[str, dict[str, float]]:
    """Tokens a second of several models: medians of interleaved repetitions, batch of one, with a key/value cache.

    Args:
        models: Models by name, all on the same device and in the same number format.
        prompt: Ids of a prompt in each model's vocabulary, [L].
        new_tokens: Tokens to decode, greedily.
    """
    found: dict[str, dict[str, list[float]]] = {name: {"prefill": [], "decode": []} for name in models}
    for _ in range(REPETITIONS):
        for name, model in models.items():
            ids = prompt[name][None].to(next(model.parameters()).device)
            started = time.perf_counter()
            result = model(input_ids=ids, use_cache=True, logits_to_keep=1)
            prefilled = time.perf_counter()
            cache = result.past_key_values
            for _ in range(new_tokens):
                best = result.logits[:, -1:].argmax(-1)
                result = model(input_ids=best, past_key_values=cache, use_cache=True)
            found[name]["prefill"].append(ids.shape[1] / (prefilled - started))
            found[name]["decode"].append(new_tokens / (time.perf_counter() - prefilled))
    return {
        name: {f"{key}_tokens_per_second": round(statistics.median(values), 2) for key, values in speeds.items()}
        for name, speeds in found.items()
    }


@torch.inference_mode()
def working_memory(model: Any, prompt: torch.Tensor) -> int:
    """Bytes of a model at work: its weights and what one pass over the prompt adds at its peak."""
    weights: int = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    meter = MemoryMeter()
    with meter:
        before = meter.peak
        model(input_ids=prompt[None].to(next(model.parameters()).device), use_cache=True, logits_to_keep=1)
    return weights + max(0, meter.peak - before)
