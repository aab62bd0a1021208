"""Weights that are not finite are named, in every type that a file may have them in."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize
from safetensors.torch import save_file

from stillroom.core.errors import InspectionRefused
from stillroom.inspection.gguf_header import BLOCKS, read_gguf
from stillroom.inspection.inspect import report, require_safe
from stillroom.inspection.weights import GGUF_SCALES, require_finite_weights

BAD = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("kind", GGUF_SCALES)
def test_scales_are_where_gguf_reads_them(kind: int) -> None:
    size = BLOCKS[kind][1]
    seen = []
    for at in range(0, size - 1, 2):
        block = np.zeros((1, size), np.uint8)
        block[0, at : at + 2] = np.frombuffer(struct.pack("<e", float("nan")), np.uint8)
        with np.errstate(all="ignore"):
            if not np.isfinite(dequantize(block, GGMLQuantizationType(kind))).all():
                seen.append(at)
    assert tuple(seen) == GGUF_SCALES[kind]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_a_gguf_file(tmp_path: Path, kind: str, value: float) -> None:
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "llama")
    types = {"F32": np.float32, "F16": np.float16}
    for name in ("a", "b"):
        if kind in types:
            writer.add_tensor(name, np.ones((4, 32), types[kind]))
        else:
            writer.add_tensor(name, np.ones((4, 34), np.uint8), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    require_finite_weights(path)
    assert report(path)["safe"]
    header = read_gguf(path)
    with open(path, "r+b") as stream:
        stream.seek(header.data_offset + header.offsets["b"])
        stream.write(struct.pack("<f" if kind == "F32" else "<e", value))
    with pytest.raises(InspectionRefused, match=r"the tensor 'b' has 1 numbers that are not finite"):
        require_finite_weights(path)
    found = report(path)
    assert not found["safe"]
    assert "not finite" in found["refused"][0]["reason"]
    require_safe(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("value", BAD)
def test_a_safetensors_file(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    path = tmp_path / "m.safetensors"
    weights = torch.linspace(-2, 2, 30).reshape(5, 6)
    save_file({"a": weights.to(dtype), "n": torch.tensor([2**31 - 1]), "s": torch.tensor(1.0)}, path)
    require_finite_weights(path)
    weights[2, 3] = weights[4, 5] = value
    save_file({"a": weights.to(dtype), "s": torch.tensor(value)}, path)
    with pytest.raises(
        InspectionRefused, match=r"'\w' has \d numbers that are not finite .*; so have others, 2 in all"
    ):
        require_finite_weights(path)
