"""The top-k codec: the most probable ids and the mass they miss. Biased: how that mass is spread is lost."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from stillroom.signals.cache.codec import SignalCodec
from stillroom.signals.cache.columns import ColumnReader, id_width, pack_columns
from stillroom.signals.signal import SignalKind, SparseSignal


class TopK(SignalCodec[bytes]):
    """k ids per position, most probable first, their probabilities as float16, and the missing mass as float16.

    The decoded weights are the probabilities themselves, not renormalised; the mass that they miss is the signal's ``rest``.
    A loss on it is a divergence of k + 1 events, the ids and "any other" (the ghost token of Anshumann et al. 2025,
    arXiv 2503.16870), so that the teacher as its own student has the loss 0. To put events together never raises a
    divergence: this one is at most that of the whole distributions.
    """

    kind = SignalKind.PARTIAL

    def __init__(self, k: int, vocabulary_size: int) -> None:
        self.k = min(k, vocabulary_size)
        self.whole = self.k == vocabulary_size
        """Whether every id is listed, so that what is missing is rounding."""
        self.width = id_width(vocabulary_size)

    def sample(self, probabilities: Iterable[torch.Tensor], random: np.random.Generator) -> bytes:  # noqa: ARG002
        """See :meth:`SignalCodec.sample`."""
        none = (torch.zeros(0, self.k), torch.zeros(0, self.k, dtype=torch.int64))
        parts = [none, *(tuple(chunk.topk(self.k, dim=1)) for chunk in probabilities)]
        best, ids = (torch.cat(column) for column in zip(*parts, strict=True))
        missing = (1.0 - best.sum(1)).clamp_min(0.0)
        return pack_columns(
            [
                (_half_bits(missing), 2),
                (ids.numpy().reshape(-1), self.width),
                (_half_bits(best.reshape(-1)), 2),
            ]
        )

    def pack(self, sample: bytes) -> bytes:
        """See :meth:`SignalCodec.pack`."""
        return sample

    def decode(self, records: list[bytes], counts: list[int]) -> SparseSignal:
        """See :meth:`SignalCodec.decode`."""
        all_ids, all_weights, all_missing = [], [], []
        for data, count in zip(records, counts, strict=True):
            reader = ColumnReader(data)
            all_missing.append(_from_half_bits(reader.column(count, 2)))
            all_ids.append(reader.column(count * self.k, self.width).reshape(count, self.k))
            all_weights.append(_from_half_bits(reader.column(count * self.k, 2)).reshape(count, self.k))
        ids, weights, missing = (np.concatenate(column) for column in (all_ids, all_weights, all_missing))
        rest = torch.from_numpy(missing)
        if self.whole:
            rest = torch.zeros_like(rest)
        return SparseSignal(torch.from_numpy(ids), torch.from_numpy(weights), unbiased=False, rest=rest)

    def missing_mass(self, data: bytes, count: int) -> torch.Tensor:
        """The mass that the k ids of each position miss, [N] float32."""
        return torch.from_numpy(_from_half_bits(ColumnReader(data).column(count, 2)))


def _half_bits(values: torch.Tensor) -> np.ndarray:
    bits: np.ndarray = values.to(torch.float16).numpy().view(np.uint16)
    return bits


def _from_half_bits(bits: np.ndarray) -> np.ndarray:
    return bits.astype(np.uint16).view(np.float16).astype(np.float32)
