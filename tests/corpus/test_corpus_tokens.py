"""Tokens: the ids are the tokenizer's own, and every byte of the text is counted once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_models import make_tokenizer

from stillroom.corpus import tokens as module
from stillroom.corpus.documents import Document
from stillroom.corpus.tokens import Encoder, token_bytes

KINDS = ("bpe", "qwen", "unigram", "bpe_fallback")
ENCODERS = {kind: Encoder(make_tokenizer(kind), add_bos=False, add_eos=False) for kind in KINDS}  # type: ignore[arg-type]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@settings(max_examples=250)
@given(text=TEXT, kind=st.sampled_from(KINDS))
@example(text="日本語 😀 e\u0301 \u2581 ﷺ 👩‍👩‍👧", kind="qwen")
@example(text=" \t\n  \n", kind="bpe")
@example(text="\x00\ufeff", kind="unigram")
def test_bytes_sum_to_the_texts_bytes(text: str, kind: str) -> None:
    tokens = ENCODERS[kind].encode([Document(text)])[0]
    assert tokens.ids.tolist() == make_tokenizer(kind)(text, add_special_tokens=False)["input_ids"]  # type: ignore[arg-type]
    assert tokens.learned.all()
    assert (tokens.bytes >= 0).all()
    assert tokens.bytes.sum() == (len(text.encode()) if len(tokens.ids) else 0)


@settings(max_examples=100)
@given(texts=st.lists(TEXT, max_size=5), kind=st.sampled_from(KINDS))
def test_a_batch_is_its_documents(texts: list[str], kind: str) -> None:
    encoder = ENCODERS[kind]
    together = encoder.encode([Document(text) for text in texts])
    for text, tokens in zip(texts, together, strict=True):
        alone = encoder.encode([Document(text)])[0]
        assert alone.ids.tolist() == tokens.ids.tolist()
        assert alone.bytes.tolist() == tokens.bytes.tolist()


def test_every_token_of_ascii_has_the_bytes_that_it_decodes_to() -> None:
    text = "def add(first, second):\n    return first + second  # 12345\n"
    tokenizer = make_tokenizer("bpe")
    tokens = ENCODERS["bpe"].encode([Document(text)])[0]
    assert tokens.bytes.tolist() == [len(tokenizer.decode([index])) for index in tokens.ids]


def test_a_character_of_several_tokens_counts_at_the_first() -> None:
    tokens = ENCODERS["bpe"].encode([Document("a😀b")])[0]
    assert tokens.bytes.tolist() == [1, 4, 0, 0, 0, 1]


def test_token_bytes_from_offsets() -> None:
    assert token_bytes("aé日", np.asarray([1, 2, 3])).tolist() == [1, 2, 3]
    assert token_bytes("aé日", np.asarray([1, 3, 3])).tolist() == [1, 5, 0]
    assert token_bytes("aé日", np.asarray([1, 2])).tolist() == [1, 5]
    assert token_bytes("", np.asarray([], dtype=np.int64)).tolist() == []


@pytest.mark.parametrize(
    ("kind", "add_bos", "add_eos", "first", "last"),
    [
        ("bpe", None, True, None, "<|im_end|>"),
        ("bpe", True, False, "<|im_start|>", None),
        ("unigram", None, True, "<s>", "<|im_end|>"),
        ("unigram", False, False, None, None),
        ("qwen", True, False, None, None),
    ],
)
def test_what_is_put_around_a_text(
    kind: Any, add_bos: bool | None, add_eos: bool, first: str | None, last: str | None
) -> None:
    tokenizer = make_tokenizer(kind)
    tokens = Encoder(tokenizer, add_bos, add_eos).encode([Document("hello")])[0]
    inner = tokenizer("hello", add_special_tokens=False)["input_ids"]
    head = [tokenizer.convert_tokens_to_ids(first)] if first else []
    tail = [tokenizer.convert_tokens_to_ids(last)] if last else []
    assert tokens.ids.tolist() == [*head, *inner, *tail]
    assert tokens.learned.tolist() == [False] * len(head) + [True] * len([*inner, *tail])
    assert tokens.bytes.sum() == 5


def test_a_truncating_tokenizer_loses_nothing() -> None:
    tokenizer = make_tokenizer("bpe")
    tokenizer("x", truncation=True, max_length=4)
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokens = Encoder(tokenizer, add_eos=False).encode([Document("one two three four five six")])[0]
    assert tokenizer.decode(tokens.ids) == "one two three four five six"


@settings(max_examples=60)
@given(lines=st.lists(st.text("ab 1\t\r'é.", max_size=12), min_size=1, max_size=60), kind=st.sampled_from(KINDS))
def test_a_long_text_in_pieces_has_the_ids_of_the_whole(lines: list[str], kind: str) -> None:
    text = "\n".join(lines)
    encoder = ENCODERS[kind]
    whole = encoder.encode([Document(text)])[0]
    before = module.LONG
    module.LONG = 20
    try:
        pieces = encoder._pieces(text)
        cut = encoder.encode([Document(text)])[0]
    finally:
        module.LONG = before
    assert "".join(pieces) == text
    assert cut.ids.tolist() == whole.ids.tolist()
    assert cut.bytes.sum() == whole.bytes.sum()


def test_a_long_text_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONG", 1000)
    text = "Some words on a line.\n" * 500
    pieces = ENCODERS["bpe"]._pieces(text)
    assert len(pieces) > 5
    assert all(len(piece) < 1200 for piece in pieces)
    # Without a line's end there is no cut.
    assert ENCODERS["bpe"]._pieces("word " * 500) == ["word " * 500]


def test_questions_are_plain_text_where_there_is_no_template() -> None:
    tokenizer = make_tokenizer("bpe")
    tokenizer.chat_template = None
    messages = ({"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"})
    tokens = Encoder(tokenizer).encode([Document("2 + 2?\n4\n", messages)])[0]
    assert tokenizer.decode(tokens.ids) == "2 + 2?\n4\n<|im_end|>"


def test_white_space_that_a_post_processor_trims_is_learned_too() -> None:
    from tokenizers import processors

    tokenizer = make_tokenizer("bpe")
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    answer = "one  \n\n   two \t three"
    messages = ({"role": "user", "content": "Q"}, {"role": "assistant", "content": answer})
    tokens = Encoder(tokenizer).encode([Document(messages=messages)])[0]
    assert tokenizer.decode(tokens.ids[tokens.learned]) == f"{answer}<|im_end|>"
    plain = Encoder(tokenizer, add_eos=False).encode([Document(answer)])[0]
    assert plain.bytes.tolist() == [len(tokenizer.decode([index])) for index in plain.ids]


def test_a_text_stays_whole_where_a_cut_would_change_its_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import normalizers

    monkeypatch.setattr(module, "LONG", 1000)
    tokenizer = make_tokenizer("bpe_fallback")
    # As Llama 2 does: every text begins with a space that it does not have.
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    text = "Some words on a line.\n" * 200
    encoder = Encoder(tokenizer, add_bos=False, add_eos=False)
    tokens = encoder.encode([Document(text)])[0]
    assert tokens.ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokens.bytes.sum() == len(text)
