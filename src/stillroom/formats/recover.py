"""Distillation after quantisation: a short pass that moves weights to where rounding hurts less.

Every step rounds the weights with the quantiser that writes the file, whatever its type, and takes the gradient of
KL(student ‖ rounded student) as if rounding were the identity (the straight-through estimator: Bengio, Léonard & Courville,
arXiv 1308.3432; for language models LLM-QAT, arXiv 2305.17888). The unrounded student itself is what is imitated, so that no
teacher and no stored signal is needed.

Legend: L tokens, H hidden width, V ids.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from stillroom.core.errors import TrainingDiverged
from stillroom.core.progress import Task
from stillroom.corpus.sequences import Sequences
from stillroom.formats.gguf_file import Importance
from stillroom.formats.quantise import PLAIN, quantise
from stillroom.models.forward import hidden_states, logits_from_hidden
from stillroom.recipe.export import RecoverConfig
from stillroom.signals.batches import BatchSource
from stillroom.signals.vocabulary_map import VocabularyMap

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

CHUNK = 256
"""Positions whose distributions over the vocabulary exist at the same time."""
WARMUP = 0.1
"""Share of the steps in which the learning rate rises."""


def recover(
    student: CausalModel,
    kinds: dict[str, GGMLQuantizationType],
    importance: Importance | None,
    text: Sequences,
    vocabulary: VocabularyMap,
    config: RecoverConfig,
    task: Task,
) -> CausalModel:
    """A copy of the student whose rounded weights predict more nearly what the student does.

    Args:
        student: The student, float32; it is not changed.
        kinds: The type that each weight is rounded to, by its key.
        importance: What an error in each column costs, by the weight's key.
        text: Training sequences, in the teacher's ids.
        vocabulary: From those to the student's.
        config: The recipe's section.
        task: Takes progress in steps.

    Raises:
        TrainingDiverged: A loss or a weight is not finite.
    """
    model = copy.deepcopy(student).train(False).requires_grad_(True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    a_step = max(1, config.batch_tokens // text.length)
    source = BatchSource(text.take(min(len(text), a_step * config.steps)), vocabulary, None)
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, config.steps)
        optimizer.zero_grad(set_to_none=True)
        divergence = 0.0
        with rounded(model, kinds, importance):
            for index in range(step * a_step, (step + 1) * a_step):
                divergence += _backward(model, student, source, index % len(source)) / a_step
        norm = torch.nn.utils.clip_grad_norm_(trained, a_step * config.gradient_clip)
        if not math.isfinite(divergence) or not math.isfinite(float(norm)):
            raise _diverged("the loss or its gradient", step, config)
        optimizer.step()
        task.advance(1, f"KL {divergence:.4f}")
    if not all(bool(parameter.isfinite().all()) for parameter in trained):
        raise _diverged("a weight", config.steps - 1, config)
    return model.requires_grad_(False)


def _diverged(what: str, step: int, config: RecoverConfig) -> TrainingDiverged:
    rate = config.learning_rate
    return TrainingDiverged(
        f"{what} is not finite at step {step + 1} of the recovery, learning rate {rate:g}.",
        f"Try `export.recover.learning_rate: {rate / 10:.0e}`.",
    )


@contextlib.contextmanager
def rounded(
    model: CausalModel, kinds: dict[str, GGMLQuantizationType], importance: Importance | None
) -> Iterator[None]:
    """The weights as a file would hold them while the body runs; gradients go to the unrounded ones."""
    exact: dict[str, torch.Tensor] = {}
    parameters = dict(model.named_parameters())
    for key, kind in kinds.items():
        if kind in PLAIN or key not in parameters:
            continue
        exact[key] = parameters[key].data
        weight = importance.get(key) if importance else None
        coarse = dequantize(quantise(exact[key].numpy(), kind, weight), kind)
        parameters[key].data = torch.from_numpy(coarse).reshape(exact[key].shape)
    try:
        yield
    finally:
        for key, data in exact.items():
            parameters[key].data = data


def _backward(model: CausalModel, student: CausalModel, source: BatchSource, index: int) -> float:
    """Add one sequence's gradient of KL(student ‖ model), mean over its positions; returns the mean."""
    batch = source.batch([index])
    with torch.inference_mode():
        expected = hidden_states(student, batch.ids, batch.positions)[0]
    said = hidden_states(model, batch.ids, batch.positions)[0]
    # Only a chunk's distributions exist at a time: their gradient is gathered at the hidden states.
    states = said.detach().requires_grad_()
    used, count, total = source.vocabulary.student_used, states.shape[0], 0.0
    for start in range(0, count, CHUNK):
        part = slice(start, start + CHUNK)
        with torch.inference_mode():
            target = torch.log_softmax(logits_from_hidden(student, expected[part])[:, :used], dim=1)
        logprobs = torch.log_softmax(logits_from_hidden(model, states[part])[:, :used], dim=1)
        loss = torch.nn.functional.kl_div(logprobs, target.clone(), reduction="sum", log_target=True) / count
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    said.backward(states.grad)  # type: ignore[no-untyped-call]
    return total


def _schedule(step: int, steps: int) -> float:
    """Up in a line, then down along a cosine."""
    rise = max(1, round(WARMUP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise + 1) / max(1, steps - rise + 1)))
