"""Quantised bytes: two independent libraries agree, and decoding brings the numbers back."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.core.errors import MissingDependency
from stillroom.formats import quantise as room
from stillroom.formats.quantise import libgguf_encoder, llama_cpp_encoder, quantise
from stillroom.models.quantization import block, tensor_bytes

TYPES = (Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.IQ4_NL, Type.Q4_K, Type.Q5_K, Type.Q6_K)
# Root mean square error against that of the numbers, by bits a weight.
COARSE = {Type.Q8_0: 0.01, Type.Q6_K: 0.03, Type.Q5_0: 0.05, Type.Q5_1: 0.05, Type.Q5_K: 0.05}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_llama_cpp_and_libgguf_make_the_same_bytes(kind: Type, weighted: bool) -> None:
    first, second = llama_cpp_encoder(), libgguf_encoder()
    if first is None or second is None:
        pytest.skip("one of the two libraries is not here")
    generator = np.random.default_rng(int(kind))
    rows = generator.standard_normal((6, 512)).astype(np.float32)
    weight = generator.random(512).astype(np.float32) if weighted else None
    weights, size = block(kind)
    out = [np.zeros((6, 512 // weights * size), np.uint8) for _ in range(2)]
    first(rows, int(kind), weight, out[0])
    second(rows, int(kind), weight, out[1])
    assert out[0].any()
    assert np.array_equal(*out)


@pytest.mark.parametrize("kind", TYPES)
@given(rows=st.integers(1, 5), blocks=st.integers(1, 3), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_decoding_brings_the_numbers_back(kind: Type, rows: int, blocks: int, scale: float, seed: int) -> None:
    data = (np.random.default_rng(seed).standard_normal((rows, blocks * 256)) * scale).astype(np.float32)
    encoded = quantise(data, kind)
    assert encoded.nbytes == tensor_bytes(data.shape, kind)
    back = dequantize(encoded, kind)
    error = np.sqrt(((back - data) ** 2).mean() / (data**2).mean())
    assert error < COARSE.get(kind, 0.12)


def test_q8_0_is_the_gguf_library_s_own() -> None:
    data = np.random.default_rng(1).standard_normal((3, 4, 96)).astype(np.float32)
    assert np.array_equal(quantise(data, Type.Q8_0), quantize(data, Type.Q8_0))


def test_importance_lowers_the_weighted_error() -> None:
    generator = np.random.default_rng(2)
    data = generator.standard_normal((64, 512)).astype(np.float32)
    weight = np.exp(2 * generator.standard_normal(512)).astype(np.float32)
    for kind in (Type.Q4_0, Type.IQ4_NL, Type.Q4_K, Type.Q5_K):
        errors = [
            ((dequantize(quantise(data, kind, importance), kind) - data) ** 2 * weight).sum()
            for importance in (None, weight)
        ]
        assert errors[1] < 0.97 * errors[0], kind


def test_an_importance_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="importance"):
        quantise(np.ones((2, 64), np.float32), Type.Q4_0, np.ones(32, np.float32))


def test_without_both_libraries_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "llama_cpp_encoder", lambda: None)
    monkeypatch.setattr(room, "libgguf_encoder", lambda: None)
    room._encoder.cache_clear()
    try:
        with pytest.raises(MissingDependency, match=r"stillroom\[quantise\]"):
            quantise(np.ones((2, 64), np.float32), Type.Q4_0)
        assert quantise(np.ones((2, 64), np.float32), Type.F16).dtype == np.float16
    finally:
        room._encoder.cache_clear()


def test_libgguf_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    if libgguf_encoder() is None:
        pytest.skip("libgguf is not here")
    data = np.random.default_rng(3).standard_normal((4, 256)).astype(np.float32)
    own = quantise(data, Type.Q4_K)
    monkeypatch.setattr(room, "llama_cpp_encoder", lambda: None)
    room._encoder.cache_clear()
    try:
        assert np.array_equal(quantise(data, Type.Q4_K), own)
    finally:
        room._encoder.cache_clear()
