"""Prefill and decode speed, memory and energy of models, paired and interleaved.

Legend: L prompt tokens, R repetitions.
"""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stillroom.core.memory import MemoryMeter
from stillroom.evaluation.intervals import student_t
from stillroom.models.compute import wait_for

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

REPETITIONS = 5
RAPL = Path("/sys/class/powercap")


@torch.inference_mode()
def measure_speed(
    models: dict[str, CausalModel], prompt: dict[str, torch.Tensor], new_tokens: int
) -> dict[str, dict[str, Any]]:
    """Tokens per second of several models, batch size one, with a KV cache.

    Repetitions are interleaved, so that a busy moment meets all models; the first pass of each warms up and is left out.

    Args:
        models: Models by name, all on the same device and in the same dtype; the first is what others are
            compared with.
        prompt: Ids of a prompt in each model's vocabulary, [L].
        new_tokens: Tokens to decode, greedily.

    Returns:
        By model: medians ``prefill_tokens_per_second`` and ``decode_tokens_per_second``, each with the 95 % interval of
        Student's t on the logarithms; for all but the first also ``…_speedup`` and its interval, from the ratios
        of paired repetitions; ``joules_per_token`` where the machine reports energy.
    """
    seconds: dict[str, dict[str, list[float]]] = {name: {"prefill": [], "decode": []} for name in models}
    joules: dict[str, list[float]] = {name: [] for name in models}
    for repetition in range(REPETITIONS + 1):
        for name, model in models.items():
            device = next(model.parameters()).device
            ids = prompt[name][None].to(device)
            wait_for(device)
            begun = time.perf_counter()
            result = model(input_ids=ids, use_cache=True, logits_to_keep=1)
            wait_for(device)
            prefilled = time.perf_counter()
            if repetition == 0:
                continue
            energy = read_energy()
            cache = result.past_key_values
            for _ in range(new_tokens):
                best = result.logits[:, -1:].argmax(-1)
                result = model(input_ids=best, past_key_values=cache, use_cache=True)
            wait_for(device)
            ended = time.perf_counter()
            after = read_energy()
            seconds[name]["prefill"].append((prefilled - begun) / ids.shape[1])
            seconds[name]["decode"].append((ended - prefilled) / new_tokens)
            if energy is not None and after is not None and after >= energy:
                joules[name].append((after - energy) / new_tokens)
    first = next(iter(models))
    found: dict[str, dict[str, Any]] = {}
    for name in models:
        entry: dict[str, Any] = {}
        for phase, values in seconds[name].items():
            entry |= _interval(f"{phase}_tokens_per_second", [1 / value for value in values])
            if name != first:
                pairs = zip(seconds[first][phase], values, strict=True)
                entry |= _interval(f"{phase}_speedup", [theirs / mine for theirs, mine in pairs])
        if joules[name]:
            entry["joules_per_token"] = statistics.median(joules[name])
        found[name] = entry
    return found


def _interval(name: str, values: list[float]) -> dict[str, Any]:
    """The median, and Student's interval of the geometric mean, widened to hold the median."""
    logs = [math.log(value) for value in values]
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    centre, half = statistics.fmean(logs), student_t(0.975, len(logs) - 1) * error
    middle = statistics.median(values)
    low, high = min(middle, math.exp(centre - half)), max(middle, math.exp(centre + half))
    return {name: round(middle, 3), f"{name}_interval": [round(low, 3), round(high, 3)]}


def read_energy(root: Path = RAPL) -> float | None:
    """Joules that the CPU's packages have used since some moment, or None where the machine does not say.

    Intel's and AMD's running average power limit, as Linux shows it; the counter wraps around now and then.
    """
    total, found = 0, False
    for file in sorted(root.glob("intel-rapl:*/energy_uj")):
        if file.parent.name.count(":") != 1:
            continue
        try:
            total += int(file.read_text())
        except (OSError, ValueError):
            return None
        found = True
    return total / 1e6 if found else None


@torch.inference_mode()
def working_memory(model: CausalModel, prompt: torch.Tensor) -> int:
    """Bytes of a model at work: its weights and what one pass over the prompt adds at its peak."""
    weights: int = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    device = next(model.parameters()).device
    ids = prompt[None].to(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        there = torch.cuda.memory_allocated(device)
        model(input_ids=ids, use_cache=True, logits_to_keep=1)
        return weights + max(0, torch.cuda.max_memory_allocated(device) - there)
    meter = MemoryMeter()
    with meter:
        before = meter.peak
        model(input_ids=ids, use_cache=True, logits_to_keep=1)
    return weights + max(0, meter.peak - before)
