"""What entries of sparse signals usually look like: the statistics that turn them into few bytes.

An entry is an id and a level. Ids that occur often form 127 buckets of 2^b ids each and of about equal mass; bucket 127 is
every other id. The entries of a position are sorted by bucket, so that only steps between buckets are stored: the order,
which says nothing, costs nothing. How large a step and a level are depends on how many entries the position has.

Legend: E entries, N positions, V ids, C classes of counts.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from stillroom.signals.cache.rans import FrequencyTable

BUCKETS = 128
REST = BUCKETS - 1
"""The bucket of ids that are not listed; an id of it is stored whole."""
SEEN_OFTEN = 2
"""Draws from which listing an id is repaid."""
CLASSES = np.asarray([*range(1, 25), 28, 32, 40, 48, 64, 96, 128, 192, 256, 512, 1024, 4096], dtype=np.int64)
"""A count n belongs to class c where c of these numbers are at most n."""
DIRECT = 128
"""Numbers below this are symbols themselves; a larger one is a symbol for its first five bits, and the rest as bits."""
MANTISSA = 4

Numbers = npt.NDArray[np.int64]


def symbols_of(numbers: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Symbols of numbers, with the values and widths of the bits that the symbols leave open."""
    exponent = np.frexp(np.maximum(numbers, 1).astype(np.float64))[1].astype(np.int64) - 1
    large = numbers >= DIRECT
    widths = np.where(large, exponent - MANTISSA, 0)
    symbols = np.where(large, DIRECT + ((exponent - 7) << MANTISSA) + (numbers >> widths) - (1 << MANTISSA), numbers)
    return symbols, numbers & ((1 << widths) - 1), widths


def widths_of(symbols: Numbers) -> Numbers:
    """Bits that symbols leave open."""
    return np.where(symbols >= DIRECT, ((symbols - DIRECT) >> MANTISSA) + 7 - MANTISSA, 0)


def numbers_of(symbols: Numbers, open_bits: Numbers) -> Numbers:
    """Numbers of symbols and the bits that they leave open."""
    base = (((symbols - DIRECT) & ((1 << MANTISSA) - 1)) + (1 << MANTISSA)) << widths_of(symbols)
    return np.where(symbols >= DIRECT, base + open_bits, symbols)


def alphabet_of(largest: int) -> int:
    """Symbols that numbers up to ``largest`` need."""
    return int(symbols_of(np.asarray([largest], dtype=np.int64))[0][0]) + 1


def classes_of(counts: Numbers) -> Numbers:
    """The class of each count."""
    return np.searchsorted(CLASSES, counts, side="right").astype(np.int64)


