"""A corpus on disk, format 2: six bytes per token, and rows, addresses and counts that are those of the corpus in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from stillroom.core.errors import CorpusError
from stillroom.corpus.columns import save_columns
from stillroom.corpus.cutting import Piece
from stillroom.corpus.mapped import MappedSequences, open_split
from stillroom.corpus.pieces import FORMAT, PieceFile, PieceList, Pieces
from stillroom.corpus.sequences import Sequences

LENGTH = 32


def some_pieces(folder: Path, cross: bool = False, count: int = 60) -> Pieces:
    random = np.random.default_rng(7)
    gathered = PieceList(LENGTH, 4, cross, folder=folder)
    for number in range(count):
        size = int(random.integers(2, LENGTH + 1))
        learned = random.random(size) < 0.8
        learned[-1] = True
        bytes_ = random.integers(0, 9, size).astype(np.int32)
        if number % 7 == 0:
            bytes_[size // 2] = 255 + number
        # Two documents of one content: their pieces have one address.
        ids = random.integers(0, 70_000, size) if number != 9 else np.arange(size)
        gathered.add([Piece(ids, learned, bytes_, min(number % 3, size - 1), number % 3 == 0)], number % 2)
    return gathered.finish()


def same(one: Sequences, other: Sequences) -> None:
    for name in ("ids", "segments", "loss_mask", "documents", "token_bytes", "document_sources", "repeated"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.by_piece == other.by_piece


@pytest.mark.parametrize("cross", [False, True])
def test_rows_on_disk_are_those_in_memory(tmp_path: Path, cross: bool) -> None:
    pieces = some_pieces(tmp_path, cross)
    pieces.save(tmp_path / "train.safetensors")
    whole, mapped = Sequences.load(tmp_path / "train.safetensors"), open_split(tmp_path / "train.safetensors")
    same(whole, Sequences.pack(pieces))
    assert isinstance(mapped, MappedSequences)
    assert (len(mapped), mapped.length, mapped.tokens) == (len(whole), whole.length, whole.tokens)
    assert mapped.row_tokens == whole.row_tokens
    assert mapped.addresses == whole.addresses
    assert pieces.row_targets == int((whole.targets >= 0).sum())
    same(mapped.part([3, 0]), whole.part([3, 0]))
    same(mapped.part(slice(2, 5), 10), whole.part(slice(2, 5), 10))
    same(mapped.take(4), whole.take(4))
    wanted = set(whole.digests[::3])
    assert mapped.only(wanted).digests == whole.only(wanted).digests
    assert torch.equal(mapped.only(wanted).take(99).ids, whole.only(wanted).ids)
    assert len(mapped.only(set())) == 0


def test_addresses_are_known_without_reading_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cross in (False, True):
        path = tmp_path / f"{cross}.safetensors"
        some_pieces(tmp_path, cross).save(path)
        whole = Sequences.load(path)
        few = MappedSequences(PieceFile(path)).only(set(whole.digests[::4]))
        expected = few.take(99).addresses
        with monkeypatch.context() as patch:
            patch.setattr(PieceFile, "_column", lambda *_: pytest.fail("the text was read"))
            assert MappedSequences(PieceFile(path)).addresses == whole.addresses
            assert few.addresses == expected
            assert few.only({few.digests[1]}).addresses == [expected[1]] if cross else True
    # A file of 0.2.0 before it had them: they are made of the text.
    columns = load_file(path)
    del columns["row_addresses"]
    about = {"version": 2, "length": LENGTH, "overlap": 4, "cross_documents": True}
    save_file(columns, path, metadata={FORMAT: json.dumps(about)})
    assert MappedSequences(PieceFile(path)).addresses == whole.addresses


def test_a_file_of_version_1_is_the_same(tmp_path: Path) -> None:
    pieces = some_pieces(tmp_path)
    about = {"version": 1, "length": LENGTH, "overlap": 4, "cross_documents": False}
    columns: dict[str, Any] = {
        "ids": pieces.ids.astype(np.uint32),
        "learned": pieces.learned.astype(np.uint8),
        "bytes": pieces.bytes.astype(np.int32),
        "offsets": pieces.offsets,
        "repeated": pieces.repeated,
        "begins": pieces.begins.astype(np.uint8),
        "documents": pieces.documents,
        "document_sources": pieces.document_sources,
    }
    save_file(columns, tmp_path / "old.safetensors", metadata={FORMAT: json.dumps(about)})
    pieces.save(tmp_path / "new.safetensors")
    old, new = PieceFile(tmp_path / "old.safetensors"), PieceFile(tmp_path / "new.safetensors")
    same(Sequences.load(tmp_path / "old.safetensors"), Sequences.load(tmp_path / "new.safetensors"))
    assert [old.address(index) for index in range(60)] == [new.address(index) for index in range(60)]
    assert old.targets.tolist() == new.targets.tolist() == pieces.targets.tolist()
    assert MappedSequences(old).addresses == MappedSequences(new).addresses
    old.read().save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "new.safetensors").read_bytes()


def test_six_bytes_a_token(tmp_path: Path) -> None:
    pieces = some_pieces(tmp_path, count=3000)
    pieces.save(tmp_path / "train.safetensors")
    many = int((pieces.bytes >= 255).sum())
    rows = len(pieces.layout)
    counted = 12 * many + 8 * (len(pieces) + 1) + (4 + 1 + 4 + 4 + 32 + 4) * len(pieces) + 8 * (rows + 1)
    sources = 4 * len(pieces.document_sources)
    assert (tmp_path / "train.safetensors").stat().st_size - 6 * len(pieces.ids) - counted - sources < 2048
    assert PieceFile(tmp_path / "train.safetensors").read().bytes.tolist() == pieces.bytes.tolist()


@pytest.mark.parametrize("column", ["row_pieces", "row_begins", "targets", "many_bytes"])
def test_counts_that_do_not_fit_are_refused(tmp_path: Path, column: str) -> None:
    some_pieces(tmp_path).save(tmp_path / "train.safetensors")
    columns = load_file(tmp_path / "train.safetensors")
    if column in ("row_pieces", "row_begins"):
        columns[column][1] = columns[column][0]
    else:
        columns[column] = columns[column][:-1]
    about = {"version": 2, "length": LENGTH, "overlap": 4, "cross_documents": False}
    save_file(columns, tmp_path / "train.safetensors", metadata={FORMAT: json.dumps(about)})
    with pytest.raises(CorpusError, match="its parts do not fit together"):
        open_split(tmp_path / "train.safetensors")


def test_a_column_of_another_size_than_it_says_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 3 numbers"):
        save_columns(tmp_path / "x", {"ids": (np.uint32, (4,), [np.zeros(3)])}, {})
    assert not (tmp_path / "x").exists()
