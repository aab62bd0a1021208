"""How tokenizers write single bytes: in the alphabet of byte-level ones, and as SentencePiece's bytes."""

from __future__ import annotations

import functools


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """The characters that byte-level tokenizers write bytes as, and those bytes (Radford et al. 2019, GPT-2)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in plain]
    return {chr(value): value for value in plain} | {chr(256 + place): value for place, value in enumerate(others)}


def bytes_of(text: str) -> bytes | None:
    """The bytes that a token of a byte-level tokenizer stands for; None where it has other characters."""
    alphabet = byte_alphabet()
    return bytes(alphabet[sign] for sign in text) if all(sign in alphabet for sign in text) else None


def is_byte(text: str) -> bool:
    """Whether a token of SentencePiece's kinds is a byte for text that has no token: ``<0x0A>``."""
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")
