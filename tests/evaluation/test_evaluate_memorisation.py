"""Text known by heart: found where a model was made to know it, and nowhere else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from students.tiny_families import tiny_sequences
from tiny_models import make_model, make_tokenizer

from benchmarks.faults import bench_with
from stillroom.corpus.sequences import Sequences
from stillroom.evaluation.answers import Speaker
from stillroom.evaluation.bench import Bench, Loaded
from stillroom.evaluation.heldout import InMemory
from stillroom.evaluation.metrics.memorisation import CONTINUATION, METRIC, PASSAGES, PREFIX, completed, passages
from stillroom.signals.vocabulary_map import VocabularyMap

LENGTH = 192


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    tokenizer = make_tokenizer("bpe")
    model = make_model("llama", rows=len(tokenizer), tokenizer=tokenizer, layers=2, seed=1).eval()
    return Loaded(model, tokenizer, VocabularyMap.identity(len(tokenizer)), 0)


@torch.inference_mode()
def own_words(loaded: Loaded, text: Sequences) -> Sequences:
    """The same prefixes, each gone on with as the model would, greedily."""
    ids = text.ids.clone()
    for segment in (0, 1):
        where = (text.segments[0] == segment).nonzero().squeeze(1)
        for place in where[PREFIX:].tolist():
            logits = loaded.model(input_ids=ids[:, where[0] : place]).logits[:, -1, : loaded.vocabulary.student_used]
            ids[:, place] = logits.argmax(1)
    return dataclasses.replace(text, ids=ids)


def test_training_text_that_a_model_says_by_itself_is_found(loaded: Loaded, tmp_path: Path) -> None:
    ids = len(loaded.tokenizer)
    heldout = tiny_sequences(6, LENGTH, ids=ids, seed=2)
    bench: Bench = bench_with(InMemory(heldout), tmp_path, loaded, loaded)
    bench.training = InMemory(own_words(loaded, tiny_sequences(6, LENGTH, ids=ids, seed=3)))
    result = METRIC.measure(bench)
    student = result["models"]["student"]
    # The first document of a sequence has 64 tokens: 14 before the 50, which are random in part.
    assert student["train"]["items"] == student["heldout"]["items"] == 12
    assert student["train"]["value"] == pytest.approx(0.5)
    assert student["heldout"]["value"] == 0
    assert student["train_minus_heldout"]["interval"][0] > 0
    assert "known by heart" not in str(METRIC.weaknesses(result))
    assert "knows training text by heart: 50 %" in METRIC.weaknesses(result)[0]
    assert result["bounds"]["train_minus_heldout"][0] == pytest.approx(0.5)
    # The same text on both sides is no sign.
    turned = bench_with(InMemory(heldout), tmp_path / "same", loaded, loaded)
    assert METRIC.weaknesses(METRIC.measure(turned)) == []


def test_one_forward_pass_says_what_greedy_decoding_does(loaded: Loaded) -> None:
    speaker = Speaker(loaded)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, len(loaded.tokenizer), (6, 20), generator=generator).tolist()
    written = [list(each.ids) for each in speaker.answers(prompts, 40)]
    whole = [(before, after) for before, after in zip(prompts, written, strict=True)]
    assert completed(speaker, whole) == [True] * 6
    for place in (0, len(written[0]) - 1):
        slipped = list(written[0])
        slipped[place] = (slipped[place] + 1) % len(loaded.tokenizer)
        assert completed(speaker, [(prompts[0], slipped)]) == [False]
    assert completed(speaker, []) == []


def test_passages_are_learned_text_of_different_documents() -> None:
    text = tiny_sequences(40, LENGTH, ids=96, seed=4)
    # Odd documents begin with 70 tokens that are not learned, such as a chat's question.
    mask = text.loss_mask.clone()
    mask[:, LENGTH // 3 : LENGTH // 3 + 70] = False
    found = passages(InMemory(dataclasses.replace(text, loss_mask=mask)))
    assert len(found) == PASSAGES
    assert all(len(after) == CONTINUATION and 8 <= len(before) <= PREFIX for before, after in found)
    whole = [" ".join(map(str, row)) for row in text.ids.tolist()]
    for before, after in found:
        (row,) = [one for one in whole if " ".join(map(str, before + after)) in one]
        words = row.split(" ")
        start = next(
            i for i in range(LENGTH) if words[i : i + len(before + after)] == [str(one) for one in before + after]
        )
        first = start + len(before)
        assert first == 14 or first >= LENGTH // 3 + 70
    short: Any = tiny_sequences(2, 30, ids=96)
    assert passages(InMemory(short)) == []
