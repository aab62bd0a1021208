"""Grammars of numbers within limits.

Every numeral stands for a number of at most fifteen digits, so that it means the same to every reader.
"""

from __future__ import annotations

import math

LARGEST = 10**15 - 1


def integers(bounds: dict[str, float]) -> str | None:
    """An expression for the whole numbers within limits; None where there is none.

    Args:
        bounds: ``minimum``, ``maximum``, ``exclusiveMinimum``, ``exclusiveMaximum``; all optional.
    """
    low, high = _whole_limits(bounds)
    parts = []
    if low < 0 and high >= low:
        parts.append(f'"-" {_group(_range(max(1, -min(high, -1)), -low))}')
    if high >= 0 and high >= low:
        parts.append(_group(_range(max(0, low), high)))
    return " | ".join(parts) if parts and low <= high else None


def numbers(bounds: dict[str, float]) -> str | None:
    """An expression for numbers within limits: whole ones, and those with up to six digits after the point."""
    whole = integers(bounds)
    parts = [whole] if whole else []
    fraction = '"." [0-9]{0,5} [1-9]'
    low, high = _limits(bounds)
    # A numeral a.f with f > 0 lies strictly between a and a + 1; -a.f strictly between -a - 1 and -a.
    least, most = max(0, math.ceil(low)), min(LARGEST, math.floor(high) - 1)
    if least <= most:
        parts.append(f"{_group(_range(least, most))} {fraction}")
    least, most = max(0, math.ceil(-high)), min(LARGEST, math.floor(-low) - 1)
    if least <= most:
        parts.append(f'"-" {_group(_range(least, most))} {fraction}')
    return " | ".join(parts) or None


def _limits(bounds: dict[str, float]) -> tuple[float, float]:
    low = max(bounds.get("minimum", -LARGEST), bounds.get("exclusiveMinimum", -LARGEST), -LARGEST)
    high = min(bounds.get("maximum", LARGEST), bounds.get("exclusiveMaximum", LARGEST), LARGEST)
    return low, high


def _whole_limits(bounds: dict[str, float]) -> tuple[int, int]:
    low = max(math.ceil(bounds.get("minimum", -LARGEST)), math.floor(bounds.get("exclusiveMinimum", -LARGEST - 1)) + 1)
    high = min(math.floor(bounds.get("maximum", LARGEST)), math.ceil(bounds.get("exclusiveMaximum", LARGEST + 1)) - 1)
    return max(low, -LARGEST), min(high, LARGEST)


def _group(parts: list[str]) -> str:
    return f"({' | '.join(parts)})"


def _range(low: int, high: int) -> list[str]:
    """Expressions for the numerals of ``low`` to ``high``, both at least 0."""
    parts: list[str] = []
    while low <= high:
        # The longest block low .. low + 10^k - 1 of whole decades that starts here and fits.
        size = 1
        while low % (size * 10) == 0 and low + size * 10 - 1 <= high and low > 0:
            size *= 10
        digits = str(low // size)
        # As many such blocks as share all digits but the last.
        count = min(9 - int(digits[-1]), (high - low + 1) // size - 1)
        last = f"[{digits[-1]}-{int(digits[-1]) + count}]" if count else f'"{digits[-1]}"'
        head = f'"{digits[:-1]}" ' if digits[:-1] else ""
        zeros = len(str(size)) - 1
        parts.append(f"{head}{last}" + (f" [0-9]{{{zeros}}}" if zeros else ""))
        low += (count + 1) * size
    return parts
