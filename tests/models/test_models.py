"""The tests' own tiny models: every family loads, predicts unevenly, and is the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, default_tokenizer, make_tokenizer, tiny_model

from stillroom.core.files import digest_file
from stillroom.models.load import load_student

TEXT = "Hello 12345 wörld\n  def f(x): return '日本😀'\t a  b"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_with_the_tokenizer_that_was_written(family: str, tmp_path: Path) -> None:
    folder = tiny_model(family, tmp_path / "a")
    model, tokenizer = load_student(folder, torch.float32)
    ids = tokenizer(TEXT)["input_ids"]
    assert ids == make_tokenizer(default_tokenizer(family))(TEXT)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == TEXT
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
    assert 0.7 < logits.std() < 3
    again = tiny_model(family, tmp_path / "b")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert digest_file(folder / name) == digest_file(again / name)


@pytest.mark.parametrize("kind", ["bpe", "qwen", "unigram", "bpe_fallback"])
def test_tokenizers_keep_every_text(kind: str) -> None:
    tokenizer = make_tokenizer(kind)  # type: ignore[arg-type]
    assert len(tokenizer) == 512
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"], skip_special_tokens=True) == TEXT
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_options(tmp_path: Path) -> None:
    folder = tiny_model(
        "mistral", tmp_path / "m", tied=True, layers=2, padding_rows=64, sliding_window=8, tokenizer="unigram"
    )
    model, tokenizer = load_student(folder, torch.float32)
    assert model.config.tie_word_embeddings
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.sliding_window == 8
    assert len(model.model.layers) == 2
    assert model.config.vocab_size == len(tokenizer) + 64
