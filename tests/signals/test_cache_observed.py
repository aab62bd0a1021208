"""The codecs `observed` and `hidden`: readers written from the document alone, and what comes back is what went in."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from cache_material import identity, logprobs_of, sequences_of
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from stillroom.core.errors import CacheDamaged, SignalError
from stillroom.models.forward import Head
from stillroom.recipe.capture import DenseCodec, HiddenCodec, ObservedCodec
from stillroom.signals.cache.hidden import Hidden, OutputLayer
from stillroom.signals.cache.observed import Observed
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.writer import CacheWriter
from stillroom.signals.signal import CoarseSignal

IDS, WIDTH = 300, 16


class Columns:
    """Columns as docs/cache-format.md describes them."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int, width: int) -> list[int]:
        planes = []
        for _ in range(width):
            method, length = struct.unpack_from("<BI", self.data, self.at)
            stored = self.data[self.at + 5 : self.at + 5 + length]
            self.at += 5 + length
            planes.append(zstandard.decompress(stored, max_output_size=count) if method else stored)
        return [sum(plane[index] << 8 * place for place, plane in enumerate(planes)) for index in range(count)]


def as_float(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def listed(positions: int, k: int, seed: int) -> CoarseSignal:
    best, ids = logprobs_of(positions, IDS, seed).topk(k, dim=1)
    return CoarseSignal(ids, best, (1 - best.double().exp().sum(1)).clamp_min(0).float())


def records(folder: Path) -> Any:
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["shards"]:
        shard = load((folder / entry["name"]).read_bytes())
        for index in range(entry["sequences"]):
            begin, end = shard["offsets"][index : index + 2]
            digest = bytes(shard["digests"][index]).hex()
            yield digest, int(shard["positions"][index]), shard["payload"][begin:end].tobytes()


def test_a_reader_of_observed_written_from_the_document(tmp_path: Path) -> None:
    text = sequences_of(3, 24, IDS)
    writer = CacheWriter.open(tmp_path, identity(ObservedCodec(k=7), IDS))
    kept = {digest: listed(4 + index, 7, index) for index, digest in enumerate(text.digests)}
    for digest, signal in kept.items():
        writer.add_listed(digest, signal)
    writer.flush()
    cache = TeacherCache.open(tmp_path)
    for digest, positions, record in records(tmp_path):
        columns = Columns(record)
        rest = [as_float(bits) for bits in columns.take(positions, 4)]
        ids = columns.take(7 * positions, 2)
        logprobs = [as_float(bits << 8) for bits in columns.take(7 * positions, 3)]
        said = kept[digest]
        assert ids == said.ids.flatten().tolist()
        assert logprobs == pytest.approx(said.logprobs.flatten().tolist(), rel=2**-16)
        assert rest == pytest.approx(said.rest.tolist(), rel=1e-6)
        read = cache.read([digest])[0]
        assert isinstance(read, CoarseSignal)
        assert read.logprobs.flatten().tolist() == logprobs
        events = torch.cat([said.logprobs, said.rest.log()[:, None]], 1)
        assert cache.entropy(digest) == pytest.approx(-float((events.exp() * events).sum()), rel=1e-4)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 999))
def test_a_longer_list_is_cut_and_a_shorter_one_is_filled(k: int, given: int, seed: int) -> None:
    codec = Observed(k, IDS)
    signal = listed(3, given, seed)
    order = torch.randperm(given, generator=torch.Generator().manual_seed(seed))
    mixed = CoarseSignal(signal.ids[:, order], signal.logprobs[:, order], signal.rest)
    kept = codec.observe(mixed)
    again = codec.decode([codec.pack(kept)], [3])
    assert again.fault(IDS) is None
    assert again.listed.sum(1).tolist() == [min(k, given)] * 3
    assert torch.allclose(again.logprobs[:, : min(k, given)], signal.logprobs[:, :k], rtol=1e-4)
    assert torch.allclose(again.rest, 1 - again.logprobs.exp().sum(1), atol=1e-3)


