"""Quantized checkpoints: how a Hugging Face folder's weights are stored, and how they become floats again when it is loaded.

A model is pruned, trained and compared in floats, so that a quantized teacher is the model that its dequantized weights make.
It is another model than the one it was made of: its words (:func:`Quantization.words`) are part of the identity of its cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.core.errors import TeacherError, UnsupportedModel
from stillroom.core.extras import installed

if TYPE_CHECKING:
    from stillroom.models.checkpoint import StoredTensor

FLOATS_ON_ANY_DEVICE = frozenset(("fp8", "mxfp8", "mxfp4"))
"""Kinds whose weights transformers makes floats again on any device, without another package."""
PACKAGES = {"compressed-tensors": ("compressed_tensors", "compressed-tensors>=0.15.0")}
"""Kinds for which transformers needs a package: its module, and what to install."""
SCALES = ("{}_scale_inv", "{stem}.scale", "{stem}.qscale_weight")
"""Names under which FP8 checkpoints hold the scales of a tensor."""
BLOCK = (128, 128)
"""Rows and columns with one scale in FP8 checkpoints whose config names no other."""


@dataclass(frozen=True)
class Quantization:
    """How weights are stored.

    Attributes:
        method: As ``quant_method`` in ``config.json``.
        bits: Per weight; None where the config does not say.
        block: Weights with one scale: rows and columns, or how many in a row; empty where one scale is for a whole tensor or
            row, or the config does not say.
    """

    method: str
    bits: int | None
    block: tuple[int, ...] = ()

    @property
    def words(self) -> str:
        """Such as ``fp8, 8 bits, blocks of 128 x 128``."""
        found = [self.method]
        if self.bits is not None:
            found.append(f"{self.bits} bits")
        if self.block:
            found.append(f"{'blocks' if len(self.block) > 1 else 'groups'} of {' x '.join(map(str, self.block))}")
        return ", ".join(found)


def quantization_of(said: Mapping[str, Any]) -> Quantization | None:
    """What a ``config.json`` says of how its weights are stored; None where they are floats.

    A method that is not said is empty.
    """
    found = said.get("quantization_config")
    if not found:
        return None
    if not isinstance(found, dict):
        return Quantization("", None)
    method = str(found.get("quant_method") or "")
    if found.get("load_in_4bit") or found.get("load_in_8bit"):
        return Quantization("bitsandbytes", 4 if found.get("load_in_4bit") else 8)
    if method in ("fp8", "mxfp8"):
        asked = found.get("weight_block_size", BLOCK if method == "fp8" else (1, 32))
        return Quantization(method, 8, _sizes(asked))
    if method == "mxfp4":
        return Quantization(method, 4, (32,))
    if method == "compressed-tensors":
        return _compressed(found)
    return Quantization(method, _number(found.get("bits")), _sizes([found.get("group_size")]))


def _compressed(found: Mapping[str, Any]) -> Quantization:
    """Of compressed-tensors: the widest of its groups, which is what the words can hold."""
    groups = found.get("config_groups")
    weights = [
        group["weights"]
        for group in (groups.values() if isinstance(groups, dict) else ())
        if isinstance(group, dict) and isinstance(group.get("weights"), dict)
    ]
    widest: dict[str, Any] = max(weights, key=lambda entry: _number(entry.get("num_bits")) or 0, default={})
    block = widest.get("block_structure") or [widest.get("group_size")]
    return Quantization("compressed-tensors", _number(widest.get("num_bits")), _sizes(block))


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _sizes(values: object) -> tuple[int, ...]:
    numbers = [_number(value) for value in values] if isinstance(values, (list, tuple)) else []
    return tuple(number for number in numbers if number) if all(numbers) else ()


def require_floats(folder: Path, said: Mapping[str, Any]) -> None:
    """Refuse weights that cannot be made floats again here, from the config alone.

    Raises:
        UnsupportedModel: Names the method, and what to install or to do.
    """
    found = quantization_of(said)
    if found is None or found.method in FLOATS_ON_ANY_DEVICE:
        return
    instead = (
        "Give the folder it was made from, a GGUF file of it (`teacher: {kind: gguf}`), or let a server run it "
        "(`teacher: {kind: endpoint}`, docs/endpoint-teacher.md)."
    )
    if found.method in PACKAGES:
        module, package = PACKAGES[found.method]
        if installed(module):
            return
        raise UnsupportedModel(
            f"{folder}: its weights are quantized (`{found.words}`), and what makes floats of them is not installed.",
            f"Install it: pip install '{package}'. Or: {instead[0].lower()}{instead[1:]}",
        )
    raise UnsupportedModel(
        f"{folder}: its weights are quantized ({f'`{found.words}`' if found.method else 'config.json does not say how'}), and "
        "are not made floats again here, as pruning, training and comparing need them.",
        instead,
    )


def as_floats(said: Mapping[str, Any]) -> dict[str, Any]:
    """Options of ``from_pretrained`` that make quantized weights floats again; empty where they are floats.

    Raises:
        ValueError: The config's words for it do not fit each other, in transformers' words.
    """
    found = quantization_of(said)
    if found is None:
        return {}
    from transformers.quantizers.auto import AutoQuantizationConfig

    wanted = AutoQuantizationConfig.from_dict(dict(said["quantization_config"]))
    wanted.dequantize = True
    return {"quantization_config": wanted}


def require_scales(where: str, said: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> None:
    """Refuse FP8 weights that transformers would read wrongly without a word.

    A weight without its scales would be taken for the numbers themselves, and where a block does not divide a weight's sides
    transformers spreads the scales evenly over them instead of block by block.

    Raises:
        TeacherError: A weight's scales are missing.
        UnsupportedModel: Its sides are no multiples of the block.
    """
    found = quantization_of(said)
    if found is None or found.method not in ("fp8", "mxfp8"):
        return
    for name, tensor in stored.items():
        if not tensor.dtype.startswith("F8_E4M3") and not tensor.dtype.startswith("F8_E5M2"):
            continue
        stem = name.rpartition(".")[0]
        scales = next((stored[key] for form in SCALES if (key := form.format(name, stem=stem)) in stored), None)
        if scales is None:
            raise TeacherError(
                f"{where}: the tensor {name} is stored as {tensor.dtype}, and its scales ({name}_scale_inv) are missing.",
                "Get the whole model again.",
            )
        _require_whole_blocks(where, name, tuple(tensor.shape), tuple(scales.shape), found.block)


def _require_whole_blocks(
    where: str, name: str, shape: tuple[int, ...], scales: tuple[int, ...], block: tuple[int, ...]
) -> None:
    if len(block) != 2 or len(scales) < 2 or len(shape) < 2:
        return
    for size, count, of in zip(shape[-2:], scales[-2:], block, strict=True):
        # One scale for a whole side is right whatever the block; so is a scale of each row.
        if count not in (1, size) and size != count * of:
            raise UnsupportedModel(
                f"{where}: the tensor {name} is {' x '.join(map(str, shape))}, which blocks of {block[0]} x {block[1]} do not "
                "divide: transformers would put its scales at the wrong weights.",
                "Give the folder it was made from, or a GGUF file of it.",
            )
