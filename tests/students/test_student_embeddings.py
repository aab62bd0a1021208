"""What a model names by id keeps its meaning when its vocabulary is trimmed."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import GenerationConfig, XGLMConfig

from stillroom.core.errors import UnsupportedModel
from stillroom.students.embeddings import ID_ENDINGS, TOKEN_FIELDS, lost_words, renumber_config

KEPT = [4, 5, 9]
COUNTS_OF_TOKENS = {
    "max_new_tokens",
    "min_new_tokens",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "prompt_lookup_num_tokens",
    "token_healing",
}
"""Fields of a generation config that speak of tokens, and name none."""
# Field, the teacher's value, the student's (4, 5 and 9 are now 0, 1 and 2), and what is dropped.
CASES = [
    ("bos_token_id", 4, 0, []),
    ("eos_token_id", [9, 4], [2, 0], []),
    ("eos_token_id", [7, 9], [2], [7]),
    ("pad_token_id", 7, None, [7]),
    ("pad_token_id", -1, None, []),
    ("decoder_start_token_id", [5, 8], [1], [8]),
    ("forced_bos_token_id", 5, 1, []),
    ("forced_eos_token_id", [9, 5], [2, 1], []),
    ("suppress_tokens", [5, 9], [1, 2], []),
    ("begin_suppress_tokens", [7], None, [7]),
    ("bad_words_ids", [[4, 9], [4, 7]], [[0, 2]], [[4, 7]]),
    ("force_words_ids", [[5], [6]], [[1]], [[6]]),
    ("force_words_ids", [[[5, 9], [6]], [[7], [8]]], [[[1, 2]]], [[6], [7], [8]]),
    ("sequence_bias", [[[5, 9], -1.5], [[6], 2.0]], [[[1, 2], -1.5]], [[6]]),
    ("sequence_bias", {(5, 9): -1.5, (6,): 2.0}, [[[1, 2], -1.5]], [[6]]),
    ("forced_decoder_ids", [[1, None], [2, 9], [3, 7]], [[1, None], [2, 2]], [7]),
    ("constraints", [SimpleNamespace(token_ids=[4])], None, ["SimpleNamespace"]),
    ("image_token_id", 9, 2, []),
    ("no_speech_token_ids", [9, 6], [2], [6]),
]


def with_generation(**fields: Any) -> Any:
    generation = GenerationConfig()
    for key, value in fields.items():
        setattr(generation, key, value)
    return SimpleNamespace(config=SimpleNamespace(model_type="toy"), generation_config=generation)


@pytest.mark.parametrize(("field", "before", "after", "dropped"), CASES)
def test_every_field_is_renumbered_in_both_configs(field: str, before: Any, after: Any, dropped: list[Any]) -> None:
    model = with_generation(**{field: before})
    setattr(model.config, field, before)
    lost = renumber_config(model, KEPT)
    assert getattr(model.generation_config, field) == after
    assert getattr(model.config, field) == after
    assert lost == ({field: dropped} if dropped else {})


def test_there_is_a_case_for_every_field() -> None:
    assert {case[0] for case in CASES} >= set(TOKEN_FIELDS)


def test_every_field_of_transformers_that_may_name_tokens_is_known() -> None:
    known = set(TOKEN_FIELDS) | COUNTS_OF_TOKENS
    unknown = [
        key
        for key in vars(GenerationConfig())
        if re.search(r"token|(^|_)ids?($|_)|words|bias|constraint|suppress|forced?_", key)
        and key not in known
        and not key.endswith(ID_ENDINGS)
    ]
    assert not unknown, "give each a shape in TOKEN_FIELDS, or, if it names no token, a line in COUNTS_OF_TOKENS"


def test_what_will_be_dropped_is_said_before_and_changes_nothing() -> None:
    model = with_generation(suppress_tokens=list(range(10, 30)), bad_words_ids=[[4, 7]], eos_token_id=4)
    said = lost_words(model, KEPT)
    assert "suppress_tokens 10, 11, 12, 13, 14, 15, 16, 17 and 12 more" in said
    assert "bad_words_ids [4, 7]" in said
    assert "eos_token_id" not in said
    assert model.generation_config.eos_token_id == 4
    assert lost_words(with_generation(eos_token_id=4), KEPT) == ""
    assert lost_words(model, None) == ""


def test_a_field_that_a_family_needs_or_that_has_another_shape_is_refused_by_name() -> None:
    model = with_generation()
    model.config = XGLMConfig(decoder_start_token_id=7)
    with pytest.raises(UnsupportedModel, match=r"needs `decoder_start_token_id`.*id 7"):
        lost_words(model, KEPT)
    with pytest.raises(UnsupportedModel, match="`bad_words_ids`"):
        lost_words(with_generation(bad_words_ids=[5]), KEPT)


def test_a_renumbered_config_is_saved_and_loaded(tmp_path: Any) -> None:
    model = with_generation(eos_token_id=[9, 4], sequence_bias={(5, 9): -1.5}, bad_words_ids=[[4, 9]])
    renumber_config(model, KEPT)
    model.generation_config.save_pretrained(tmp_path)
    again = GenerationConfig.from_pretrained(tmp_path)
    assert again.eos_token_id == [2, 0]
    assert again.bad_words_ids == [[0, 2]]
    assert again.sequence_bias == [[[1, 2], -1.5]]
