"""Numbers and sizes for people: two digits that count."""

from __future__ import annotations

import math


def short(value: float) -> str:
    """A number to two digits that count: ``12,000``, ``1.2``, ``0.0012``."""
    if value == 0:
        return "0"
    digits = 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)
    return f"{rounded:,.{max(0, digits)}f}"


def in_words(count: float) -> str:
    """Bytes in decimal units, to two digits that count: ``1.2 GB``."""
    for unit, word in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{short(count / unit)} {word}"
    return f"{short(count / 1e3)} kB"
