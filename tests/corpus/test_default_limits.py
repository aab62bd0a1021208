"""Validation and held-out text are in proportion to training unless the recipe says otherwise; what is left out is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import tiny_model

from stillroom.core.progress import Progress
from stillroom.corpus.build import build_corpus, default_limit
from stillroom.models.load import load_tokenizer
from stillroom.recipe.corpus import CorpusConfig
from stillroom.recipe.teacher import HuggingFaceTeacher


def test_the_limit_is_in_proportion_and_never_too_little() -> None:
    assert (default_limit("heldout", 100_000), default_limit("validation", 100_000)) == (20_000, 10_000)
    assert (default_limit("heldout", 8_000_000), default_limit("validation", 8_000_000)) == (1_000_000, 500_000)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("many") / "text.jsonl"
    words = "Every document has its own number and some words that a small vocabulary cuts into many pieces."
    with open(path, "w", encoding="utf-8") as stream:
        for number in range(1500):
            stream.write(json.dumps({"text": f"Document {number}: {words}"}) + "\n")
    return path


def test_a_small_training_set_has_a_small_heldout_set(many: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(HuggingFaceTeacher(name=str(tiny_model("llama", tmp_path / "teacher", layers=1))))

    def built(**values: object) -> tuple[dict[str, int], dict[str, int]]:
        config = CorpusConfig.model_validate(
            {
                "sources": [{"kind": "jsonl", "path": str(many)}],
                "sequence_length": 128,
                "train_tokens": 1000,
                "heldout_share": 0.45,
                "validation_share": 0.45,
                **values,
            }
        )
        corpus = build_corpus(config, tokenizer, 0, Progress(quiet=True))
        counts = {name: pieces.tokens for name, pieces in corpus.pieces.items()}
        return counts, corpus.ledger.get("documents_over_default_limit", {})

    counts, left_out = built()
    assert 20_000 <= counts["heldout"] < 20_200
    assert 10_000 <= counts["validation"] < 10_200
    assert set(left_out) == {"heldout", "validation"}
    assert all(number > 50 for number in left_out.values())
    counts, left_out = built(heldout_tokens=25_000, validation_tokens=500)
    assert 25_000 <= counts["heldout"] < 25_200
    assert 500 <= counts["validation"] < 700
    assert not left_out