@dataclass(frozen=True, eq=False)
class EntryModel:
    """Statistics of entries.

    Attributes:
        listed: Ids in the order of their buckets.
        bucket_bits: b of each of the buckets 0 to 126, [127]; a bucket past the listed ids has none.
        counts: Of the symbol of a position's number of entries, [1, A].
        steps: Of the step from one entry's bucket to the next one's, [C, 128].
        levels: Of the symbol of a level, [C, A].
    """

    listed: Numbers
    bucket_bits: Numbers
    counts: FrequencyTable
    steps: FrequencyTable
    levels: FrequencyTable
    vocabulary_size: int

    def __post_init__(self) -> None:
        sizes = np.zeros(REST, dtype=np.int64)
        left = len(self.listed)
        for number, bits in enumerate(self.bucket_bits):
            sizes[number] = min(left, 1 << int(bits))
            left -= int(sizes[number])
        firsts = np.cumsum(sizes) - sizes
        bucket = np.full(self.vocabulary_size, REST, dtype=np.int64)
        inside = np.arange(self.vocabulary_size, dtype=np.int64)
        bucket[self.listed] = np.repeat(np.arange(REST), sizes)
        inside[self.listed] = np.arange(len(self.listed)) - np.repeat(firsts, sizes)
        widths = np.append(self.bucket_bits, max(1, (self.vocabulary_size - 1).bit_length()))
        for name, value in (
            ("bucket", bucket),
            ("inside", inside),
            ("widths", widths),
            ("firsts", np.append(firsts, 0)),
        ):
            object.__setattr__(self, f"_{name}", value)

    def place(self, ids: Numbers) -> tuple[Numbers, Numbers]:
        """Bucket of each id, and its number inside."""
        return self._bucket[ids], self._inside[ids]  # type: ignore[attr-defined]

    def widths(self, buckets: Numbers) -> Numbers:
        """Bits of a number inside each bucket."""
        return self._widths[buckets]  # type: ignore[attr-defined, no-any-return]

    def ids(self, buckets: Numbers, inside: Numbers) -> Numbers:
        """Ids by bucket and number inside.

        Raises:
            IndexError: There is no such id.
        """
        rest = buckets == REST
        listed = self._firsts[buckets] + inside  # type: ignore[attr-defined]
        ids = np.where(rest, inside, np.append(self.listed, 0)[np.where(rest, len(self.listed), listed)])
        if len(ids) and int(ids.max()) >= self.vocabulary_size:
            raise IndexError("an id is outside of the vocabulary")
        return ids

    @classmethod
    def fit(
        cls, counts: Numbers, ids: Numbers, levels: Numbers, vocabulary_size: int, most: tuple[int, int]
    ) -> EntryModel:
        """The model of drawn entries.

        Args:
            counts: Entries of each position, [N].
            ids: Of all entries, [E].
            levels: Of all entries, [E].
            vocabulary_size: V.
            most: The largest count and the largest level that can occur.
        """
        drawn = np.bincount(ids, minlength=vocabulary_size)
        listed, bits = _buckets(drawn)
        count_alphabet, level_alphabet = alphabet_of(most[0]), alphabet_of(most[1])
        contexts = len(CLASSES) + 1
        empty = cls(
            listed,
            bits,
            FrequencyTable.of_counts(
                _histogram(np.zeros(len(counts), np.int64), symbols_of(counts)[0], 1, count_alphabet)
            ),
            FrequencyTable.of_counts(np.zeros((contexts, BUCKETS), np.int64)),
            FrequencyTable.of_counts(np.zeros((contexts, level_alphabet), np.int64)),
            vocabulary_size,
        )
        entry_classes = np.repeat(classes_of(counts), counts)
        order, steps, _ = empty.arrange(counts, ids)
        return cls(
            listed,
            bits,
            empty.counts,
            FrequencyTable.of_counts(_histogram(entry_classes, steps, contexts, BUCKETS)),
            FrequencyTable.of_counts(_histogram(entry_classes, symbols_of(levels[order])[0], contexts, level_alphabet)),
            vocabulary_size,
        )

    def arrange(self, counts: Numbers, ids: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """Sort the entries of each position by bucket; returns the order, the steps and the buckets, each [E]."""
        bucket, inside = self.place(ids)
        position = np.repeat(np.arange(len(counts)), counts)
        order = np.lexsort((inside, bucket, position))
        bucket = bucket[order]
        steps = bucket.copy()
        steps[1:] -= np.where(position[1:] == position[:-1], bucket[:-1], 0)
        return order, steps, bucket

    def dump(self) -> bytes:
        """As a safetensors file, packed by Zstandard."""
        from safetensors.numpy import save

        tensors: dict[str, Any] = {
            # The bytes of equal significance together are what Zstandard shortens best.
            "listed": np.ascontiguousarray(self.listed.astype("<u4").view(np.uint8).reshape(-1, 4).T),
            "bucket_bits": self.bucket_bits.astype(np.uint8),
            "counts": self.counts.frequencies.astype(np.uint16),
            "steps": self.steps.frequencies.astype(np.uint16),
            "levels": self.levels.frequencies.astype(np.uint16),
        }
        return zstandard.ZstdCompressor(level=19).compress(save(tensors))

    @classmethod
    def load(cls, data: bytes, vocabulary_size: int) -> EntryModel:
        """What :meth:`dump` gave.

        Raises:
            ValueError: It is not that.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)) as stream:
                tensors = load(stream.read())
            counts, steps, levels = (
                FrequencyTable(tensors[name].astype(np.int64)) for name in ("counts", "steps", "levels")
            )
            listed = np.ascontiguousarray(tensors["listed"].T).view("<u4").reshape(-1).astype(np.int64)
            return cls(listed, tensors["bucket_bits"].astype(np.int64), counts, steps, levels, vocabulary_size)
        except (zstandard.ZstdError, SafetensorError, KeyError, IndexError) as error:
            raise ValueError(str(error)) from None


def _histogram(contexts: Numbers, symbols: Numbers, rows: int, alphabet: int) -> Numbers:
    return np.bincount(contexts * alphabet + symbols, minlength=rows * alphabet).reshape(rows, alphabet)


def _buckets(drawn: Numbers) -> tuple[Numbers, Numbers]:
    """Ids drawn often, most frequent first, and the bits of the buckets that they fall into."""
    order = np.lexsort((np.arange(len(drawn)), -drawn))
    order = order[: int((drawn >= SEEN_OFTEN).sum())]
    mass = np.concatenate([np.zeros(1, np.int64), np.cumsum(drawn[order])])
    bits = np.zeros(REST, dtype=np.int64)
    at = 0
    for bucket in range(REST):
        fair = (int(mass[-1]) - int(mass[min(at, len(order))])) / (REST - bucket)
        size = 1
        while at + 2 * size <= len(order) and mass[at + 2 * size] - mass[at] <= 1.2 * fair:
            size *= 2
        if bucket == REST - 1:
            while at + size < len(order):
                size *= 2
        bits[bucket] = size.bit_length() - 1
        # Inside a bucket the order says nothing; ascending ids are stored in fewer bytes.
        order[at : at + size] = np.sort(order[at : at + size])
        at = min(len(order), at + size)
    return order, bits
