"""Packed sequences read one at a time, so that memory does not grow with the text."""

from __future__ import annotations

from pathlib import Path

import torch

from stillroom.core.errors import CorpusError
from stillroom.corpus.pieces import PieceFile
from stillroom.corpus.sequences import Sequences


class HeldOut:
    """One split of a corpus on disk.

    Args:
        path: A split of a corpus: pieces, or the rows of release 0.1.0.

    Raises:
        CorpusError: The file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        from safetensors import SafetensorError, safe_open

        self._pieces: PieceFile | None = None
        self._layout: list[list[int]] = []
        if PieceFile.is_one(path):
            self._pieces = PieceFile(path)
            self._layout = self._pieces.layout.rows()
            self._shape = [len(self._layout), self._pieces.length]
            self.document_sources = torch.tensor(self._pieces.document_sources)
            return
        try:
            with safe_open(path, "pt") as file:
                self._shape = file.get_slice("ids").get_shape()
                self.document_sources = file.get_tensor("document_sources")
        except (SafetensorError, FileNotFoundError) as error:
            raise CorpusError(f"{path}: cannot be read: {error}.", "Remove its folder and run again.") from None

    def __len__(self) -> int:
        return self._shape[0]

    @property
    def length(self) -> int:
        """Most tokens per sequence."""
        return self._shape[1]

    @property
    def documents(self) -> int:
        """Documents of the split."""
        return self.document_sources.shape[0]

    def row(self, index: int) -> Sequences:
        """One sequence, without the padding behind it."""
        row = self.rows(slice(index, index + 1))
        return row.part(slice(None), row.width)

    def rows(self, part: slice) -> Sequences:
        """Some sequences."""
        from safetensors import safe_open

        if self._pieces is not None:
            layout = self._layout[part]
            chosen = [index for row in layout for index in row]
            numbers = iter(range(len(chosen)))
            return Sequences.pack(self._pieces.read(chosen), [[next(numbers) for _ in row] for row in layout])
        with safe_open(self.path, "pt") as file:
            ids, segments, mask, documents, bytes_ = (
                file.get_slice(key)[part] for key in ("ids", "segments", "loss_mask", "documents", "token_bytes")
            )
        return Sequences(ids, segments, mask.bool(), documents, bytes_, self.document_sources)


class InMemory(HeldOut):
    """Sequences that were made on the spot, behind the same face."""

    def __init__(self, sequences: Sequences) -> None:
        self._sequences = sequences
        self._shape = list(sequences.ids.shape)
        self.document_sources = sequences.document_sources

    def rows(self, part: slice) -> Sequences:
        """Some sequences."""
        return self._sequences.part(part)
