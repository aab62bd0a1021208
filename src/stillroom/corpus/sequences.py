"""Packed token sequences of one split, as every later stage reads them.

Legend: S sequences, L tokens a sequence, D documents.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from stillroom.core import files
from stillroom.core.errors import CorpusError

IGNORED = -100


@dataclass(frozen=True)
class Sequences:
    """One split of a corpus.

    Attributes:
        ids: Token ids, [S, L] int64; padding holds 0.
        segments: Number of the document piece inside its sequence, [S, L] int32; -1 is padding. Attention and targets
            stay inside a segment.
        loss_mask: Whether a token is to be learned, [S, L] bool. It speaks of the token as a target: the assistant's
            words of a chat, every token of plain text.
        documents: Index of the document that a token belongs to, [S, L] int32; -1 is padding.
        token_bytes: UTF-8 bytes of text that a token stands for, [S, L] int32; 0 for special tokens.
        document_sources: Index of the source of each document, [D] int32.
    """

    ids: torch.Tensor
    segments: torch.Tensor
    loss_mask: torch.Tensor
    documents: torch.Tensor
    token_bytes: torch.Tensor
    document_sources: torch.Tensor

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def length(self) -> int:
        """Tokens a sequence."""
        return self.ids.shape[1]

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return int((self.segments >= 0).sum())

    @functools.cached_property
    def positions(self) -> torch.Tensor:
        """Position of each token inside its segment, [S, L] int64: 0, 1, 2, … from each segment's start."""
        index = torch.arange(self.length).expand_as(self.ids)
        begins = torch.ones_like(self.segments, dtype=torch.bool)
        begins[:, 1:] = self.segments[:, 1:] != self.segments[:, :-1]
        return index - torch.where(begins, index, 0).cummax(dim=1).values

    @functools.cached_property
    def targets(self) -> torch.Tensor:
        """The id that each position predicts, [S, L] int64; IGNORED where there is none or it is not to be learned."""
        targets = torch.full_like(self.ids, IGNORED)
        same = (self.segments[:, 1:] == self.segments[:, :-1]) & (self.segments[:, 1:] >= 0) & self.loss_mask[:, 1:]
        targets[:, :-1] = torch.where(same, self.ids[:, 1:], IGNORED)
        return targets

    @functools.cached_property
    def target_bytes(self) -> torch.Tensor:
        """UTF-8 bytes of each position's target, [S, L] int64; 0 where there is none."""
        bytes_ = torch.zeros_like(self.ids)
        bytes_[:, :-1] = self.token_bytes[:, 1:].to(torch.int64)
        return torch.where(self.targets == IGNORED, 0, bytes_)

    @functools.cached_property
    def digests(self) -> list[str]:
        """SHA-256 of each sequence's ids, segments and loss mask: what its stored signal depends on; its address."""
        ids = self.ids.to(torch.int64).contiguous().numpy()
        segments = self.segments.to(torch.int32).contiguous().numpy()
        masks = self.loss_mask.to(torch.uint8).contiguous().numpy()
        rows = zip(ids, segments, masks, strict=True)
        return [hashlib.sha256(a.tobytes() + b.tobytes() + c.tobytes()).hexdigest() for a, b, c in rows]

    def take(self, count: int) -> Sequences:
        """The first ``count`` sequences."""
        return Sequences(
            self.ids[:count],
            self.segments[:count],
            self.loss_mask[:count],
            self.documents[:count],
            self.token_bytes[:count],
            self.document_sources,
        )

    def save(self, path: Path) -> None:
        """Write as safetensors, atomically."""
        from safetensors.torch import save_file

        with files.replacing(path) as beside:
            save_file(
                {
                    "ids": self.ids.to(torch.int64).contiguous(),
                    "segments": self.segments.to(torch.int32).contiguous(),
                    "loss_mask": self.loss_mask.to(torch.uint8).contiguous(),
                    "documents": self.documents.to(torch.int32).contiguous(),
                    "token_bytes": self.token_bytes.to(torch.int32).contiguous(),
                    "document_sources": self.document_sources.to(torch.int32).contiguous(),
                },
                beside,
            )

    @classmethod
    def load(cls, path: Path) -> Sequences:
        """Read what :meth:`save` wrote.

        Raises:
            CorpusError: The file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(path)
            return cls(
                tensors["ids"],
                tensors["segments"],
                tensors["loss_mask"].bool(),
                tensors["documents"],
                tensors["token_bytes"],
                tensors["document_sources"],
            )
        except (SafetensorError, KeyError, FileNotFoundError) as error:
            raise CorpusError(f"{path}: cannot be read: {error}.", "Remove its folder and run again.") from None
