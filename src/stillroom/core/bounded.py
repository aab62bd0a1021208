"""Numbers that are only known to be at least so large: the KL to a teacher that lists its most probable tokens, for example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BOUNDED = {"kl_to_teacher": "kl_is", "bits_per_byte": "bits_are"}
"""Numbers of a model that may be lower bounds, and the keys beside them that say so."""


def least(model: Mapping[str, Any], key: str) -> str:
    """``≥ `` before a number of a model that is a lower bound, and nothing before any other."""
    return "≥ " if model.get(BOUNDED.get(key, "")) else ""
