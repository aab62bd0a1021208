"""The teacher's one pass over the sequences, into the cache.

Legend: B sequences, L tokens, N positions with a target, V ids of the teacher's vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import psutil
import torch

from stillroom.core.errors import OutOfMemory, TeacherError, translate
from stillroom.core.progress import Task
from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.models.forward import Head, hidden_states, output_head
from stillroom.signals.cache.writer import CHUNK, CacheWriter

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

MOST_BATCH_TOKENS = {"cpu": 2048, "cuda": 65_536, "mps": 8192}
HEAD_POSITIONS = 256
"""Positions that go through the output layer together."""


def batch_tokens(model: CausalModel, length: int, device: str) -> int:
    """Tokens a forward pass that fit into half of the free memory, at least one sequence.

    A token in flight takes, without gradients, a few hidden states, the two halves of a feed-forward layer, and a row of
    the attention mask and scores.
    """
    config = model.config
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", 4 * width)
    itemsize = next(model.parameters()).element_size()
    per_token = itemsize * (6 * width + 3 * inner) + 4 * length * (config.num_attention_heads + 1)
    if device == "cuda":
        free = torch.cuda.mem_get_info()[0]
    else:
        free = psutil.virtual_memory().available
    fitting = int(free / 2 / per_token)
    return max(length, min(MOST_BATCH_TOKENS.get(device, 2048), fitting) // length * length)


@torch.inference_mode()
def teacher_scores(
    model: CausalModel, sequences: Sequences, indices: list[int], temperature: float, device: torch.device
) -> Iterator[tuple[int, Iterator[torch.Tensor]]]:
    """Logits of what follows, bent by the temperature, sequence by sequence, of one batch.

    Args:
        model: The teacher.
        sequences: A split.
        indices: Sequences of the batch.
        temperature: Bends the distribution: softmax(logits / temperature).
        device: Where to compute.

    Yields:
        The sequence's index, and [N, V] float32 for its N positions with a target, some positions at a time.
    """
    ids = sequences.ids[indices].to(device)
    positions = sequences.positions[indices].to(device)
    hidden = hidden_states(model, ids, positions)
    head = output_head(model)
    for row, index in enumerate(indices):
        chosen = (sequences.targets[index] != IGNORED).nonzero().squeeze(1).to(device)
        yield index, _scores(head, hidden[row, chosen], temperature)


@torch.inference_mode()
def _scores(head: Head, hidden: torch.Tensor, temperature: float) -> Iterator[torch.Tensor]:
    for part in torch.split(hidden, HEAD_POSITIONS):
        for raw in torch.split(torch.nn.functional.linear(part, head.matrix, head.bias), CHUNK):
            scores = head.finish(raw.float())
            yield (scores if temperature == 1.0 else scores / temperature).cpu()


def capture(
    model: CausalModel,
    sequences: Sequences,
    writer: CacheWriter,
    temperature: float,
    device: torch.device,
    asked_batch_tokens: int | None,
    shard_tokens: int,
    task: Task,
) -> None:
    """Run the teacher over every sequence that the cache lacks.

    Raises:
        TeacherError: The teacher's output is not finite.
        OutOfMemory: A single sequence does not fit.
    """
    digests = sequences.digests
    missing = set(writer.missing(digests))
    todo = [index for index, digest in enumerate(digests) if digest in missing]
    # The same sequence may stand in a split twice; the cache holds it once.
    first = {digests[index]: index for index in reversed(todo)}
    todo = sorted(first.values())
    task.skip((len(sequences) - len(todo)) * sequences.length)
    batch = max(1, (asked_batch_tokens or batch_tokens(model, sequences.length, device.type)) // sequences.length)
    unsaved = 0
    at = 0
    while at < len(todo):
        indices = todo[at : at + batch]
        try:
            for index, scores in teacher_scores(model, sequences, indices, temperature, device):
                if not writer.add(digests[index], scores):
                    raise TeacherError(
                        f"The teacher's output on training sequence {index} is not finite.",
                        "Load it with `dtype: float32`, or check that its files are whole.",
                    )
        except (RuntimeError, MemoryError) as error:
            if not isinstance(translate(error), OutOfMemory):
                raise
            if batch == 1:
                raise OutOfMemory(
                    f"The teacher does not fit into memory with one sequence of {sequences.length} tokens.",
                    "Shorten `corpus.sequence_length`, or free memory.",
                ) from None
            batch = max(1, batch // 2)
            continue
        at += len(indices)
        unsaved += len(indices) * sequences.length
        task.advance(len(indices) * sequences.length)
        if unsaved >= shard_tokens:
            writer.flush()
            unsaved = 0
    writer.flush()
