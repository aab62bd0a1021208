"""The split: by content alone, never on two sides, never empty where it need not be."""

from __future__ import annotations

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.corpus.split import SPLITS, split_of

SHARES = st.floats(0.001, 0.499)


def digests(count: int, salt: str = "") -> list[str]:
    return [hashlib.sha256(f"{salt}{index}".encode()).hexdigest() for index in range(count)]


@settings(max_examples=200)
@given(count=st.integers(0, 60), salt=st.text(max_size=3), validation=SHARES, heldout=SHARES)
def test_every_document_has_one_side_and_no_side_is_empty(
    count: int, salt: str, validation: float, heldout: float
) -> None:
    names = digests(count, salt)
    sides = split_of(names, validation, heldout)
    assert set(sides) == set(names)
    assert split_of(names[::-1], validation, heldout) == sides
    if count >= 3:
        assert set(sides.values()) == set(SPLITS)


@settings(max_examples=50)
@given(salt=st.text(max_size=3), more=st.integers(1, 300))
def test_a_corpus_that_grows_keeps_its_split(salt: str, more: int) -> None:
    small = split_of(digests(200, salt), 0.1, 0.15)
    large = split_of(digests(200 + more, salt), 0.1, 0.15)
    assert all(large[name] == side for name, side in small.items())


def test_shares_are_met() -> None:
    sides = list(split_of(digests(20_000), 0.05, 0.1).values())
    assert abs(sides.count("heldout") / 20_000 - 0.1) < 0.01
    assert abs(sides.count("validation") / 20_000 - 0.05) < 0.01


def test_two_documents_cannot_fill_three_sides() -> None:
    assert len(set(split_of(digests(2), 0.05, 0.1).values())) < 3
