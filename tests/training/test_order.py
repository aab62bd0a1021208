"""The order of sequences: a permutation that seed and pass decide, the same in every version and in any number of processes."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.core.secret import BYTES, Secret
from stillroom.training.group import Group
from stillroom.training.loop import Training
from stillroom.training.schedule import batch_order

SECRET = Secret(bytes(range(BYTES)))
GOLDEN = [
    (3, [[3, 10, 8, 0], [9, 2, 5, 6], [1, 4, 7], [4, 1, 6, 8], [5, 3, 10, 7], [9, 2, 0]]),
    (SECRET, [[3, 4, 0, 10], [5, 6, 1, 8], [7, 2, 9], [7, 6, 8, 1], [4, 2, 9, 5], [3, 10, 0]]),
]
"""Two passes over 11 sequences, 4 per batch."""
DIGESTS = [
    (4_999, 3, 2**32 + 7, "62aaee38f7e843001fc216080bbe3459c8ac84719a4200861c12e99569b3943a"),
    (4_999, 3, SECRET, "a30583c35e9071a249db27cf3a60bf7e3ee29d2d13496599ca028a6e33fbc83a"),
    (2**20 + 1, 1, 0, "27289ae5f1b9fdc2a372b79b9ea359da77ece9fe075956a30ed74df020bcb357"),
    (2**20 + 1, 1, SECRET, "c0e98b5155a8dbcab2f259dca19f9e2376794cb9ffaf374cd91845e376028756"),
]
"""Larger orders: sequences, passes, key, and SHA-256 of the indices one after the other in little-endian int64."""
NAMES = ["seed", "secret"]
# Of an explicit seed torch's generator takes 32 bits.
keys = st.one_of(st.integers(0, 2**32 - 1), st.binary(min_size=BYTES, max_size=BYTES).map(Secret))


@pytest.mark.parametrize(("key", "batches"), GOLDEN, ids=NAMES)
def test_batches_are_those_of_earlier_releases(key: int | Secret, batches: list[list[int]]) -> None:
    # An unfinished run goes on with the order that it began with, and a lineage test looks for the order of a finished one.
    assert batch_order(11, 4, 2, key) == batches


@pytest.mark.parametrize(
    ("count", "epochs", "key", "digest"),
    DIGESTS,
    ids=[f"{name}-{size}" for size in ("small", "large") for name in NAMES],
)
def test_large_orders_are_those_of_earlier_releases(count: int, epochs: int, key: int | Secret, digest: str) -> None:
    found = np.array(flat(batch_order(count, 1024, epochs, key)), "<i8")
    assert hashlib.sha256(found.tobytes()).hexdigest() == digest


@given(st.binary(min_size=BYTES, max_size=BYTES), st.integers(0, 300), st.integers(0, 5))
def test_a_secret_orders_by_the_values_that_its_specification_names(key: bytes, count: int, epoch: int) -> None:
    values = hashlib.shake_256(key + f"order of pass {epoch}".encode()).digest(16 * count)
    expected = sorted(range(count), key=lambda index: values[16 * index : 16 * index + 16])
    assert flat(batch_order(count, 7, epoch + 1, Secret(key)))[epoch * count :] == expected


@settings(max_examples=25)
@given(st.one_of(st.integers(0, 2_000), st.integers(0, 100_000)), st.integers(1, 4_096), keys)
def test_a_pass_is_a_bijection_at_any_size_and_key(count: int, batch: int, key: int | Secret) -> None:
    order = batch_order(count, batch, 1, key)
    assert np.array_equal(np.sort(np.array(flat(order), np.int64)), np.arange(count))
    assert all(len(rows) == batch for rows in order[:-1])


@pytest.mark.parametrize("key", [0, SECRET], ids=NAMES)
def test_a_pass_is_a_bijection_of_a_million(key: int | Secret) -> None:
    found = np.array(flat(batch_order(10**6, 10**6, 1, key)))
    assert np.array_equal(np.bincount(found, minlength=10**6), np.ones(10**6))


@given(keys, keys, st.integers(50, 500))
def test_another_key_and_another_pass_have_another_order(one: int | Secret, other: int | Secret, count: int) -> None:
    first, second = batch_order(count, count, 2, one)
    assert first != second
    assert one == other or first != batch_order(count, count, 1, other)[0]


@settings(max_examples=40)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 9), st.integers(1, 8), keys)
def test_a_step_has_the_same_sequences_in_any_number_of_processes(
    count: int, batch: int, micro: int, world: int, key: int | Secret
) -> None:
    for rows in batch_order(count, batch, 2, key):
        shares = [
            Training._mine(cast(Training, SimpleNamespace(group=Group(rank, world))), rows, micro)
            for rank in range(world)
        ]
        assert sorted(index for share in shares for piece in share for index in piece) == sorted(rows)
        # Collectives have to match: each process makes as many passes.
        assert len({len(share) for share in shares}) == 1
        assert all(len(piece) <= micro for share in shares for piece in share)


def flat(order: list[list[int]]) -> list[int]:
    """Indices of all batches, one after the other."""
    return [index for batch in order for index in batch]
