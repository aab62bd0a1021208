"""Batches of a split on disk are those of the split in memory, with and without room to remember rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stillroom.corpus.mapped import open_split
from stillroom.corpus.sequences import Sequences
from stillroom.signals import batches
from stillroom.signals.batches import BatchSource
from stillroom.signals.vocabulary_map import VocabularyMap
from tests.corpus.test_corpus_mapped import some_pieces


@pytest.mark.parametrize("room", [0, 96, 1 << 22])
@pytest.mark.parametrize("cross", [False, True])
def test_batches_of_a_split_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cross: bool, room: int) -> None:
    monkeypatch.setattr(batches, "REMEMBERED_TOKENS", room)
    some_pieces(tmp_path, cross).save(tmp_path / "train.safetensors")
    vocabulary = VocabularyMap.identity(70_000)
    memory = BatchSource(Sequences.load(tmp_path / "train.safetensors"), vocabulary, None)
    disk = BatchSource(open_split(tmp_path / "train.safetensors"), vocabulary, None)
    assert len(disk) == len(memory)
    assert disk.targets == memory.targets
    for indices in ([2, 0], [5], []):
        one, other = memory.batch(indices), disk.batch(indices)
        for name in ("ids", "positions", "rows", "targets"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    assert len(disk._remembered) <= room // disk.sequences.length
