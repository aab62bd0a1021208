"""The passages where student and teacher differ most, kept token by token while text streams past."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import torch

from stillroom.corpus.sequences import Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WINDOW = 48
LEAST = 16
KEPT = 3


class Worst:
    """Watches one student.

    Args:
        teacher: The teacher's tokenizer.
        student: The student's.
        sources: Names of sources.
    """

    def __init__(self, teacher: PreTrainedTokenizerFast, student: PreTrainedTokenizerFast, sources: list[str]) -> None:
        self._teacher, self._student, self._sources = teacher, student, sources
        self._parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._heap: list[tuple[float, int, dict[str, Any]]] = []
        self._count = 0

    def add(self, divergence: torch.Tensor, teacher: torch.Tensor, student: torch.Tensor) -> None:
        """KL of the next positions of the sequence, and what both would say there; each [P]."""
        self._parts.append((divergence, teacher, student))

    def close(self, row: Sequences, where: torch.Tensor) -> None:
        """The sequence is done: cut it into windows of one document and keep the worst."""
        if not self._parts:
            return
        divergence, teacher, student = (torch.cat(column) for column in zip(*self._parts, strict=True))
        self._parts = []
        segments = row.segments[0][where]
        for segment in sorted(set(segments.tolist())):
            mine = (segments == segment).nonzero().squeeze(1)
            for window in mine.split(WINDOW):
                if len(window) >= LEAST:
                    self._offer(row, where, window, divergence, teacher, student)

    def _offer(
        self,
        row: Sequences,
        where: torch.Tensor,
        window: torch.Tensor,
        divergence: torch.Tensor,
        teacher: torch.Tensor,
        student: torch.Tensor,
    ) -> None:
        mean = float(divergence[window].mean())
        document = int(row.documents[0][where[window[0]]])
        same = next((entry for entry in self._heap if entry[2]["document"] == document), None)
        if same is not None:
            if same[0] >= mean:
                return
            self._heap.remove(same)
            heapq.heapify(self._heap)
        elif len(self._heap) == KEPT and self._heap[0][0] >= mean:
            return
        targets = row.ids[0][where[window] + 1].tolist()
        passage = {
            "document": document,
            "source": self._sources[int(row.document_sources[document])],
            "mean_kl": mean,
            "tokens": [
                {
                    "text": self._teacher.decode([target]),
                    "kl": round(float(value), 4),
                    "teacher": self._teacher.decode([ours]),
                    "student": self._student.decode([theirs]),
                }
                for target, value, ours, theirs in zip(
                    targets,
                    divergence[window].tolist(),
                    teacher[window].tolist(),
                    student[window].tolist(),
                    strict=True,
                )
            ],
        }
        self._count += 1
        heapq.heappush(self._heap, (mean, self._count, passage))
        if len(self._heap) > KEPT:
            heapq.heappop(self._heap)

    def found(self) -> list[dict[str, Any]]:
        """The worst passages, worst first, each of another document."""
        return [entry[2] for entry in sorted(self._heap, key=lambda entry: -entry[0])]
