"""Rows of float32 to the bytes of a GGUF type.

The bytes are llama.cpp's own: its public C function ``ggml_quantize_chunk`` is called inside the library that
xllamacpp carries. Where that library hides it, `libgguf` (a young package, extra ``quantise``) makes the same bytes. This
module is the only place that knows either.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from stillroom.core.errors import MissingDependency
from stillroom.core.extras import command
from stillroom.models.quantization import block

Array = np.ndarray
Encoder = Callable[[Array, int, "Array | None", Array], None]
"""Fills bytes [R, bytes per row] from rows [R, C], a type's number and the columns' importance [C]."""
PLAIN = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
PART = 1 << 20
"""Weights that one thread encodes at a time."""


def quantise(data: Array, kind: GGMLQuantizationType, importance: Array | None = None) -> Array:
    """Encode a tensor.

    Args:
        data: Float32, [..., C]; C is a multiple of the type's block.
        kind: The GGUF type.
        importance: What an error in each column costs, float32 [C]; None counts all alike.

    Returns:
        For F32 and F16 the numbers, else bytes, [..., bytes per row].

    Raises:
        MissingDependency: No library here can make this type.
    """
    data = np.ascontiguousarray(data, dtype=np.float32)
    if kind in PLAIN:
        encoded: Array = quantize(data, kind)
        return encoded
    weights, size = block(kind)
    columns = data.shape[-1]
    rows = data.reshape(-1, columns)
    if importance is not None:
        importance = np.ascontiguousarray(importance, dtype=np.float32)
        if importance.shape != (columns,):
            raise ValueError(f"an importance of {importance.shape} for rows of {columns}")
    out = np.empty((rows.shape[0], columns // weights * size), np.uint8)
    encode = _encoder()
    step = max(1, PART // columns)
    parts = [slice(start, start + step) for start in range(0, rows.shape[0], step)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(lambda part: encode(rows[part], int(kind), importance, out[part]), parts))
    return out.reshape(*data.shape[:-1], out.shape[1])


def has_encoder() -> bool:
    """Whether a library here makes the types that are not plain numbers."""
    return (llama_cpp_encoder() or libgguf_encoder()) is not None


@functools.lru_cache(maxsize=1)
def _encoder() -> Encoder:
    """The first library that is there."""
    encoder = llama_cpp_encoder() or libgguf_encoder()
    if encoder is None:
        raise MissingDependency(
            "The llama.cpp library of xllamacpp does not show its quantisation here, and libgguf is not installed.",
            f"Install it: {command('quantise')}; or export F16, BF16 and no other.",
        )
    return encoder


def llama_cpp_encoder() -> Encoder | None:
    """llama.cpp's own function, or None where the library does not show it."""
    function = _llama_cpp_function()
    if function is None:
        return None
    # size_t (enum ggml_type, const float *, void *, int64_t start, int64_t rows, int64_t columns, const float *)
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    function.restype = ctypes.c_size_t

    def encode(rows: Array, kind: int, importance: Array | None, out: Array) -> None:
        weight = None if importance is None else importance.ctypes.data
        function(kind, rows.ctypes.data, out.ctypes.data, 0, rows.shape[0], rows.shape[1], weight)

    return encode


def _llama_cpp_function() -> ctypes._NamedFuncPointer | None:
    spec = importlib.util.find_spec("xllamacpp")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(folder).glob("xllamacpp*.*")):
            if file.suffix in (".so", ".pyd", ".dylib"):
                with contextlib.suppress(OSError, AttributeError):
                    return ctypes.CDLL(str(file)).ggml_quantize_chunk
    return None


def libgguf_encoder() -> Encoder | None:
    """libgguf, or None where it is not installed."""
    if importlib.util.find_spec("libgguf") is None:
        return None
    import libgguf

    def encode(rows: Array, kind: int, importance: Array | None, out: Array) -> None:
        out[:] = np.asarray(libgguf.quantize_rows(rows, kind, importance)).view(np.uint8).reshape(out.shape)

    return encode
