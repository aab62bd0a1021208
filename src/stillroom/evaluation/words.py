"""How numbers are said in sentences and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stillroom.evaluation.intervals import TOO_FEW


def percent(value: float, digits: int = 0) -> str:
    """A share as a percentage, such as ``57.1 %``."""
    return f"{value * 100:.{digits}f} %"


def interval(
    value: float | None, bounds: Sequence[float | None] | None, digits: int = 3, factor: float = 1.0, unit: str = ""
) -> str:
    """A value and its interval, such as ``1.734 [1.69, 1.78]``."""
    if value is None:
        return "–"
    text = f"{value * factor:.{digits}f}{unit}"
    if bounds and bounds[0] is not None and bounds[1] is not None:
        text += f" [{bounds[0] * factor:.{digits}f}, {bounds[1] * factor:.{digits}f}]"
    return text


def of(entry: dict[str, Any], name: str, digits: int = 3, factor: float = 1.0, unit: str = "") -> str:
    """A number of an entry with its interval, which has the key ``NAME_interval``."""
    return interval(entry.get(name), entry.get(f"{name}_interval"), digits, factor, unit)


def paired_test(test: dict[str, Any] | None, *, right: bool = True) -> str:
    """A paired comparison in words; ``right`` says that what is counted is an item solved, not a habit."""
    if test is None:
        return "–"
    few = "" if test.get("enough", True) else f" ({TOO_FEW})"
    if "p_value" not in test:
        return interval(test["difference"], test["interval"]) + few
    first, second, p = test["only_first"], test["only_second"], f"[p = {test['p_value']:.2g}]"
    return (f"{first} won, {second} lost {p}" if right else f"student alone {first}, teacher alone {second} {p}") + few


def visible(text: str) -> str:
    """Text with its line ends and tabs made visible."""
    return text.replace("\n", "↵").replace("\t", "⇥") or "∅"