def test_what_contradicts_itself_or_is_something_else_is_refused(tmp_path: Path) -> None:
    writer = CacheWriter.open(tmp_path / "observed", identity(ObservedCodec(k=4), IDS))
    twice = CoarseSignal(torch.tensor([[1, 1]]), torch.tensor([[0.5, 0.25]]).log(), torch.tensor([0.25]))
    with pytest.raises(SignalError, match="twice"):
        writer.add_listed("0" * 64, twice)
    dense = CacheWriter.open(tmp_path / "dense", identity(DenseCodec(), IDS))
    with pytest.raises(SignalError, match="stores something else"):
        dense.add_listed("0" * 64, listed(2, 4, 0))
    with pytest.raises(SignalError, match="no hidden states"):
        dense.add_hidden("0" * 64, torch.zeros(2, WIDTH))
    hidden = CacheWriter.open(tmp_path / "hidden", identity(HiddenCodec(), IDS))
    with pytest.raises(SignalError, match="gives distributions"):
        hidden.add("0" * 64, torch.zeros(2, IDS))
    with pytest.raises(SignalError, match="output layer"):
        hidden.add_hidden("0" * 64, torch.zeros(2, WIDTH))


def layer_of(dtype: torch.dtype, *, bias: bool = False, softcap: float | None = None) -> OutputLayer:
    torch.manual_seed(3)
    head = Head(torch.randn(IDS, WIDTH).to(dtype), torch.randn(IDS).to(dtype) if bias else None, 0.5, softcap)
    return OutputLayer(head, 1.5)


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize(("bias", "softcap"), [(False, None), (True, 5.0)])
def test_a_reader_of_hidden_written_from_the_document(
    tmp_path: Path, bits: int, bias: bool, softcap: float | None
) -> None:
    layer = layer_of(torch.bfloat16, bias=bias, softcap=softcap)
    text = sequences_of(3, 24, IDS)
    writer = CacheWriter.open(tmp_path, identity(HiddenCodec(bits=bits), IDS, temperature=1.5))
    writer.take_output_layer(layer)
    states = {digest: torch.randn(5 + index, WIDTH).bfloat16() for index, digest in enumerate(text.digests)}
    for digest, hidden in states.items():
        assert writer.add_hidden(digest, hidden)
        writer.flush()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    packed = (tmp_path / manifest["model"]["name"]).read_bytes()
    from safetensors.torch import load as load_torch

    stored = load_torch(zstandard.ZstdDecompressor().decompressobj().decompress(packed))
    scale, cap, temperature = stored["numbers"].tolist()
    cache = TeacherCache.open(tmp_path)
    for digest, positions, record in records(tmp_path):
        columns = Columns(record)
        if bits == 16:
            plain = [as_float(number << 16) for number in columns.take(WIDTH * positions, 2)]
        else:
            scales = [as_float(number) for number in columns.take(WIDTH, 4)]
            whole = columns.take(WIDTH * positions, 1)
            plain = [(number - 128) * scales[index // positions] for index, number in enumerate(whole)]
        hidden = torch.tensor(plain).reshape(WIDTH, positions).T
        assert torch.allclose(hidden, states[digest].float(), atol=0 if bits == 16 else 0.02)
        logits = hidden.bfloat16() @ stored["matrix"].T
        logits = logits.float() if "bias" not in stored else (logits + stored["bias"]).float()
        logits = scale * logits if cap == 0 else cap * torch.tanh(scale * logits / cap)
        read = cache.read([digest])[0].logprobs
        assert torch.allclose(read, torch.log_softmax(logits / temperature, 1), atol=0.05)
        assert torch.allclose(read.exp().sum(1), torch.ones(positions), atol=1e-4)
        if bits == 16:
            # The stored states are the teacher's own, so that the distribution is, to the bit.
            live = torch.cat([torch.log_softmax(part, 1) for part in layer.logits(states[digest])])
            assert torch.equal(read, live)


def test_a_damaged_output_layer_is_named() -> None:
    data = layer_of(torch.float32).dump()
    assert OutputLayer.load(data, IDS).temperature == 1.5
    for wrong in (data[:-9], b"", data[:50] + bytes(30) + data[80:]):
        with pytest.raises(CacheDamaged):
            OutputLayer.load(wrong, IDS)
    with pytest.raises(CacheDamaged, match="output layer"):
        OutputLayer.load(data, IDS + 1)
    with pytest.raises(CacheDamaged, match="no output layer"):
        Hidden(16, IDS).decode([b""], [0])
