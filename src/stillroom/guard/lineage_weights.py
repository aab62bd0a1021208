"""Feed-forward units of a stored model, layer by layer: what weight tests compare. Never more than a layer is in memory.

A unit is one row of the gate and of the up projection, and one column of the down projection. Hugging Face folders
(safetensors) and GGUF files are read; quantized GGUF is dequantized, row by row.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stillroom.core.errors import UsageError
from stillroom.inspection.inspect import require_safe

Floats = npt.NDArray[np.float32]
Reader = Callable[[slice | None], Floats]
"""Reads rows (a slice, or all) of a matrix [out, in]."""

_HF = re.compile(r"(?P<block>.*\blayers\.\d+\..*?)(?P<part>gate_up_proj|gate_proj|up_proj|down_proj|w1|w2|w3)\.weight$")
_HF_PARTS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_GGUF = re.compile(r"blk\.(?P<layer>\d+)\.ffn_(?P<part>gate|up|down)(?P<experts>_exps)?\.weight$")
_FLOATS = ("F64", "F32", "F16", "BF16")
PIECE = 1024
"""Rows of a stored matrix that are read at once."""


@dataclass(frozen=True)
class Block:
    """The feed-forward part of one layer (or one expert of it).

    Attributes:
        name: As the file calls it.
        units: n, how many units it has.
        width: d, the width of the residual stream.
        parts: By ``gate``, ``up`` and ``down``: reads the matrix.
        file: The folder or file that it is in.
    """

    name: str
    units: int
    width: int
    parts: dict[str, Reader]
    file: Path = Path()

    def rows(self, part: str, step: int = 1) -> Floats:
        """Every ``step``-th unit's row [units / step, width] of ``gate``, ``up``, or of ``down`` transposed."""
        if part == "down":
            # Units are columns here: the whole matrix is read.
            return np.ascontiguousarray(self.parts[part](None).T[::step])
        return self.parts[part](slice(None, None, step))

    @property
    def shared(self) -> tuple[str, ...]:
        """Parts that there are, in the order that features are stacked in."""
        return tuple(part for part in ("gate", "up", "down") if part in self.parts)


@dataclass(frozen=True)
class StoredUnits:
    """The feed-forward blocks of a stored model, in order."""

    path: Path
    blocks: tuple[Block, ...]


def open_units(path: Path) -> StoredUnits:
    """Find the feed-forward blocks of a model. The file is checked before anything is read from it.

    Args:
        path: A Hugging Face folder or a GGUF file.

    Raises:
        UsageError: It is neither, or holds no feed-forward units that are known.
        InspectionRefused: It is not safe to open.
    """
    if path.is_dir():
        if not any(path.glob("*.safetensors")):
            raise UsageError(
                f"{path} holds no safetensors.", "Give a Hugging Face folder with *.safetensors, or a GGUF file."
            )
        require_safe(path)
        blocks = _of_folder(path)
    elif path.is_file() and path.suffix.lower() == ".gguf":
        require_safe(path)
        blocks = _of_gguf(path)
    else:
        raise UsageError(f"{path}: no such model.", "Give a Hugging Face folder or a GGUF file.")
    if not blocks:
        raise UsageError(
            f"{path}: no feed-forward units were found: tensors are not named as in a model that is known.",
            "Give the model as a Hugging Face folder or as GGUF, with its usual tensor names.",
        )
    return StoredUnits(path, tuple(blocks))


