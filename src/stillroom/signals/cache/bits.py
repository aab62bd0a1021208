"""Integers of stated widths as a string of bits, and back.

Bits of a number go from the least significant up, and fill each byte from its least significant bit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]


def pack_bits(values: Numbers, widths: Numbers) -> bytes:
    """The low ``widths`` bits of each value, one after the other."""
    return np.packbits(
        ((np.repeat(values, widths) >> _within(widths)) & 1).astype(np.uint8), bitorder="little"
    ).tobytes()


def unpack_bits(data: npt.NDArray[np.uint8], widths: Numbers) -> Numbers:
    """Values of the given widths.

    Raises:
        ValueError: The data has another length.
    """
    total = int(widths.sum())
    if len(data) != (total + 7) // 8:
        raise ValueError(f"{len(data)} bytes are not {total} bits")
    bits = np.unpackbits(data, count=total, bitorder="little").astype(np.int64) << _within(widths)
    sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(bits)])
    ends = np.cumsum(widths)
    values: Numbers = sums[ends] - sums[ends - widths]
    return values


def _within(widths: Numbers) -> Numbers:
    """The index of every bit inside its number."""
    ends = np.cumsum(widths)
    total = int(ends[-1]) if len(ends) else 0
    index: Numbers = np.arange(total) - np.repeat(ends - widths, widths)
    return index
