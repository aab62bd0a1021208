"""Packed sequences read one at a time, so that memory does not grow with the text."""

from __future__ import annotations

from pathlib import Path

import torch

from stillroom.core.errors import CorpusError
from stillroom.corpus.sequences import Sequences


class HeldOut:
    """One split of a corpus on disk.

    Args:
        path: What :meth:`Sequences.save` wrote.

    Raises:
        CorpusError: The file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                self._shape: list[int] = file.get_slice("ids").get_shape()
                self.document_sources: torch.Tensor = file.get_tensor("document_sources")
        except (SafetensorError, FileNotFoundError) as error:
            raise CorpusError(f"{path}: cannot be read: {error}.", "Remove its folder and run again.") from None

    def __len__(self) -> int:
        return self._shape[0]

    @property
    def length(self) -> int:
        """Tokens a sequence."""
        return self._shape[1]

    @property
    def documents(self) -> int:
        """Documents of the split."""
        return self.document_sources.shape[0]

    def row(self, index: int) -> Sequences:
        """One sequence."""
        return self.rows(slice(index, index + 1))

    def rows(self, part: slice) -> Sequences:
        """Some sequences."""
        from safetensors import safe_open

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
        whole = self._sequences
        return Sequences(
            whole.ids[part],
            whole.segments[part],
            whole.loss_mask[part],
            whole.documents[part],
            whole.token_bytes[part],
            whole.document_sources,
        )
