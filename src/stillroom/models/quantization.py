"""Which GGML type each tensor of a GGUF file gets, and the bytes that it takes.

- Vectors stay float32.
- The output matrix (the embedding, where the two are one) gets Q6_K, or the file's own type where its row says so.
- Matrices of layers get what the first rule of the file's row gives them, else the type of most matrices.
- A row of weights that the type's blocks do not divide gets a type of 32 weights per block, and F16 where 32 does not divide
  it.

The rows are in :mod:`stillroom.core.gguf_types`. The exporter writes by this rule, and the solver counts by it.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, LlamaFileType
from gguf import GGMLQuantizationType as Type

from stillroom.core.gguf_types import GGUF_TYPES, STAND_INS, Finer

FLOAT32 = (
    ".bias", "ffn_gate_inp.", "ffn_gate_inp_shexp.", "attn_sinks.", "ssm_conv1d.", "shortconv.conv.", ".ssm_a", ".ssm_d",
    "ssm_norm.", "position_embd.",
)  # fmt: skip
"""What stays float32 whatever its shape, as in llama.cpp's own files: routers, biases of experts, positions, and the small
tensors of state-space layers."""


@dataclass(frozen=True)
class Setting:
    """What the choice depends on besides the tensor.

    Attributes:
        kind: The file's type, by its name in the table.
        layers: Layers of the model.
        tied: Whether the embedding is the output matrix too.
        shared: Query heads of a key/value head.
        importance: Whether there is an importance matrix.
    """

    kind: str
    layers: int
    tied: bool
    shared: int
    importance: bool


def block(kind: Type) -> tuple[int, int]:
    """Weights and bytes of a block."""
    weights, size = GGML_QUANT_SIZES[kind]
    return int(weights), int(size)


def tensor_bytes(shape: tuple[int, ...], kind: Type) -> int:
    """Bytes of a tensor whose rows are a multiple of the type's block."""
    weights, size = block(kind)
    return math.prod(shape) // weights * size


@functools.cache
def main_type(kind: str) -> Type:
    """The GGML type of most matrices of a file of a type."""
    return Type[GGUF_TYPES[kind].type]


def file_type(kind: str) -> LlamaFileType:
    """The number that is in the metadata of a file of a type."""
    return LlamaFileType[GGUF_TYPES[kind].file_type]


def tensor_type(setting: Setting, name: str, shape: tuple[int, ...]) -> Type:
    """The type of a tensor.

    Args:
        setting: The file and the model.
        name: The tensor's name in GGUF, such as ``blk.3.attn_v.weight``.
        shape: Its shape; the last is the row's length.
    """
    if len(shape) < 2 or any(part in name for part in FLOAT32):
        return Type.F32
    return _divided(_wanted(setting, name, shape[-1]), shape[-1])


def _wanted(setting: Setting, name: str, columns: int) -> Type:
    row, main = GGUF_TYPES[setting.kind], main_type(setting.kind)
    if name == ("token_embd.weight" if setting.tied else "output.weight"):
        if row.own_output:
            return main
        return Type.Q8_0 if columns % block(main)[0] else Type.Q6_K
    if name.startswith("blk."):
        _, layer, part = name.split(".", 2)
        for rule in row.finer:
            if rule.part == part and _holds(rule, setting, int(layer)):
                return Type[rule.type]
    return main


def _holds(rule: Finer, setting: Setting, layer: int) -> bool:
    """Whether a rule holds in a layer."""
    if setting.shared < rule.shared or rule.importance not in (None, setting.importance):
        return False
    eighth = setting.layers // 8
    if rule.layers == "first eighth":
        return layer < eighth
    if rule.layers == "ends and every third":
        return layer < eighth or layer >= 7 * setting.layers // 8 or (layer - eighth) % 3 == 2
    return True


def _divided(wanted: Type, columns: int) -> Type:
    """The type, or what stands in for it where its blocks do not divide a row."""
    if columns % block(wanted)[0] == 0:
        return wanted
    if wanted.name in STAND_INS:
        wanted = Type[STAND_INS[wanted.name]]
    return wanted if columns % block(wanted)[0] == 0 else Type.F16
