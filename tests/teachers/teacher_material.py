"""Teachers for tests: a model that was never on a disk, and one that is a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stillroom.corpus.sequences import Sequences
from stillroom.models.load import LoadedTeacher
from stillroom.teachers.local import LocalTeacher
from stillroom.teachers.teacher import Capability, Vocabulary


def local_teacher(model: Any) -> LocalTeacher:
    """A local teacher around a model."""
    no_tokenizer: Any = None
    family = model.config.model_type
    return LocalTeacher(LoadedTeacher(model, no_tokenizer, "tiny", family, "0" * 64, "1" * 64, None, 0))


@dataclass(frozen=True)
class TableTeacher:
    """A teacher without weights: the next token's log-probs are a row of a table, chosen by the token before."""

    table: torch.Tensor
    capabilities: frozenset[Capability] = frozenset(("dense",))
    name: str = "table"
    licence: str | None = None
    dtype: str = "float32"

    @property
    def vocabulary(self) -> Vocabulary:
        no_tokenizer: Any = None
        return Vocabulary(self.table.shape[1], no_tokenizer)

    @property
    def identity(self) -> Mapping[str, str]:
        return {"teacher": "2" * 64, "tokenizer": "3" * 64}

    def record(self) -> dict[str, Any]:
        return {"name": self.name}

    def batch_tokens(self, length: int) -> int:
        return 2 * length

    def score(
        self, sequences: Sequences, indices: Sequence[int], temperature: float = 1.0
    ) -> Iterator[tuple[int, Iterator[torch.Tensor]]]:
        for index in indices:
            ids = sequences.ids[index][sequences.targets[index] >= 0]
            yield index, iter(torch.split(self.table[ids] / temperature, 7))
