"""The threshold codec: unbiased sampling with a systematic tail. Knows nothing of files.

Threshold sampling (Duffield, Lund & Thorup 2005; for gradients: Wangni et al. 2018, arXiv 1710.09854): with a threshold
tau, an id with p >= tau is kept with its value; one with p < tau is kept with probability p / tau and then stands for tau.
The expectation is p. The tail is drawn systematically: its probabilities are laid end to end, and every id on which one
of the points (u + j) tau falls, with one uniform u a position, is kept, so that the kept mass stays near one.

Legend: N positions, V ids, B blocks of ids, K kept entries a position.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from stillroom.errors import CacheDamaged
from stillroom.teacher.cache.codec import SignalCodec
from stillroom.teacher.cache.columns import ColumnReader, id_width, pack_columns
from stillroom.teacher.signal import SparseSignal

LEVELS = 64
"""Steps between tau and 1, evenly apart in the logarithm; a value is rounded to one of its neighbours at random so that
its expectation is the value."""
BLOCK = 64
"""Ids whose probabilities are summed together, so that the systematic draw walks through blocks first."""
CHUNK = 256
"""Positions that are encoded at the same time."""


class Threshold(SignalCodec):
    """Threshold sampling.

    Columns, in this order, for ``draws · N`` positions (all of the first draw, then all of the next):

    1. number of head entries (p >= tau), 1 byte (2 where tau is below 1/255);
    2. number of tail entries, as wide;
    3. the head entries' level (0 to 63), 1 byte;
    4. ids of the head entries, then 5. ids of the tail entries, as wide as the vocabulary asks for.

    Level l stands for ``tau ** (1 - l / 63)``.
    """

    def __init__(self, tau: float, vocabulary_size: int, draws: int = 1) -> None:
        self.tau = tau
        self.draws = draws
        self.vocabulary_size = vocabulary_size
        self.width = id_width(vocabulary_size)
        self.count_width = 1 if 1 / tau + 2 < 255 else 2 if 1 / tau + 2 < 65535 else 4
        self.levels = tau ** (1.0 - np.arange(LEVELS) / (LEVELS - 1))

    def encode(self, logprobs: torch.Tensor, random: np.random.Generator) -> bytes:
        """See :meth:`SignalCodec.encode`."""
        parts: list[tuple[np.ndarray, ...]] = []
        for _ in range(self.draws):
            for start in range(0, logprobs.shape[0], CHUNK):
                parts.append(self._draw(logprobs[start : start + CHUNK].exp(), random))
        columns = (
            [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.zeros(0, np.int64)] * 5
        )
        widths = (self.count_width, self.count_width, 1, self.width, self.width)
        return pack_columns(list(zip(columns, widths, strict=True)))

    def decode(self, data: bytes, count: int) -> SparseSignal:
        """See :meth:`SignalCodec.decode`."""
        reader = ColumnReader(data)
        rows = count * self.draws
        heads = reader.column(rows, self.count_width)
        tails = reader.column(rows, self.count_width)
        head_total, tail_total = int(heads.sum()), int(tails.sum())
        levels = reader.column(head_total, 1)
        head_ids = reader.column(head_total, self.width)
        tail_ids = reader.column(tail_total, self.width)
        if head_total and int(levels.max()) >= LEVELS:
            raise CacheDamaged(
                "A signal of the cache has an unknown level.", "Run `stillroom cache verify` on its folder."
            )
        wide = int((heads + tails).max()) if rows else 0
        ids: np.ndarray = np.zeros((rows, wide), dtype=np.int64)
        weights: np.ndarray = np.zeros((rows, wide), dtype=np.float32)
        column = np.arange(wide)[None, :]
        in_head = column < heads[:, None]
        in_tail = ~in_head & (column < (heads + tails)[:, None])
        ids[in_head], ids[in_tail] = head_ids, tail_ids
        weights[in_head], weights[in_tail] = self.levels[levels], self.tau
        if self.draws > 1:
            ids = ids.reshape(self.draws, count, wide).transpose(1, 0, 2).reshape(count, -1)
            weights = weights.reshape(self.draws, count, wide).transpose(1, 0, 2).reshape(count, -1) / self.draws
        return SparseSignal(torch.from_numpy(ids), torch.from_numpy(weights))

    def _draw(self, probabilities: torch.Tensor, random: np.random.Generator) -> tuple[np.ndarray, ...]:
        """One draw of N positions: counts of head and tail, levels, head ids, tail ids. Overwrites its argument."""
        rows, size = probabilities.shape
        blocks = math.ceil(size / BLOCK)
        if blocks * BLOCK != size:
            probabilities = torch.nn.functional.pad(probabilities, (0, blocks * BLOCK - size))
        by_block = probabilities.view(rows, blocks, BLOCK)
        # Head: only blocks that hold a large probability are looked into.
        row, block = torch.nonzero(by_block.amax(2) >= self.tau, as_tuple=True)
        inside = by_block[row, block]
        pick, offset = torch.nonzero(inside >= self.tau, as_tuple=True)
        head_rows, head_ids = row[pick], block[pick] * BLOCK + offset
        values = inside[pick, offset]
        probabilities[head_rows, head_ids] = 0.0
        # Tail: points (u + j) tau on the line of block sums, then inside the block that each falls into.
        ends = by_block.sum(2, dtype=torch.float64).cumsum(1)
        points_most = math.ceil(1.0 / self.tau) + 1
        offsets = torch.from_numpy(random.random(rows))
        points = (offsets[:, None] + torch.arange(points_most, dtype=torch.float64)) * self.tau
        points = points[:, : int((ends[:, -1].max() / self.tau).ceil()) + 1].contiguous()
        found = torch.searchsorted(ends, points, right=True)
        tail_rows, which = torch.nonzero(found < blocks, as_tuple=True)
        chosen = found[tail_rows, which]
        before = torch.where(chosen > 0, ends[tail_rows, (chosen - 1).clamp_min(0)], 0.0)
        within = by_block[tail_rows, chosen].to(torch.float64).cumsum(1)
        rest = (points[tail_rows, which] - before)[:, None]
        place = torch.searchsorted(within, rest, right=True).squeeze(1)
        # Rounding may put a point a hair behind the block's last id; that id is meant.
        last = BLOCK - 1 - torch.argmax((by_block[tail_rows, chosen].flip(1) > 0).to(torch.uint8), dim=1)
        tail_ids = chosen * BLOCK + torch.minimum(place, last)
        return (
            torch.bincount(head_rows, minlength=rows).numpy(),
            torch.bincount(tail_rows, minlength=rows).numpy(),
            self._levels_of(values.numpy(), random),
            head_ids.numpy(),
            tail_ids.numpy(),
        )

    def _levels_of(self, values: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Levels of probabilities, rounded at random between neighbours so that the expectation is the value."""
        values = values.astype(np.float64).clip(self.levels[0], self.levels[-1])
        upper = np.searchsorted(self.levels, values, side="left").clip(1, LEVELS - 1)
        low, high = self.levels[upper - 1], self.levels[upper]
        up = random.random(len(values)) < (values - low) / np.maximum(high - low, 1e-300)
        levels: np.ndarray = upper - 1 + up
        return levels