def _of_folder(folder: Path) -> list[Block]:
    from stillroom.inspection.safetensors_header import read_safetensors

    found: dict[str, dict[str, tuple[Path, str, tuple[int, ...]]]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, (kind, shape) in read_safetensors(file).tensors.items():
            match = _HF.fullmatch(name)
            if match is None or len(shape) != 2:
                continue
            if kind not in _FLOATS:
                raise UsageError(
                    f"{file}: {name} is stored as {kind}; its numbers mean nothing without the library that packed it.",
                    "Dequantize the model first (save it as float16 or bfloat16), or give it as GGUF.",
                )
            part = match["part"]
            found.setdefault(match["block"], {})[_HF_PARTS.get(part, part)] = (file, name, shape)
    blocks = []
    for name in sorted(found, key=_natural):
        parts = found[name]
        readers: dict[str, Reader] = {}
        if "gate_up_proj" in parts:
            file, tensor, shape = parts["gate_up_proj"]
            half, width = shape[0] // 2, shape[1]
            readers["gate"] = _safetensors(file, tensor, 0, half)
            readers["up"] = _safetensors(file, tensor, half, shape[0])
            units = half
        elif "up_proj" in parts:
            units, width = parts["up_proj"][2]
            for part, key in (("gate", "gate_proj"), ("up", "up_proj")):
                if key in parts and parts[key][2] == (units, width):
                    file, tensor, shape = parts[key]
                    readers[part] = _safetensors(file, tensor, 0, shape[0])
        else:
            continue
        if "down_proj" in parts and parts["down_proj"][2] == (width, units):
            file, tensor, shape = parts["down_proj"]
            readers["down"] = _safetensors(file, tensor, 0, shape[0])
        if units and width:
            blocks.append(Block(name.rstrip("."), units, width, readers, folder))
    return blocks


def _safetensors(file: Path, name: str, start: int, stop: int) -> Reader:
    def read(rows: slice | None) -> Floats:
        from safetensors import safe_open

        first, last, step = (rows or slice(None)).indices(stop - start)
        with safe_open(file, "pt") as opened:
            part: Any = opened.get_slice(name)[start + first : start + max(first, last)]
            numbers: Floats = part[::step].float().numpy()
        return numbers

    return read


def _of_gguf(path: Path) -> list[Block]:
    from stillroom.models.gguf_reader import QuickReader

    found: dict[int, dict[str, Any]] = {}
    for tensor in QuickReader(path).tensors:
        match = _GGUF.fullmatch(tensor.name)
        if match is not None:
            found.setdefault(int(match["layer"]), {})[match["part"]] = tensor
    blocks = []
    for layer in sorted(found):
        tensors = found[layer]
        if "up" not in tensors:
            continue
        # GGUF says sizes from the fastest axis on: [in, out] or [in, out, experts].
        sizes = [int(size) for size in tensors["up"].shape]
        width, units = sizes[0], sizes[1]
        fused = "gate" not in tensors and "down" in tensors and 2 * int(tensors["down"].shape[0]) == units
        units = units // 2 if fused else units
        for expert in range(sizes[2] if len(sizes) == 3 else 1):
            readers: dict[str, Reader] = {}
            if fused:
                readers["gate"] = _dequantized(tensors["up"], expert, 0, units)
                readers["up"] = _dequantized(tensors["up"], expert, units, 2 * units)
            else:
                for part in ("gate", "up"):
                    if part in tensors and list(tensors[part].shape) == list(tensors["up"].shape):
                        readers[part] = _dequantized(tensors[part], expert, 0, units)
            if "down" in tensors and [int(size) for size in tensors["down"].shape][:2] == [units, width]:
                readers["down"] = _dequantized(tensors["down"], expert, 0, width)
            name = f"blk.{layer}" + (f".expert.{expert}" if len(sizes) == 3 else "")
            blocks.append(Block(name, units, width, readers, path))
    return blocks


def _dequantized(tensor: Any, expert: int, start: int, stop: int) -> Reader:
    def read(rows: slice | None) -> Floats:
        from gguf import dequantize

        stored = tensor.data if tensor.data.ndim == 2 else tensor.data[expert]
        chosen = stored[start:stop] if rows is None else stored[start:stop][rows]
        numbers: Floats = dequantize(np.ascontiguousarray(chosen), tensor.tensor_type).astype(np.float32)
        return numbers

    return read


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def unit_features(block: Block, parts: tuple[str, ...], step: int = 1) -> Floats:
    """Unit vectors [units / step, features]: rows of the parts side by side, each part scaled to length 1, then the whole.

    A positive scale of any part (an adversary's rescaling of gate, up and down rows) changes nothing. Besides the result, no
    more than :data:`PIECE` rows of a matrix are in memory.

    Raises:
        UsageError: A number is not finite.
    """
    units, width = len(range(0, block.units, step)), block.width
    found = np.empty((units, width * len(parts)), np.float32)
    for number, part in enumerate(parts):
        own = found[:, number * width : (number + 1) * width]
        if part == "down":
            # Units are columns here.
            for start in range(0, width, PIECE):
                rows = slice(start, min(start + PIECE, width))
                own[:, rows] = block.parts[part](rows)[:, ::step].T
        else:
            pace = max(1, PIECE // step)
            for start in range(0, units, pace):
                stop = min(start + pace, units)
                own[start:stop] = block.parts[part](slice(start * step, (stop - 1) * step + 1, step))
        _normalize(own, block)
    _normalize(found, block)
    return found


def _normalize(rows: Floats, block: Block) -> None:
    """Scale rows to length 1, where they are."""
    for start in range(0, len(rows), PIECE):
        piece = rows[start : start + PIECE]
        length = np.linalg.norm(piece, axis=1, keepdims=True)
        if not np.isfinite(length).all():
            raise UsageError(
                f"{block.file}: weights of {block.name} are not finite (NaN or infinite): the model is damaged.",
                "Get the model again.",
            )
        piece /= np.maximum(length, 1e-12)
