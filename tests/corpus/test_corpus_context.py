"""The benchmark of packing measures what it says: nothing where documents stay whole, something where context is lost."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import make_model

from benchmarks.packing import divergence, measure, packed, sample_of, whole_states
from stillroom.corpus.context import Context, warning_of
from stillroom.corpus.tokens import Tokens


def documents(*sizes: int) -> list[Tokens]:
    random = np.random.default_rng(0)
    return [Tokens(random.integers(3, 100, size), np.ones(size, bool), np.ones(size, np.int32)) for size in sizes]


def test_whole_documents_lose_nothing_and_cut_ones_less_with_more_overlap() -> None:
    model = make_model("llama", rows=100, layers=2)
    short, long = documents(20, 9, 31, 12), documents(150, 200)
    found = measure(model, short, short, whole_states(model, short), (32, 8))
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert (found.overlap, found.continued) == (0, 0)
    assert found.targets == sum(len(document.ids) - 1 for document in short)
    whole = whole_states(model, long)
    none, some = (divergence(model, long, whole, packed(long, 32, overlap)) for overlap in (0, 8))
    assert 0 < some < none
    cut = measure(model, long, long, whole, (32, 8))
    assert cut.overlap > 0.2
    assert cut.as_dict()["wasted_share"] == cut.overlap + cut.padding


def test_a_sample_is_some_documents() -> None:
    some = documents(20, 9, 31, 12, 40)
    assert 0 < sum(len(document.ids) for document in sample_of(some, 60, seed=1)) <= 60


def test_much_without_context_is_warned_of() -> None:
    assert warning_of({"train": Context(100, 10), "heldout": Context(10, 0)}) is None
    words = warning_of({"train": Context(100, 20), "heldout": Context(10, 5)})
    assert words is not None
    assert words.startswith("50% of the learned tokens of the heldout split")
