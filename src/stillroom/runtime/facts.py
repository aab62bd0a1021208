"""What the parent of an engine has to know of a GGUF file: whether it embeds, its longest context, which tokens break text."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from stillroom.inspection.gguf_header import GgufHeader, read_gguf, read_numbers, read_texts

_BYTE_TOKEN = 6
_SPELLED_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
_TEXT_TOKENS = (1, 4)
"""Types of ordinary and added tokens (llama.h)."""


@dataclass(frozen=True)
class GgufFacts:
    """What a file says of itself.

    Attributes:
        embedding: It is a model of embeddings: it says how states are pooled.
        context: Tokens of the longest context it was made for; None where it does not say.
        breaking: Ids of tokens from which a character's overlong form could be put together, see :func:`breaks_text`.
    """

    embedding: bool
    context: int | None
    breaking: tuple[int, ...]


def read_facts(path: Path) -> GgufFacts:
    """Read a file's header and vocabulary.

    Raises:
        InspectionRefused: It is not a whole GGUF file.
    """
    header = read_gguf(path)
    architecture = header.metadata.get("general.architecture")
    pooling, context = (header.metadata.get(f"{architecture}.{key}") for key in ("pooling_type", "context_length"))
    embedding = isinstance(pooling, int) and pooling > 0
    longest = context if isinstance(context, int) and context > 0 else None
    with open(path, "rb") as stream:
        pieces = _pieces(header, stream)
        return GgufFacts(embedding, longest, tuple(index for index, piece in pieces if breaks_text(piece)))


def breaks_text(piece: bytes) -> bool:
    """Whether a token's bytes are, or can go on to, a character in more bytes than it takes.

    llama.cpp holds a grammar against characters and takes an overlong form, such as ``F0 82 82 82``, for the one character
    that it spells; every reader of UTF-8 takes it for several. Where lengths are limited, they would not agree. ``E0`` and
    ``F0`` may stand only before a byte that rules this out (Unicode 15, table 3-7).
    """
    for at, byte in enumerate(piece):
        if byte in (0xC0, 0xC1) or byte >= 0xF5:
            return True
        if byte in (0xE0, 0xF0):
            least = 0xA0 if byte == 0xE0 else 0x90
            if at + 1 == len(piece) or piece[at + 1] < least:
                return True
    return False


def _pieces(header: GgufHeader, stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Ids and bytes of the tokens that stand for bytes."""
    tokens, types = header.metadata.get("tokenizer.ggml.tokens"), header.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, dict) or tokens["type"] != 8:
        return
    kinds = read_numbers(stream, types) if isinstance(types, dict) and types["type"] in (4, 5) else []
    byte_level = header.metadata.get("tokenizer.ggml.model") == "gpt2"
    decoder = _decoder()
    for index, text in enumerate(read_texts(stream, tokens)):
        kind = kinds[index] if index < len(kinds) else 1
        if byte_level and kind in _TEXT_TOKENS:
            # What is no spelling of bytes is an added token, which stands for itself.
            yield index, bytes(decoder[char] for char in text) if all(char in decoder for char in text) else b""
        elif kind == _BYTE_TOKEN and (found := _SPELLED_BYTE.fullmatch(text)):
            yield index, bytes.fromhex(found[1])


@functools.cache
def _decoder() -> dict[str, int]:
    """From the characters that byte-level vocabularies are written in to bytes (Radford et al. 2019, GPT-2)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + number): byte for number, byte in enumerate(rest)}
