"""The threshold codec: unbiased sampling with a systematic tail.

Threshold sampling (Duffield, Lund & Thorup 2005; for gradients: Wangni et al. 2018, arXiv 1710.09854): with a threshold
tau, an id with p >= tau is kept with its value; one with p < tau is kept with probability p / tau and then stands for tau.
The expectation is p. The tail is drawn systematically: its probabilities are laid end to end, and every id on which one
of the points (u + j) tau falls, with one uniform u per position, is kept, so that the kept mass stays near one.

A value is rounded at random to one of the neighbouring multiples of tau / 2, so that its expectation is the value; a
rarer id's tau is level 2. One threshold serves all positions: the marginal price of variance in entries is tau² whatever the
distribution, so that unequal thresholds would cost more variance for the same entries.

Legend: N positions, V ids, B blocks of ids, K kept entries per position, E entries of all positions.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from stillroom.core.errors import CacheDamaged
from stillroom.signals.cache.bits import pack_bits, unpack_bits
from stillroom.signals.cache.codec import SignalCodec
from stillroom.signals.cache.entry_model import EntryModel, Numbers, classes_of, numbers_of, symbols_of, widths_of
from stillroom.signals.cache.rans import LANES, Decoder, encode
from stillroom.signals.signal import SignalKind, SparseSignal

LEVELS_OF_TAU = 2
"""Levels that make up tau."""
BLOCK = 64
"""Ids whose probabilities are summed together, so that the systematic draw walks through blocks first."""


@dataclass(frozen=True)
class Entries:
    """The drawn entries of a sequence.

    Attributes:
        counts: Entries of each position, all of the first draw, then all of the next, [draws · N].
        ids: [E].
        levels: Multiples of tau / 2, at least 1, [E].
    """

    counts: Numbers
    ids: Numbers
    levels: Numbers


class Threshold(SignalCodec[Entries]):
    """Threshold sampling; docs/cache-format.md describes the bytes.

    Args:
        tau: The threshold.
        vocabulary_size: V.
        draws: Independent draws of every position.
        head: Most probable ids that are kept with their value even below tau.
    """

    kind = SignalKind.SAMPLED

    def __init__(self, tau: float, vocabulary_size: int, draws: int = 1, head: int = 0) -> None:
        self.tau = tau
        self.draws = draws
        self.head = min(head, vocabulary_size)
        self.vocabulary_size = vocabulary_size
        self.model: EntryModel | None = None

    def sample(self, probabilities: Iterable[torch.Tensor], random: np.random.Generator) -> Entries:
        """See :meth:`SignalCodec.sample`."""
        drawn: list[list[tuple[Numbers, Numbers, Numbers]]] = [[] for _ in range(self.draws)]
        for chunk in probabilities:
            for draw in range(self.draws if len(chunk) else 0):
                drawn[draw].append(self._draw(chunk.clone() if draw < self.draws - 1 else chunk, random))
        none = (np.zeros(0, np.int64),) * 3
        parts = [none, *(part for one in drawn for part in one)]
        counts, ids, levels = (np.concatenate(column) for column in zip(*parts, strict=True))
        return Entries(counts, ids, levels)

    def learn(self, samples: list[Entries]) -> bytes:
        """See :meth:`SignalCodec.learn`."""
        most = math.ceil(1 / self.tau) + 2
        self.model = EntryModel.fit(
            np.concatenate([sample.counts for sample in samples]),
            np.concatenate([sample.ids for sample in samples]),
            np.concatenate([sample.levels for sample in samples]),
            self.vocabulary_size,
            (most + self.head, LEVELS_OF_TAU * most),
        )
        return self.model.dump()

    def recall(self, data: bytes) -> None:
        """See :meth:`SignalCodec.recall`."""
        try:
            self.model = EntryModel.load(data, self.vocabulary_size)
        except ValueError as error:
            raise CacheDamaged(f"The model of the cache is damaged: {error}.", "Capture again.") from None

    def pack(self, sample: Entries) -> bytes:
        """See :meth:`SignalCodec.pack`."""
        model = self._known()
        order, steps, buckets = model.arrange(sample.counts, sample.ids)
        entry_classes = np.repeat(classes_of(sample.counts), sample.counts)
        counts, count_bits, count_widths = symbols_of(sample.counts)
        levels, level_bits, level_widths = symbols_of(sample.levels[order])
        columns = [
            (model.counts, np.zeros(len(counts), np.int64), counts),
            (model.steps, entry_classes, steps),
            (model.levels, entry_classes, levels),
        ]
        states, words = encode(columns)
        inside = model.place(sample.ids[order])[1]
        loose = pack_bits(
            np.concatenate([count_bits, inside, level_bits]),
            np.concatenate([count_widths, model.widths(buckets), level_widths]),
        )
        return struct.pack("<I", len(words)) + states.astype("<u4").tobytes() + words.astype("<u2").tobytes() + loose

    def decode(self, records: list[bytes], counts: list[int]) -> SparseSignal:
        """See :meth:`SignalCodec.decode`."""
        model = self._known()
        try:
            entries = _unpack(model, records, [count * self.draws for count in counts])
        except (ValueError, IndexError, struct.error) as error:
            raise CacheDamaged(
                f"A signal of the cache cannot be read: {error}.", "Run `stillroom cache verify` on its folder."
            ) from None
        return self._signal(entries, counts)

    def _known(self) -> EntryModel:
        if self.model is None:
            raise CacheDamaged("The cache has signals and no model to read them by.", "Capture again.")
        return self.model

    def _signal(self, entries: list[Entries], counts: list[int]) -> SparseSignal:
        """Entries as one sparse signal: a position's draws are side by side."""
        # At least one, so that a position without an entry has a filler.
        wide = max([1, *(int(part.counts.max()) for part in entries if len(part.counts))])
        total = sum(counts)
        ids = np.zeros((total, self.draws, wide), dtype=np.int64)
        weights = np.zeros((total, self.draws, wide), dtype=np.float32)
        at = 0
        for part, count in zip(entries, counts, strict=True):
            row = np.repeat(np.arange(len(part.counts)), part.counts)
            column = np.arange(len(row)) - np.repeat(np.cumsum(part.counts) - part.counts, part.counts)
            draw, position = np.divmod(row, max(1, count))
            ids[at + position, draw, column] = part.ids
            weights[at + position, draw, column] = part.levels * (self.tau / LEVELS_OF_TAU / self.draws)
            at += count
        shape = (total, self.draws * wide)
        return SparseSignal(torch.from_numpy(ids.reshape(shape)), torch.from_numpy(weights.reshape(shape)))

    def _draw(self, probabilities: torch.Tensor, random: np.random.Generator) -> tuple[Numbers, Numbers, Numbers]:
        """One draw of N positions: counts, ids and levels. Overwrites its argument."""
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
        if self.head:
            best = probabilities.topk(self.head, dim=1).indices
            flat = torch.cat([head_rows * (blocks * BLOCK) + head_ids, _flat(best, blocks * BLOCK)])
            flat = torch.unique(flat)
            head_rows, head_ids = flat // (blocks * BLOCK), flat % (blocks * BLOCK)
        values = probabilities[head_rows, head_ids]
        probabilities[head_rows, head_ids] = 0.0
        levels = self.levels_of(values.numpy(), random)
        tail_rows, tail_ids = self.tail(by_block, torch.from_numpy(random.random(rows)))
        # A head entry below tau may be rounded to nothing.
        kept = levels > 0
        all_rows = np.concatenate([head_rows.numpy()[kept], tail_rows.numpy()])
        order = np.argsort(all_rows, kind="stable")
        all_ids = np.concatenate([head_ids.numpy()[kept], tail_ids.numpy()])
        all_levels = np.concatenate([levels[kept], np.full(len(tail_ids), LEVELS_OF_TAU, np.int64)])
        return np.bincount(all_rows, minlength=rows), all_ids[order], all_levels[order]

    def tail(self, by_block: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and ids on which the points (u + j) tau fall: on the line of block sums, then inside the block."""
        blocks = by_block.shape[1]
        ends = by_block.sum(2).to(torch.float64).cumsum(1)
        points_most = int((ends[:, -1].max() / self.tau).ceil()) + 1
        points = (
            (offsets[:, None] + torch.arange(points_most, dtype=torch.float64, device=ends.device)) * self.tau
        ).contiguous()
        found = torch.searchsorted(ends, points, right=True)
        rows, which = torch.nonzero(found < blocks, as_tuple=True)
        chosen = found[rows, which]
        before = torch.where(chosen > 0, ends[rows, (chosen - 1).clamp_min(0)], 0.0)
        inside = by_block[rows, chosen].to(torch.float64)
        rest = (points[rows, which] - before)[:, None]
        place = torch.searchsorted(inside.cumsum(1), rest, right=True).squeeze(1)
        # Rounding may put a point a hair behind the block's last id; that id is meant.
        last = BLOCK - 1 - torch.argmax((inside.flip(1) > 0).to(torch.uint8), dim=1)
        return rows, chosen * BLOCK + torch.minimum(place, last)

    def levels_of(self, values: np.ndarray, random: np.random.Generator) -> Numbers:
        """Levels of probabilities, rounded at random between neighbours so that the expectation is the value."""
        scaled = values.astype(np.float64) * (LEVELS_OF_TAU / self.tau)
        levels: Numbers = np.floor(scaled + random.random(len(values))).astype(np.int64)
        return levels


def _flat(ids: torch.Tensor, size: int) -> torch.Tensor:
    return (torch.arange(ids.shape[0])[:, None] * size + ids).reshape(-1)


def _unpack(model: EntryModel, records: list[bytes], rows: list[int]) -> list[Entries]:
    """The entries of records of so many rows each.

    Raises:
        ValueError, IndexError, struct.error: They are not what the format says.
    """
    states, words, loose = [], [], []
    for record in records:
        (length,) = struct.unpack_from("<I", record)
        begin, end = 4 + 4 * LANES, 4 + 4 * LANES + 2 * length
        states.append(np.frombuffer(record, "<u4", LANES, 4))
        words.append(np.frombuffer(record, "<u2", length, begin))
        loose.append(np.frombuffer(record, np.uint8, -1, end) if len(record) > end else np.zeros(0, np.uint8))
    decoder = Decoder(np.stack(states), words)
    counts = decoder.column(model.counts, [np.zeros(count, np.int64) for count in rows])
    if any(int((widths_of(part) > 0).sum()) for part in counts):
        # A large count leaves bits open, which are first among the loose ones.
        counts = [
            numbers_of(part, _first_bits(bits, widths_of(part))) for part, bits in zip(counts, loose, strict=True)
        ]
    classes = [np.repeat(classes_of(part), part) for part in counts]
    steps = decoder.column(model.steps, classes)
    levels = decoder.column(model.levels, classes)
    if not decoder.whole():
        raise ValueError("its code does not end where it should")
    found = []
    for count, step, level, bits in zip(counts, steps, levels, loose, strict=True):
        walked = np.cumsum(step)
        first = np.cumsum(count) - count
        before = np.concatenate([np.zeros(1, np.int64), walked])[first]
        buckets = walked - np.repeat(before, count)
        if len(buckets) and int(buckets.max()) >= 128:
            raise ValueError("a bucket is out of range")
        count_widths = widths_of(symbols_of(count)[0])
        widths = np.concatenate([count_widths, model.widths(buckets), widths_of(level)])
        values = unpack_bits(bits, widths)
        inside = values[len(count) : len(count) + len(buckets)]
        ids = model.ids(buckets, inside)
        numbers = numbers_of(level, values[len(count) + len(buckets) :])
        # By id, so that sums over entries are the same to the bit whatever model the cache has.
        order = np.argsort(np.repeat(np.arange(len(count)), count) * model.vocabulary_size + ids)
        found.append(Entries(count, ids[order], numbers[order]))
    return found


def _first_bits(data: np.ndarray, widths: Numbers) -> Numbers:
    return unpack_bits(data[: (int(widths.sum()) + 7) // 8], widths)
