"""What is compared of an exported file and its student: listed ids, windows, and prompts that go beyond them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stillroom.formats.check import (
    BEYOND_POSITIONS,
    MOST_LISTED,
    Listed,
    Passage,
    agreement,
    beyond_window,
    window_of,
)
from stillroom.signals.vocabulary_map import VocabularyMap

IDS = 262_144


def listed_by_llama_cpp(logits: torch.Tensor) -> Listed:
    """The most probable ids as llama.cpp lists them: the sum of all exponentials is one float32, added to one by one."""
    order = logits.argsort(descending=True, stable=True)
    shares = (logits[order] - logits.max()).exp().float().numpy()
    total = float(np.add.accumulate(shares, dtype=np.float32)[-1])
    top = order[:MOST_LISTED]
    return Listed(top, (logits[top] - logits.max()).double() - math.log(total))


def peaked(seed: int, tail: float) -> torch.Tensor:
    """Logits of a sure model: a few ids have nearly everything, and ``tail`` is spread over all others."""
    generator = torch.Generator().manual_seed(seed)
    logits = math.log(tail / IDS) + torch.randn(IDS, generator=generator)
    logits[:4] = torch.tensor([0.0, -3.0, -4.0, -5.0])
    return logits


@pytest.mark.parametrize("tail", [1e-4, 1e-3, 5e-3])
def test_the_same_distribution_is_no_divergence_however_many_ids(tail: float) -> None:
    logits = peaked(0, tail)
    # The effect is there: the listed ids' log-probabilities are too large.
    said = listed_by_llama_cpp(logits)
    exact = torch.log_softmax(logits.double(), 0)
    assert float((said.logprobs - exact[said.ids]).abs().min()) > tail / 20
    found = agreement([torch.log_softmax(logits, 0)[None]], [[said]])
    assert found.kl < 1e-6


@pytest.mark.parametrize("tail", [5e-3, 2e-2])
def test_a_tail_of_another_size_is_one(tail: float) -> None:
    """What the sum lost is given back; a real difference of the ids that are not listed stays."""
    mine, theirs = peaked(0, 1e-3), peaked(0, tail)
    a, b = torch.log_softmax(mine.double(), 0), torch.log_softmax(theirs.double(), 0)
    found = agreement([torch.log_softmax(mine, 0)[None]], [[listed_by_llama_cpp(theirs)]])
    assert found.kl == pytest.approx(float((a.exp() * (a - b)).sum()), rel=0.5)


def test_windows() -> None:
    def config(**keys: Any) -> Any:
        return SimpleNamespace(**({"max_position_embeddings": 2048} | keys))

    assert window_of(config()) is None
    assert window_of(config(sliding_window=None)) is None
    assert window_of(config(sliding_window=512)) == 512
    assert window_of(config(sliding_window=512, layer_types=["full_attention"])) is None
    assert window_of(config(sliding_window=512, layer_types=["full_attention", "sliding_attention"])) == 512
    assert window_of(config(sliding_window=512, use_sliding_window=False)) is None
    assert window_of(config(attention_chunk_size=1024, layer_types=["chunked_attention"])) == 1024
    # No text fills it.
    assert window_of(config(sliding_window=2048)) is None


@pytest.mark.parametrize("documents", [3, 40])
def test_a_prompt_goes_beyond_a_window_with_whatever_text_there_is(documents: int) -> None:
    heldout: Any = SimpleNamespace(
        ids=torch.arange(documents * 4).view(documents, 4), segments=torch.tensor([[0, 0, 1, -1]]).repeat(documents, 1)
    )
    text = beyond_window(heldout, VocabularyMap.identity(200), 64)
    assert len(text.ids) == 64 + BEYOND_POSITIONS
    assert text.compared == range(64, 64 + BEYOND_POSITIONS)
    assert text.ids[:4] == [0, 1, 2, 4]
    assert 3 not in text.ids  # padding
    assert Passage([], list(range(9)), []).compared == range(9)


def test_what_is_no_number_never_agrees() -> None:
    logits = torch.zeros(8)
    said = Listed(torch.arange(8), torch.log_softmax(logits.double(), 0))
    assert math.isnan(agreement([torch.full((1, 8), float("nan"))], [[said]]).kl)
