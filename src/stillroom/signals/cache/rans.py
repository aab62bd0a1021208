"""An entropy coder for columns of small symbols: rANS over interleaved lanes, in integers only.

Range asymmetric numeral systems (Duda 2013, arXiv 1311.2540), interleaved (Giesen 2014, arXiv 1402.3392) so that numpy
steps all lanes of all records at once. A state is in [2^16, 2^32) and is refilled by one 16-bit word. Integers
make the bytes the same on every machine, and the layout short enough to be written down (docs/cache-format.md), which a
library's floating-point models would not be.

Legend: R records, L lanes, C contexts, A symbols of an alphabet, T steps of a column.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LANES = 32
PRECISION = 14
"""Bits of a frequency: those of a context sum to 2^14."""
TOTAL = 1 << PRECISION
LOWEST = 1 << 16
"""The least state, and every lane's state before the first symbol is encoded: after the last one is decoded it is back."""

Numbers = npt.NDArray[np.int64]


class FrequencyTable:
    """How often each symbol follows in each context.

    Args:
        frequencies: [C, A], each at least 1, each row summing to 2^14.

    Raises:
        ValueError: They are not.
    """

    def __init__(self, frequencies: Numbers) -> None:
        self.frequencies = frequencies.astype(np.int64)
        contexts, symbols = self.frequencies.shape
        if (self.frequencies < 1).any() or (self.frequencies.sum(axis=1) != TOTAL).any():
            raise ValueError("frequencies must be positive and sum to 2^14 in every context")
        # One more context, of a symbol that is certain: coding it changes no state. It fills the last step of a column.
        self.idle = contexts
        padded = np.zeros((contexts + 1, symbols), dtype=np.int64)
        padded[:contexts] = self.frequencies
        padded[contexts, 0] = TOTAL
        starts = np.cumsum(padded, axis=1) - padded
        self._frequency, self._start = padded.astype(np.uint64), starts.astype(np.uint64)
        symbol = np.repeat(np.tile(np.arange(symbols), contexts + 1), padded.reshape(-1))
        row = np.repeat(np.arange(contexts + 1), TOTAL)
        # By context and the low bits of a state: what a decoder has to know.
        self._symbol_at = symbol.astype(np.uint16)
        self._frequency_at = padded[row, symbol].astype(np.uint32)
        self._offset_at = (np.arange(symbol.shape[0]) % TOTAL - starts[row, symbol]).astype(np.uint32)

    @classmethod
    def of_counts(cls, counts: Numbers) -> FrequencyTable:
        """The table of counted symbols [C, A]: a rare context leans on all contexts together."""
        pooled = counts.sum(axis=0)
        blended = 64 * counts + 64 * 32 * pooled // max(1, int(pooled.sum()))
        totals = blended.sum(axis=1, keepdims=True)
        symbols = counts.shape[1]
        frequencies = 1 + blended * (TOTAL - symbols) // np.maximum(1, totals)
        frequencies[np.arange(len(counts)), frequencies.argmax(axis=1)] += TOTAL - frequencies.sum(axis=1)
        return cls(frequencies)

    def interval(self, contexts: Numbers, symbols: Numbers) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        """Frequencies and starts of symbols in their contexts."""
        return self._frequency[contexts, symbols], self._start[contexts, symbols]


def steps_of(count: int) -> int:
    """Steps of a column of ``count`` symbols."""
    return -(-count // LANES)


def encode(
    columns: list[tuple[FrequencyTable, Numbers, Numbers]],
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint16]]:
    """Encode columns, each given as table, contexts and symbols.

    Symbol i of a column belongs to lane i mod L; every column begins with lane 0.

    Returns:
        The states [L] that decoding begins with, and the words in the order in which it reads them.
    """
    frequencies, starts = [], []
    for table, contexts, symbols in columns:
        rows = steps_of(len(symbols))
        context = np.full(rows * LANES, table.idle)
        symbol = np.zeros(rows * LANES, dtype=np.int64)
        context[: len(contexts)], symbol[: len(symbols)] = contexts, symbols
        frequency, start = table.interval(context, symbol)
        frequencies.append(frequency.reshape(rows, LANES))
        starts.append(start.reshape(rows, LANES))
    state = np.full(LANES, LOWEST, dtype=np.uint64)
    words: list[npt.NDArray[np.uint16]] = []
    all_frequencies, all_starts = np.concatenate(frequencies), np.concatenate(starts)
    limits = all_frequencies << np.uint64(32 - PRECISION)
    for step in range(len(limits) - 1, -1, -1):
        frequency = all_frequencies[step]
        full = state >= limits[step]
        if full.any():
            words.append(state[full].astype(np.uint16))
            state[full] >>= np.uint64(16)
        quotient = state // frequency
        state = (quotient << np.uint64(PRECISION)) + (state - quotient * frequency) + all_starts[step]
    stream = np.concatenate(words[::-1]) if words else np.zeros(0, np.uint16)
    return state.astype(np.uint32), stream


class Decoder:
    """Decodes the columns of R records side by side, in the order in which they were encoded.

    Args:
        states: [R, L].
        words: The words of each record.
    """

    def __init__(self, states: npt.NDArray[np.uint32], words: list[npt.NDArray[np.uint16]]) -> None:
        self._state = states.astype(np.uint64)
        lengths = np.asarray([len(part) for part in words], dtype=np.int64)
        # One word more, so that a damaged record that asks for too many is found at the end and not by a crash.
        self._words = np.concatenate([*words, np.zeros(1, np.uint16)]).astype(np.uint64)
        self._ends = np.cumsum(lengths)
        self._next = self._ends - lengths

    def column(self, table: FrequencyTable, contexts: list[Numbers]) -> list[Numbers]:
        """The symbols of one column of each record, given their contexts."""
        rows = max((steps_of(len(part)) for part in contexts), default=0)
        context = np.full((len(contexts), rows * LANES), table.idle)
        for record, part in enumerate(contexts):
            context[record, : len(part)] = part
        base = (context.reshape(len(contexts), rows, LANES) * TOTAL).transpose(1, 0, 2)
        places = np.empty(base.shape, dtype=np.int64)
        state, last = self._state, len(self._words) - 1
        low, precision, word = np.uint64(TOTAL - 1), np.uint64(PRECISION), np.uint64(16)
        for step in range(rows):
            place = base[step] + (state & low).astype(np.int64)
            places[step] = place
            state = table._frequency_at[place] * (state >> precision) + table._offset_at[place]
            empty = state < LOWEST
            if empty.any():
                rank = empty.cumsum(axis=1)
                index = np.minimum(self._next[:, None] + rank - 1, last)
                state = np.where(empty, (state << word) | self._words[index], state)
                self._next = self._next + rank[:, -1]
        self._state = state
        symbols = table._symbol_at[places].transpose(1, 0, 2).reshape(len(contexts), -1)
        return [symbols[record, : len(part)].astype(np.int64) for record, part in enumerate(contexts)]

    def whole(self) -> bool:
        """Whether every record ended where it should: all words read, every lane back at the least state."""
        return bool((self._state == LOWEST).all() and (self._next == self._ends).all())
