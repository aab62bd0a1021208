"""What an error in each column of a matrix costs: the mean squared input that the column multiplies.

Quantisation rounds a weight w to w + e; a layer's output then changes by e·x. Over a sample of inputs x the mean square of
that change is Σ e² · mean(x²) when columns are taken as independent. So the squares of the inputs, on text like that
which the student will see, are the weights of the rounding problem (llama.cpp calls them the importance matrix).

Legend: L tokens, C columns.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stillroom.core import files
from stillroom.core.progress import Task
from stillroom.corpus.sequences import Sequences
from stillroom.models.forward import hidden_states
from stillroom.signals.batches import BatchSource
from stillroom.signals.vocabulary_map import VocabularyMap


@torch.inference_mode()
def measure_importance(
    model: Any, text: Sequences, vocabulary: VocabularyMap, tokens: int, task: Task
) -> dict[str, np.ndarray]:
    """Mean squared inputs of every linear layer but the output's, on training text.

    Args:
        model: The student, float32.
        text: Training sequences, in the teacher's ids.
        vocabulary: From those to the student's.
        tokens: Tokens of the sample, in the teacher's ids; whole sequences, spread evenly over the text.
        task: Takes progress in tokens.

    Returns:
        [C] float32 for each weight, by its key.
    """
    wanted = min(len(text), max(1, -(-tokens // text.length)))
    chosen = [index * len(text) // wanted for index in range(wanted)]
    sums: dict[str, torch.Tensor] = {}
    keep = torch.zeros(0, dtype=torch.bool)

    def hook(key: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def add(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])[keep]
            sums[key] = sums.get(key, torch.zeros(rows.shape[1], dtype=torch.float64)) + rows.double().square().sum(0)

        return add

    output = model.get_output_embeddings()
    handles = [
        module.register_forward_pre_hook(hook(f"{name}.weight"))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not output
    ]
    count = 0
    try:
        for index in chosen:
            # One sequence at a time, so that only these rows have to be made.
            one = text.part([index])
            source = BatchSource(one, vocabulary, None)
            batch = source.batch([0])
            keep = one.segments[0][source.origin(0)] >= 0
            count += int(keep.sum())
            hidden_states(model, batch.ids, batch.positions)
            task.advance(text.length)
    finally:
        for handle in handles:
            handle.remove()
    return {key: (value / max(1, count)).float().numpy() for key, value in sums.items()}


def save_importance(importance: dict[str, np.ndarray], path: Path) -> None:
    """Write as safetensors, atomically."""
    from safetensors.numpy import save_file

    with files.replacing(path) as beside:
        save_file(importance, beside)


def load_importance(path: Path) -> dict[str, np.ndarray] | None:
    """Read what :func:`save_importance` wrote; None where there is none that can be read."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        loaded: dict[str, np.ndarray] = load_file(path)
    except (FileNotFoundError, SafetensorError):
        return None
    return loaded
