"""How numbers are said in sentences and tables."""

from __future__ import annotations


def percent(value: float, digits: int = 0) -> str:
    """A share as a percentage, such as ``57.1 %``."""
    return f"{value * 100:.{digits}f} %"
