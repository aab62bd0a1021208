"""The entropy coder and its helpers: what is decoded is what was encoded, and damage is noticed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.signals.cache.bits import pack_bits, unpack_bits
from stillroom.signals.cache.columns import ColumnReader, id_width, pack_columns
from stillroom.signals.cache.entry_model import (
    CLASSES,
    EntryModel,
    alphabet_of,
    classes_of,
    numbers_of,
    symbols_of,
    widths_of,
)
from stillroom.signals.cache.rans import TOTAL, Decoder, FrequencyTable, encode


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(2, 300), st.integers(1, 5))
def test_columns_of_several_records_come_back(seed, records, alphabet, contexts):
    random = np.random.default_rng(seed)
    skew = random.dirichlet(np.full(alphabet, 0.1), contexts)
    table = FrequencyTable.of_counts((skew * 1000).astype(np.int64))
    parts = []
    for _ in range(records):
        columns = []
        for _ in range(2):
            context = random.integers(contexts, size=random.integers(0, 200))
            symbols = np.asarray([random.choice(alphabet, p=skew[c]) for c in context], dtype=np.int64)
            columns.append((table, context, symbols))
        parts.append(columns)
    encoded = [encode(columns) for columns in parts]
    decoder = Decoder(np.stack([states for states, _ in encoded]), [words for _, words in encoded])
    for column in range(2):
        found = decoder.column(table, [columns[column][1] for columns in parts])
        for ours, columns in zip(found, parts, strict=True):
            assert np.array_equal(ours, columns[column][2])
    assert decoder.whole()


def test_the_code_is_as_short_as_the_entropy_allows():
    random = np.random.default_rng(0)
    p = np.asarray([0.7, 0.2, 0.05, 0.05])
    symbols = random.choice(4, size=20_000, p=p)
    table = FrequencyTable.of_counts(np.bincount(symbols)[None])
    _, words = encode([(table, np.zeros(len(symbols), np.int64), symbols)])
    entropy = -(p * np.log2(p)).sum() * len(symbols)
    assert 16 * len(words) <= 1.02 * entropy


def test_damaged_words_are_noticed():
    random = np.random.default_rng(1)
    symbols = random.integers(8, size=500)
    table = FrequencyTable.of_counts(np.ones((1, 8), np.int64))
    states, words = encode([(table, np.zeros(500, np.int64), symbols)])
    for broken in (words[:-1], np.append(words, np.uint16(1)), words ^ np.uint16(4)):
        decoder = Decoder(states[None], [broken])
        decoder.column(table, [np.zeros(500, np.int64)])
        assert not decoder.whole()


@given(st.lists(st.lists(st.integers(0, 10**6), min_size=5, max_size=5), min_size=1, max_size=4))
def test_frequencies_are_positive_and_sum_to_the_total(counts):
    table = FrequencyTable.of_counts(np.asarray(counts, dtype=np.int64))
    assert (table.frequencies >= 1).all()
    assert (table.frequencies.sum(axis=1) == TOTAL).all()
    with pytest.raises(ValueError, match="sum to"):
        FrequencyTable(table.frequencies - 1)


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)), max_size=40))
def test_bits_come_back(pairs):
    values = np.asarray([value & ((1 << width) - 1) for value, width in pairs], dtype=np.int64)
    widths = np.asarray([width for _, width in pairs], dtype=np.int64)
    data = np.frombuffer(pack_bits(values, widths), np.uint8)
    assert np.array_equal(unpack_bits(data, widths), values)
    with pytest.raises(ValueError, match="are not"):
        unpack_bits(np.append(data, np.uint8(0)), widths)


@given(st.lists(st.integers(0, 2**31), min_size=1))
def test_numbers_are_a_symbol_and_some_bits(numbers):
    array = np.asarray(numbers, dtype=np.int64)
    symbols, bits, widths = symbols_of(array)
    assert np.array_equal(widths, widths_of(symbols))
    assert np.array_equal(numbers_of(symbols, bits), array)
    assert symbols.max() < alphabet_of(int(array.max()))


def test_classes_of_counts():
    assert classes_of(np.asarray([0, 1, 24, 27, 28, 5000])).tolist() == [0, 1, 24, 24, 25, len(CLASSES)]


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3, 129, 5000]), st.integers(0, 30))
def test_every_id_has_a_place_and_the_model_survives_its_file(seed, size, rows):
    random = np.random.default_rng(seed)
    counts = random.integers(0, min(size, 6), size=rows)
    ids = random.integers(size, size=int(counts.sum()))
    levels = random.integers(1, 9, size=len(ids))
    fitted = EntryModel.fit(counts, ids, levels, size, (8, 10))
    model = EntryModel.load(fitted.dump(), size)
    everything = np.arange(size)
    buckets, inside = model.place(everything)
    assert np.array_equal(model.ids(buckets, inside), everything)
    assert (inside < 1 << model.widths(buckets)).all()
    assert np.array_equal(model.listed, fitted.listed)
    for name in ("counts", "steps", "levels"):
        assert np.array_equal(getattr(model, name).frequencies, getattr(fitted, name).frequencies)


def test_a_damaged_model_is_refused():
    with pytest.raises(ValueError, match=r"."):
        EntryModel.load(b"not a model", 10)


@given(st.lists(st.integers(0, 2**24 - 1), max_size=50))
def test_packed_columns_come_back(values):
    column = np.asarray(values, dtype=np.int64)
    reader = ColumnReader(pack_columns([(column, 3), (column % 7, 1)]))
    assert np.array_equal(reader.column(len(values), 3), column)
    assert np.array_equal(reader.column(len(values), 1), column % 7)


@pytest.mark.parametrize(("size", "width"), [(1, 1), (256, 1), (257, 2), (49_152, 2), (151_936, 3), (2**32, 4)])
def test_the_width_of_an_id(size, width):
    assert id_width(size) == width
