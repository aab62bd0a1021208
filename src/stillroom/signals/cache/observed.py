"""The observed codec: k ids exactly, and the probability of all others together. What an endpoint lists.

Legend: N positions, K entries per position.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from stillroom.core.errors import SignalError
from stillroom.signals.cache.codec import SignalCodec
from stillroom.signals.cache.columns import ColumnReader, id_width, pack_columns
from stillroom.signals.signal import CoarseSignal, SignalKind

LEAST_REST = 2.0**-24
"""What rounding may hide of the probability of all others: less than this is stored as it where ids are missing."""
FILLER = float("-inf")


class Observed(SignalCodec[CoarseSignal]):
    """Three columns: the rest (float32), the ids, and the log-probabilities (the upper 24 bits of a float32, rounded).

    A log-probability is known to 1/65,536 of its value. An entry of -inf fills a list that is shorter than k.
    """

    kind = SignalKind.COARSE

    def __init__(self, k: int, vocabulary_size: int) -> None:
        self.k = min(k, vocabulary_size)
        self.vocabulary_size = vocabulary_size
        self.width = id_width(vocabulary_size)

    def sample(self, probabilities: Iterable[torch.Tensor], random: np.random.Generator) -> CoarseSignal:  # noqa: ARG002
        """See :meth:`SignalCodec.sample`."""
        parts = [(torch.zeros(0, self.k), torch.zeros(0, self.k, dtype=torch.int64), torch.zeros(0))]
        for chunk in probabilities:
            best, ids = chunk.topk(self.k, dim=1)
            # Summed, not taken from one: that would lose a small mass to rounding.
            parts.append((best, ids, chunk.scatter(1, ids, 0.0).sum(1)))
        best, ids, rest = (torch.cat(column) for column in zip(*parts, strict=True))
        return CoarseSignal(ids, best.log(), rest)

    def observe(self, signal: CoarseSignal) -> CoarseSignal:
        """What is kept of a signal that a teacher listed: its k most probable ids; the others join the rest.

        Raises:
            SignalError: It contradicts itself.
        """
        fault = signal.fault(self.vocabulary_size)
        if fault is not None:
            raise SignalError(
                f"The teacher's signal contradicts itself: {fault}.", "Run `stillroom teacher probe` on the endpoint."
            )
        ids, logprobs, rest = signal.ids, signal.logprobs.float(), signal.rest.float()
        if logprobs.shape[1] < self.k:
            missing = self.k - logprobs.shape[1]
            logprobs = torch.nn.functional.pad(logprobs, (0, missing), value=FILLER)
            ids = torch.nn.functional.pad(ids, (0, missing))
        kept, order = logprobs.sort(dim=1, descending=True, stable=True)
        ids = ids.gather(1, order)
        rest = rest + kept[:, self.k :].exp().sum(1)
        kept, ids = kept[:, : self.k], ids[:, : self.k]
        short = (kept > FILLER).sum(1) < self.vocabulary_size
        rest = torch.where(short, rest.clamp_min(LEAST_REST), 0.0)
        return CoarseSignal(torch.where(kept > FILLER, ids, 0), kept, rest)

    def pack(self, sample: CoarseSignal) -> bytes:
        """See :meth:`SignalCodec.pack`."""
        bits = sample.logprobs.float().numpy().reshape(-1).view(np.uint32).astype(np.int64)
        return pack_columns(
            [
                (sample.rest.float().numpy().view(np.uint32), 4),
                (sample.ids.numpy().reshape(-1), self.width),
                ((bits + 0x80) >> 8, 3),
            ]
        )

    def decode(self, records: list[bytes], counts: list[int]) -> CoarseSignal:
        """See :meth:`SignalCodec.decode`."""
        all_ids, all_logprobs, all_rest = [], [], []
        for data, count in zip(records, counts, strict=True):
            reader = ColumnReader(data)
            all_rest.append(_floats(reader.column(count, 4)))
            all_ids.append(reader.column(count * self.k, self.width).reshape(count, self.k))
            all_logprobs.append(_floats(reader.column(count * self.k, 3) << 8).reshape(count, self.k))
        ids, logprobs, rest = (np.concatenate(column) for column in (all_ids, all_logprobs, all_rest))
        return CoarseSignal(torch.from_numpy(ids), torch.from_numpy(logprobs), torch.from_numpy(rest))


def _floats(bits: np.ndarray) -> np.ndarray:
    return bits.astype(np.uint32).view(np.float32)
