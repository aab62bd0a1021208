"""Which tokens an answer under a grammar may not hold, and that no others break it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFWriter

from stillroom.runtime.facts import GgufFacts, breaks_text, read_facts

BORDERS = [bytes([byte]) for byte in (0x22, 0x41, 0x7F, 0x80, 0x82, 0x8F, 0x90, 0x9F, 0xA0, 0xBF)]
LEADS = [bytes([byte]) for byte in (0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xED, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0xF8, 0xFF)]
MERGED = [b" \xf0", b"\xf0\x9f", b"\xf0\x82", b"\xe0\xb8", b"\xe0\x9f", b"\x98\x80", b"a\xc3\xa9", b"\x82\xe0"]


def as_llama_reads(data: bytes) -> list[int] | None:
    """Characters as llama.cpp's grammars count them: leading bits alone decide; None where it sees an error."""
    found, at = [], 0
    while at < len(data):
        lead = data[at]
        length = (1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 2, 2, 3, 4)[lead >> 4]
        tail = data[at + 1 : at + length]
        if not length or len(tail) < length - 1 or any(byte >> 6 != 2 for byte in tail):
            return None
        value = lead & ((1 << (8 - length)) - 1) if length > 1 else lead
        for byte in tail:
            value = value << 6 | byte & 0x3F
        found.append(value)
        at += length
    return found


def test_without_breaking_tokens_whatever_a_grammar_lets_through_is_utf8() -> None:
    pieces = [piece for piece in BORDERS + LEADS + MERGED if not breaks_text(piece)]
    assert b"\xf0\x9f" in pieces
    assert b"\xe0\xb8" in pieces
    through = 0
    for chosen in itertools.product(pieces, repeat=4):
        data = b"".join(chosen)
        points = as_llama_reads(data)
        # Surrogates and what lies beyond Unicode are shut out by every string's class (`NEVER_PLAIN`).
        if points is None or any(0xD800 <= point < 0xE000 or point > 0x10FFFF for point in points):
            continue
        through += 1
        assert [ord(char) for char in data.decode()] == points
    assert through > 1000


def test_with_them_it_is_not() -> None:
    assert as_llama_reads(b"\xf0\x82\x82\x82") == [0x2082]
    with pytest.raises(UnicodeDecodeError):
        b"\xf0\x82\x82\x82".decode()
    assert breaks_text(b"\xf0")


def written(folder: Path, kind: str, tokens: list[str], types: list[int], pooling: int | None = None) -> Path:
    path = folder / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if pooling is not None:
        writer.add_uint32("llama.pooling_type", pooling)
        writer.add_context_length(512)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_byte_level_and_spelled_bytes(tmp_path: Path) -> None:
    # "ð" and "Ġð" are F0 alone and behind a space, "ðŁ" is F0 9F; an added token of the same spelling is no bytes.
    byte_level = written(tmp_path, "gpt2", ["a", "ð", "Ġð", "ðŁ", "à", "ð", "<|end|>"], [1, 1, 1, 1, 1, 3, 3])
    assert read_facts(byte_level) == GgufFacts(False, None, (1, 2, 4))
    spelled = written(tmp_path, "llama", ["<0xC0>", "<0x41>", "<0xF0>", "<0xzz>", "▁ð"], [6, 6, 6, 6, 1], pooling=1)
    assert read_facts(spelled) == GgufFacts(True, 512, (0, 2))


def test_a_real_vocabulary_is_read_as_the_library_reads_it(tiny_gguf: Path) -> None:
    reader = GGUFReader(tiny_gguf)
    tokens = reader.get_field("tokenizer.ggml.tokens")
    assert tokens is not None
    expected = [index for index, text in enumerate(tokens.contents()) if text[-1:] in ("à", "ð")]
    found = read_facts(tiny_gguf).breaking
    assert found
    assert set(expected) <= set(found)
