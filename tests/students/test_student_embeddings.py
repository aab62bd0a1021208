"""What a model names by id keeps its meaning when its vocabulary is trimmed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from transformers import GenerationConfig

from stillroom.students.embeddings import renumber_config


def test_everything_that_names_ids_is_renumbered() -> None:
    generation = GenerationConfig(
        eos_token_id=[9, 4], suppress_tokens=[5, 9], begin_suppress_tokens=[7], bad_words_ids=[[4, 9], [4, 7]]
    )
    generation.forced_eos_token_id = 9
    model: Any = SimpleNamespace(config=SimpleNamespace(bos_token_id=4), generation_config=generation)
    renumber_config(model, kept=[4, 5, 9])
    assert model.config.bos_token_id == 0
    assert generation.eos_token_id == [2, 0]
    assert generation.suppress_tokens == [1, 2]
    assert generation.begin_suppress_tokens is None
    assert generation.forced_eos_token_id == 2
    assert generation.bad_words_ids == [[0, 2]]
