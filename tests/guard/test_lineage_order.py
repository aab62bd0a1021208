"""The order of training: valid for any losses under random orders, and found where later is remembered better."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from tiny_models import tiny_model

from stillroom.core.errors import UsageError
from stillroom.core.secret import Secret
from stillroom.guard.lineage_match import open_model
from stillroom.guard.lineage_order import order_finding, places_of, sequence_losses, training_order
from stillroom.training.schedule import batch_order


def test_places_are_those_of_the_training_itself() -> None:
    secret = Secret(bytes(range(32)))
    places = places_of(secret, 50, 2)
    flat = [index for batch in batch_order(50, 8, 2, secret)[7:] for index in batch]
    assert [flat[place] for place in places] == list(range(50))


@pytest.mark.parametrize("draws", [1000, pytest.param(3000, marks=pytest.mark.longer)])
def test_the_rate_under_random_orders_is_at_most_nominal(draws: int) -> None:
    """The suspect's losses are fixed; the owner's order is drawn so many times."""
    losses = np.random.default_rng(1).gamma(2.0, size=401)
    found = np.array(
        [
            training_order(places_of(Secret(number.to_bytes(32, "big")), 401, 1), losses, np.zeros(401)).log10_p
            for number in range(draws)
        ]
    )
    assert np.mean(found <= math.log10(0.05)) <= 0.05
    assert np.mean(found <= -3) <= 0.001
    # Conservative, but by no more than Chernoff's factor.
    assert np.mean(found <= math.log10(0.2)) > 0.02


def test_what_was_seen_last_is_remembered() -> None:
    secret = Secret.draw()
    places = places_of(secret, 4000, 1)
    rng = np.random.default_rng(2)
    losses = 3 + rng.normal(size=4000) - 0.8 * places / 4000
    result = training_order(places, losses, np.full(4000, 3.0))
    assert result.log10_p < -6
    assert result.spearman < 0
    assert result.spearman_log10_p < -8
    finding = order_finding(result, secret.commitment, "a reference")
    assert (finding.grade, finding.verdict) == ("A", "made with this run")
    other = training_order(places_of(Secret.draw(), 4000, 1), losses, np.full(4000, 3.0))
    assert other.log10_p > -6
    assert order_finding(other, None, "a reference").verdict == "cannot tell"


def test_too_little_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 40"):
        training_order(np.arange(10), np.zeros(10), np.zeros(10))
    with pytest.raises(UsageError, match="not finite"):
        training_order(np.arange(50), np.full(50, np.nan), np.zeros(50))


def test_losses_are_the_model_s_own(tmp_path: Path) -> None:
    import torch

    loaded = open_model(tiny_model("llama", tmp_path, layers=1))
    text = "def function(value): return value"
    ids = torch.tensor([loaded.tokenizer.encode(text, add_special_tokens=False)])
    with torch.no_grad():
        expected = float(loaded.model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1) / len(text)
    assert sequence_losses(loaded, [[text], []]) == pytest.approx([expected, 0.0], rel=1e-5)


def test_losses_of_pieces_that_are_read_together_are_those_of_each_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = open_model(tiny_model("llama", tmp_path, layers=2))
    words = ["a", "sorted", "list", "keeps", "the", "order", "of", "its", "values", "and", "a", "set", "does", "not"]
    texts = [[" ".join(words[: 2 + place % 9]), " ".join(words[place % 5 :])] for place in range(12)]
    together = sequence_losses(loaded, texts)
    monkeypatch.setattr("stillroom.guard.lineage_order.AT_ONCE", 1)
    assert together == pytest.approx(sequence_losses(loaded, texts), rel=1e-5)
    assert len(set(together)) > 6
