"""How tokenizers write single bytes: in the alphabet of byte-level ones, and as SentencePiece's bytes."""

from __future__ import annotations

import functools


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """The characters that byte-level tokenizers write bytes as, and those bytes (Radford et al. 2019, GPT-2)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in plain]
    return {chr(value): value for value in plain} | {chr(256 + place): value for place, value in enumerate(others)}


def is_byte(text: str) -> bool:
    """Whether a token of SentencePiece's kinds is a byte for text that has no token: ``<0x0A>``."""
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")
