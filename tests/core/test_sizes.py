"""Sizes for people."""

from __future__ import annotations

import pytest

from stillroom.core.sizes import in_words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 kB"), (1234, "1.2 kB"), (999_999, "1,000 kB"), (14_230_000_000, "14 GB"), (2.07e13, "21 TB")],
)
def test_two_digits_count(count: float, words: str) -> None:
    assert in_words(count) == words
