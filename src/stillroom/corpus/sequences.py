"""Packed token sequences of one split, as every later stage reads them: rows of pieces.

Legend: S sequences, L tokens per sequence, D documents.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stillroom.core import files
from stillroom.core.errors import CorpusError
from stillroom.corpus.pieces import PieceFile, Pieces, piece_address

IGNORED = -100


@dataclass(frozen=True)
class Sequences:
    """One split of a corpus.

    Attributes:
        ids: Token ids, [S, L] int64; padding holds 0.
        segments: Number of the piece inside its sequence, [S, L] int32; -1 is padding, at the end. Attention and targets
            stay inside a segment.
        loss_mask: Whether a token is to be learned, [S, L] bool. It is about the token as a target: the assistant's
            words of a chat, every token of plain text.
        documents: Index of the document that a token belongs to, [S, L] int32; -1 is padding.
        token_bytes: UTF-8 bytes of text that a token stands for, [S, L] int32; 0 for special tokens.
        document_sources: Index of the source of each document, [D] int32.
        repeated: Whether a token is only repeated from its document's piece before, [S, L] bool; None where none is.
        by_piece: Whether each segment has an address of its own; otherwise each sequence has one.
    """

    ids: torch.Tensor
    segments: torch.Tensor
    loss_mask: torch.Tensor
    documents: torch.Tensor
    token_bytes: torch.Tensor
    document_sources: torch.Tensor
    repeated: torch.Tensor | None = None
    by_piece: bool = False

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def length(self) -> int:
        """Tokens per sequence."""
        return self.ids.shape[1]

    @property
    def tokens(self) -> int:
        """Tokens of text: without padding and without what is repeated."""
        return int(self.own.sum())

    @property
    def own(self) -> torch.Tensor:
        """Where tokens of text are, [S, L] bool: no padding, and nothing that is repeated."""
        return self.segments >= 0 if self.repeated is None else (self.segments >= 0) & ~self.repeated

    @property
    def row_tokens(self) -> list[int]:
        """Tokens of each sequence without padding."""
        found: list[int] = (self.segments >= 0).sum(dim=1).tolist()
        return found

    @property
    def width(self) -> int:
        """Tokens of the longest sequence without padding, at least 1: what a forward pass has to see."""
        return max(1, int((self.segments >= 0).any(dim=0).sum()))

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
    def addresses(self) -> list[list[str]]:
        """The addresses of each sequence's signal, in the order of its targets.

        With ``by_piece`` they are those of its pieces (:func:`stillroom.corpus.pieces.piece_address`). Otherwise it is one:
        SHA-256 of the sequence's ids (int64), segments (int32) and loss mask (uint8).
        """
        ids = self.ids.to(torch.int64).contiguous().numpy()
        segments = self.segments.to(torch.int32).contiguous().numpy()
        masks = self.loss_mask.to(torch.uint8).contiguous().numpy()
        rows = zip(ids, segments, masks, strict=True)
        if not self.by_piece:
            return [[hashlib.sha256(a.tobytes() + b.tobytes() + c.tobytes()).hexdigest()] for a, b, c in rows]
        return [[piece_address(a[begin:end], c[begin:end]) for begin, end in _bounds(b)] for a, b, c in rows]

    def addresses_of(self, index: int) -> list[str]:
        """The addresses of one sequence's signal."""
        return self.addresses[index]

    @property
    def digests(self) -> list[str]:
        """The addresses of all sequences, one after the other."""
        return [address for row in self.addresses for address in row]

    @functools.cached_property
    def counts(self) -> list[list[int]]:
        """Targets behind each of :attr:`addresses`."""
        targets = (self.targets != IGNORED).numpy()
        if not self.by_piece:
            return [[int(row.sum())] for row in targets]
        segments = self.segments.numpy()
        return [
            [int(row[begin:end].sum()) for begin, end in _bounds(numbers)]
            for row, numbers in zip(targets, segments, strict=True)
        ]

    def piece_sources(self) -> dict[str, int]:
        """The index of the source of each piece, by its address; of pieces with the same content, the first one's.

        It needs ``by_piece``.
        """
        assert self.by_piece
        found: dict[str, int] = {}
        sources = self.document_sources.tolist()
        for row, numbers, documents in zip(self.addresses, self.segments.numpy(), self.documents.tolist(), strict=True):
            for address, (begin, _) in zip(row, _bounds(numbers), strict=True):
                found.setdefault(address, sources[documents[begin]])
        return found

    def take(self, count: int) -> Sequences:
        """The first ``count`` sequences."""
        return self.part(slice(count))

    def part(self, chosen: slice | list[int], width: int | None = None) -> Sequences:
        """Some sequences; with ``width`` only their first tokens."""
        return Sequences(
            self.ids[chosen, :width],
            self.segments[chosen, :width],
            self.loss_mask[chosen, :width],
            self.documents[chosen, :width],
            self.token_bytes[chosen, :width],
            self.document_sources,
            None if self.repeated is None else self.repeated[chosen, :width],
            self.by_piece,
        )

    def only(self, wanted: set[str]) -> Sequences:
        """What has these addresses, each once: pieces are packed anew, and sequences with one address stay as they are."""
        left = set(wanted)
        if not self.by_piece:
            rows = []
            for index, (address,) in enumerate(self.addresses):
                if address in left:
                    left.remove(address)
                    rows.append(index)
            return self.part(rows)
        places = []
        for index, (row, numbers) in enumerate(zip(self.addresses, self.segments.numpy(), strict=True)):
            for address, (begin, end) in zip(row, _bounds(numbers), strict=True):
                if address in left:
                    left.remove(address)
                    places.append((index, begin, end))

        def joined(column: torch.Tensor) -> np.ndarray:
            parts = [column[index, begin:end] for index, begin, end in places]
            return torch.cat(parts).numpy() if parts else np.zeros(0, np.int64)

        repeated = torch.zeros_like(self.loss_mask) if self.repeated is None else self.repeated
        found = Pieces(
            joined(self.ids),
            joined(self.loss_mask),
            joined(self.token_bytes),
            np.concatenate([[0], np.cumsum([end - begin for _, begin, end in places], dtype=np.int64)]).astype(
                np.int64
            ),
            np.asarray([int(repeated[index, begin:end].sum()) for index, begin, end in places], dtype=np.int32),
            np.zeros(len(places), dtype=bool),
            np.asarray([int(self.documents[index, begin]) for index, begin, _ in places], dtype=np.int32),
            self.document_sources.numpy(),
            self.length,
            0,
        )
        return self.pack(found)

    @classmethod
    def pack(cls, pieces: Pieces, rows: list[list[int]] | None = None) -> Sequences:
        """Rows of pieces.

        Args:
            pieces: The pieces of a split.
            rows: Indices of the pieces of each row; None packs all of them by best fit.
        """
        rows = pieces.layout.rows() if rows is None else rows
        shape = (len(rows), pieces.length)
        ids, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
        segments, documents = torch.full(shape, -1, dtype=torch.int32), torch.full(shape, -1, dtype=torch.int32)
        bytes_, repeated = torch.zeros(shape, dtype=torch.int32), torch.zeros(shape, dtype=torch.bool)
        for number, row in enumerate(rows):
            end = 0
            for segment, index in enumerate(row):
                there = slice(int(pieces.offsets[index]), int(pieces.offsets[index + 1]))
                begin, end = end, end + there.stop - there.start
                ids[number, begin:end] = torch.from_numpy(pieces.ids[there].astype(np.int64))
                mask[number, begin:end] = torch.from_numpy(np.array(pieces.learned[there]))
                bytes_[number, begin:end] = torch.from_numpy(np.array(pieces.bytes[there]))
                segments[number, begin:end] = 0 if pieces.cross_documents else segment
                documents[number, begin:end] = int(pieces.documents[index])
                repeated[number, begin : begin + int(pieces.repeated[index])] = True
        sources = torch.from_numpy(np.array(pieces.document_sources, dtype=np.int32))
        return cls(ids, segments, mask, documents, bytes_, sources, repeated, by_piece=not pieces.cross_documents)

    def save(self, path: Path) -> None:
        """Write the rows as they are, as release 0.1.0 did, as safetensors, atomically.

        Addresses of pieces and what is repeated are not kept: a corpus is stored as :class:`stillroom.corpus.pieces.Pieces`.
        """
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
        """Read a split: pieces, which are packed now, or the rows of release 0.1.0.

        Raises:
            CorpusError: The file is missing or damaged.
        """
        if PieceFile.is_one(path):
            file = PieceFile(path)
            return cls.pack(file.read(), file.layout.rows())
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


def _bounds(segments: np.ndarray) -> list[tuple[int, int]]:
    """Where each segment of a row begins and ends; padding is none."""
    used = int((segments >= 0).sum())
    begins = [0, *(np.flatnonzero(np.diff(segments[:used])) + 1).tolist()] if used else []
    return list(zip(begins, [*begins[1:], used], strict=True))


def targets_without_context(sequences: Sequences) -> int:
    """Targets of a corpus of release 0.1.0 whose sequence does not hold their document's beginning.

    Such a document goes on from sequence to sequence; what is in a later one than it began in has lost its beginning. (Of a
    corpus of pieces, :attr:`stillroom.corpus.pieces.Pieces.targets_without_context` says it.)
    """
    documents = sequences.documents.numpy()
    found = 0
    began: dict[int, int] = {}
    targets = (sequences.targets != IGNORED).numpy()
    for number, row in enumerate(documents):
        own = row[row >= 0]
        for document in np.unique(own).tolist():
            began.setdefault(document, number)
        owner = row[1:][targets[number, :-1]]
        found += sum(
            int((owner == document).sum()) for document in np.unique(owner).tolist() if began[document] < number
        )
    return found
