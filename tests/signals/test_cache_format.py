"""A reader of the cache written from docs/cache-format.md alone, in plain Python, reads what Stillroom reads."""

from __future__ import annotations

import hashlib
import json
import struct

import pytest
import torch
import zstandard
from cache_material import identity, sequences_of, write_cache
from safetensors.numpy import load

from stillroom.recipe.capture import ThresholdCodec
from stillroom.signals.cache.reader import TeacherCache

BOUNDS = [*range(1, 25), 28, 32, 40, 48, 64, 96, 128, 192, 256, 512, 1024, 4096]


class Bits:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, width):
        value = 0
        for index in range(width):
            byte, bit = divmod(self.at, 8)
            value |= (self.data[byte] >> bit & 1) << index
            self.at += 1
        return value


class Lanes:
    def __init__(self, states, words):
        self.states, self.words, self.read = list(states), words, 0

    def column(self, tables, contexts):
        found = []
        for index, context in enumerate(contexts):
            x, before = self.states[index % 32], 0
            for symbol, frequency in enumerate(tables[context]):  # noqa: B007
                if x % 2**14 < before + frequency:
                    break
                before += frequency
            x = frequency * (x // 2**14) + x % 2**14 - before
            if x < 2**16:
                x = x * 2**16 + self.words[self.read]
                self.read += 1
            self.states[index % 32] = x
            found.append(symbol)
        return found


def open_bits(symbol):
    return 0 if symbol < 128 else (symbol - 128) // 16 + 7 - 4


def number(symbol, bits):
    if symbol < 128:
        return symbol
    return ((16 + (symbol - 128) % 16) << open_bits(symbol)) + bits


def read_record(record, rows, model, vocabulary_size):
    (count,) = struct.unpack_from("<I", record)
    lanes = Lanes(struct.unpack_from("<32I", record, 4), struct.unpack_from(f"<{count}H", record, 132))
    loose = Bits(record[132 + 2 * count :])
    listed = [sum(int(byte) << 8 * place for place, byte in enumerate(column)) for column in model["listed"].T]
    symbols = lanes.column(model["counts"].tolist(), [0] * rows)
    counts = [number(symbol, loose.take(open_bits(symbol))) for symbol in symbols]
    contexts = [sum(bound <= entries for bound in BOUNDS) for entries in counts for _ in range(entries)]
    steps = lanes.column(model["steps"].tolist(), contexts)
    levels = lanes.column(model["levels"].tolist(), contexts)
    assert set(lanes.states) == {2**16}
    assert lanes.read == count
    firsts, first = [], 0
    for bits in model["bucket_bits"]:
        firsts.append(first)
        first += 2 ** int(bits)
    ids = []
    at = iter(steps)
    for entries in counts:
        bucket = 0
        for _ in range(entries):
            bucket += next(at)
            if bucket == 127:
                ids.append(loose.take(max(1, (vocabulary_size - 1).bit_length())))
            else:
                ids.append(listed[firsts[bucket] + loose.take(int(model["bucket_bits"][bucket]))])
    levels = [number(symbol, loose.take(open_bits(symbol))) for symbol in levels]
    return counts, ids, levels


@pytest.mark.parametrize(("tau", "draws"), [(1 / 12, 1), (1 / 300, 1), (1 / 8, 2)])
def test_a_reader_written_from_the_document(tmp_path, tau, draws):
    text = sequences_of(5, 24, vocabulary_size=3000)
    write_cache(tmp_path, text, identity(ThresholdCodec(tau=tau, draws=draws), 3000))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    packed = (tmp_path / manifest["model"]["name"]).read_bytes()
    assert hashlib.sha256(packed).hexdigest() == manifest["model"]["sha256"]
    model = load(zstandard.ZstdDecompressor().decompressobj().decompress(packed))
    cache = TeacherCache.open(tmp_path)
    seen = 0
    for entry in manifest["shards"]:
        raw = (tmp_path / entry["name"]).read_bytes()
        assert hashlib.sha256(raw).hexdigest() == entry["sha256"]
        shard = load(raw)
        for index in range(entry["sequences"]):
            begin, end = shard["offsets"][index : index + 2]
            positions = int(shard["positions"][index])
            record = shard["payload"][begin:end].tobytes()
            counts, ids, levels = read_record(record, draws * positions, model, 3000)
            expected = torch.zeros(positions, 3000)
            row = torch.arange(positions).repeat(draws).repeat_interleave(torch.tensor(counts))
            expected.index_put_((row, torch.tensor(ids)), torch.tensor(levels) * (tau / 2 / draws), accumulate=True)
            signal = cache.read([bytes(shard["digests"][index]).hex()])[0]
            ours = torch.zeros(positions, 3000).scatter_add_(1, signal.ids, signal.weights)
            assert torch.allclose(ours, expected, atol=1e-6)
            seen += 1
    assert seen == 5
