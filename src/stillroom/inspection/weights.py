"""Weights that are not finite (NaN or infinite): a model that has them predicts nothing.

A file is read once, in pieces; of quantized blocks the scales alone, which are all that can be no number. Blocks whose scales
are not float16 (IQ1_M, MXFP4, NVFP4, Q8_1, Q8_K), or that gguf does not read (Q1_0), are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stillroom.core.errors import InspectionRefused
from stillroom.inspection.gguf_header import BLOCKS, MAGIC, read_gguf
from stillroom.inspection.safetensors_header import BITS, read_safetensors

PIECE = 1 << 24
"""Bytes that are looked at in one step."""
FLOATS = {
    "F64": ("<u8", 0x7FF0 << 48), "F32": ("<u4", 0x7F80 << 16), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C), "F8_E4M3": ("u1", 0x7F), "F8_E8M0": ("u1", 0xFF),
}  # fmt: skip
"""Bits that are all set in what is not finite, by the names of safetensors."""
GGUF_FLOATS = {0: "F32", 1: "F16", 28: "F64", 30: "BF16"}
GGUF_SCALES = {
    2: (0,), 3: (0, 2), 6: (0,), 7: (0, 2), 8: (0,), 10: (80, 82), 11: (108,), 12: (0, 2), 13: (0, 2), 14: (208,), 16: (0,),
    17: (0,), 18: (0,), 19: (0,), 20: (0,), 21: (0,), 22: (0,), 23: (0,), 34: (52,), 35: (64,),
}  # fmt: skip
"""Where the scales of a block are, in float16 (ggml-common.h; held against gguf's own reading, under test)."""


def require_finite_weights(path: Path) -> None:
    """Refuse a file of weights that has one that is not finite.

    Args:
        path: A GGUF or safetensors file whose header is sound.

    Raises:
        InspectionRefused: Names the first tensor, and says how many there are.
    """
    found = [(name, count) for name, count in _counts(path) if count]
    if found:
        name, count = found[0]
        others = f"; so have others, {len(found):,} in all" if len(found) > 1 else ""
        raise InspectionRefused(
            f"{path}: the tensor {name[:80]!r} has {count:,} numbers that are not finite (NaN or infinite){others}.",
            "Get the file again, or export the model anew.",
        )


def _counts(path: Path) -> Iterator[tuple[str, int]]:
    """How many numbers of each tensor are not finite; of a quantized one, how many scales."""
    data = np.memmap(path, np.uint8, "r")
    for name, begin, size, block, scales in _tensors(path):
        yield name, _count(data[begin : begin + size], block, scales)


def _tensors(path: Path) -> Iterator[tuple[str, int, int, int, list[tuple[int, str]]]]:
    """Every tensor that may have such numbers: name, beginning, bytes, bytes of a block, and the floats in each block."""
    with open(path, "rb") as stream:
        is_gguf = stream.read(len(MAGIC)) == MAGIC
    if not is_gguf:
        weights = read_safetensors(path)
        for name, (dtype, shape) in weights.tensors.items():
            if dtype in FLOATS:
                size = BITS[dtype] // 8
                yield name, weights.offsets[name], size * int(np.prod(shape, dtype=object)), size, [(0, dtype)]
        return
    header = read_gguf(path)
    for name, (_, kind, size) in header.tensors.items():
        begin, block = header.data_offset + header.offsets[name], BLOCKS[kind][1]
        if kind in GGUF_FLOATS:
            yield name, begin, size, block, [(0, GGUF_FLOATS[kind])]
        elif kind in GGUF_SCALES:
            yield name, begin, size, block, [(at, "F16") for at in GGUF_SCALES[kind]]


def _count(data: npt.NDArray[np.uint8], block: int, floats: list[tuple[int, str]]) -> int:
    blocks = data.reshape(-1, block)
    step = max(1, PIECE // block)
    found = 0
    for start in range(0, len(blocks), step):
        piece = blocks[start : start + step]
        for at, dtype in floats:
            kind, bits = FLOATS[dtype]
            values = np.ascontiguousarray(piece[:, at : at + np.dtype(kind).itemsize]).view(kind)
            found += int(np.count_nonzero((values & bits) == bits))
    return found
