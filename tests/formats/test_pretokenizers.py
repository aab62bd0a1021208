"""Pre-tokenizers that llama.cpp has under some name are found by their ids; others are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from gguf import GGUFWriter
from tiny_models import make_tokenizer
from tokenizers import Regex, pre_tokenizers

from stillroom.core.errors import UnsupportedModel
from stillroom.formats.pretokenizers import TEXTS, proved_name, texts
from stillroom.formats.vocabulary import add_tokenizer

LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
QWEN35 = LETTERS + r"|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
NONE_OF_THEM = r"[aeiou]+|[^aeiou]+"


def split_by(pattern: str) -> Any:
    tokenizer = make_tokenizer("bpe", 600)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def test_texts_are_many_and_the_same_each_time() -> None:
    assert len(texts()) == len(texts()) >= TEXTS
    assert texts() == texts()


def test_a_pattern_is_found_by_its_ids() -> None:
    assert proved_name(split_by(QWEN35), add_tokenizer, ("gpt-2", "no-such-name", "qwen35")) == "qwen35"
    assert proved_name(split_by(QWEN35), add_tokenizer, ("gpt-2",)) is None


def test_a_pattern_that_llama_cpp_lacks_is_refused_by_name(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import stillroom.formats.pretokenizers as module

    monkeypatch.setattr(module.proved_name, "__defaults__", (("gpt-2", "qwen2"),))
    with pytest.raises(UnsupportedModel, match="no name for this tokenizer's pre-tokenizer"):
        add_tokenizer(GGUFWriter(tmp_path / "x.gguf", "llama"), split_by(NONE_OF_THEM), 600)
