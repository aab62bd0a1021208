"""Hidden states of a model on held-out text, kept in a file: models are compared that are not in memory at the same time.

Logits are products of hidden states and the output layer. With the states in a file, one model after the other is loaded, runs
over the text once and is released; what is left of it in memory is its output layer. The numbers are those of models that
are all in memory, to the bit.

Legend: L tokens of a sequence, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from stillroom.core.progress import Task
from stillroom.corpus.sequences import Sequences
from stillroom.evaluation.heldout import HeldOut
from stillroom.models.forward import hidden_states, output_head
from stillroom.models.passes import Head
from stillroom.signals.batches import Batch, BatchSource
from stillroom.signals.vocabulary_map import VocabularyMap

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

TOKENS = 65_536
"""Tokens of text whose hidden states are in files at the same time."""


@dataclass(frozen=True)
class KeptStates:
    """What a comparison needs of a model.

    Attributes:
        head: Its output layer.
        file: Holds the hidden states [L, H] of each sequence, one after the other.
        dtype: Of the hidden states.
        starts: Where each sequence's begin in the file, in bytes, by its number; and its tokens.
    """

    head: Head
    file: Path
    dtype: torch.dtype
    starts: dict[int, tuple[int, int]]

    def of(self, number: int) -> torch.Tensor:
        """Hidden states [L, H] of a sequence."""
        start, length = self.starts[number]
        width = self.head.matrix.shape[1]
        size = length * width * self.dtype.itemsize
        with self.file.open("rb") as file:
            file.seek(start)
            found = np.fromfile(file, dtype=np.uint8, count=size)
        return torch.from_numpy(found).view(self.dtype).view(length, width)


@torch.inference_mode()
def keep_states(
    model: CausalModel, vocabulary: VocabularyMap | None, heldout: HeldOut, part: range, file: Path, task: Task
) -> KeptStates:
    """Run a model over some sequences and keep its hidden states.

    Args:
        model: The model, on the CPU.
        vocabulary: From the teacher's ids to its ids; None for the teacher itself.
        heldout: Text in the teacher's ids.
        part: Numbers of the sequences.
        file: Where to keep them; a file there is replaced.
        task: Takes progress in tokens.
    """
    starts: dict[int, tuple[int, int]] = {}
    dtype, place = torch.float32, 0
    with file.open("wb") as kept:
        for number in part:
            row = heldout.row(number)
            ids, positions = row.ids, row.positions
            if vocabulary is not None:
                _, batch = in_students_ids(row, vocabulary)
                ids, positions = batch.ids, batch.positions
            hidden = hidden_states(model, ids, positions)[0].contiguous()
            starts[number] = place, hidden.shape[0]
            place += hidden.nbytes
            dtype = hidden.dtype
            hidden.view(torch.uint8).numpy().tofile(kept)
            task.advance(heldout.length)
    head = output_head(model)
    bias = None if head.bias is None else _apart(head.bias)
    return KeptStates(replace(head, matrix=_apart(head.matrix), bias=bias), file, dtype, starts)


def in_students_ids(row: Sequences, vocabulary: VocabularyMap) -> tuple[BatchSource, Batch]:
    """A sequence in a student's ids, as a source and as a batch."""
    source = BatchSource(row, vocabulary, None)
    return source, source.batch([0])


def parts_of(heldout: HeldOut) -> list[range]:
    """The sequences of a text, in parts of at most ``TOKENS`` tokens."""
    rows = max(1, TOKENS // max(1, heldout.length))
    return [range(begin, min(begin + rows, len(heldout))) for begin in range(0, len(heldout), rows)]


def _apart(tensor: torch.Tensor) -> torch.Tensor:
    """A weight without its model: a copy, because one that was read from a file may keep all of the file in memory."""
    return tensor.detach().clone()
