"""Which type each tensor of a GGUF file gets.

A file's type names the type of most of its matrices. Some matrices get a finer one, by what they are and by the layer
they stand in, as llama.cpp's own quantisation chooses, so that files are what people expect of a name:

- vectors stay float32;
- the output matrix (the embedding, where the two are one) gets Q6_K, and with F16, BF16 and Q8_0 the file's own type;
- in ``Q4_K_M`` and ``Q5_K_M``, value and feed-forward down matrices get Q6_K in the first and the last eighth of the
  layers and in every third between; fused query/key/value matrices get Q5_K and Q6_K;
- in ``IQ4_NL``, value matrices get Q5_K where four or more query heads share a key/value head, and down matrices of the
  first eighth get Q5_K where there is no importance matrix; in ``Q4_0`` with one, they get Q4_1;
- a row that the type's blocks do not divide gets a type of 32 weights a block, and F16 where 32 does not divide it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType

from stillroom.formats.quantise import block
from stillroom.recipe.export import GgufType

GGUF_TYPES: tuple[GgufType, ...] = get_args(GgufType)
"""The types of a file, finest first."""
TYPES: dict[str, tuple[Type, LlamaFileType]] = {
    "F32": (Type.F32, LlamaFileType.ALL_F32),
    "F16": (Type.F16, LlamaFileType.MOSTLY_F16),
    "BF16": (Type.BF16, LlamaFileType.MOSTLY_BF16),
    "Q8_0": (Type.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "Q6_K": (Type.Q6_K, LlamaFileType.MOSTLY_Q6_K),
    "Q5_K_M": (Type.Q5_K, LlamaFileType.MOSTLY_Q5_K_M),
    "Q4_K_M": (Type.Q4_K, LlamaFileType.MOSTLY_Q4_K_M),
    "IQ4_NL": (Type.IQ4_NL, LlamaFileType.MOSTLY_IQ4_NL),
    "Q4_0": (Type.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
"""The type of most matrices of a file, and the number that stands in its metadata."""
WEIGHTED = ("Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_NL", "Q4_0")
"""Types that an importance matrix changes."""
OWN_OUTPUT = ("F32", "F16", "BF16", "Q8_0")
"""Types of a file whose output matrix has that type too."""
UNDIVIDED = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}
"""What stands in for a type of 256 weights a block where 256 does not divide a row."""


@dataclass(frozen=True)
class Setting:
    """What the choice depends on besides the tensor.

    Attributes:
        kind: The file's type.
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


def tensor_type(setting: Setting, name: str, shape: tuple[int, ...]) -> Type:
    """The type of a tensor.

    Args:
        setting: The file and the model.
        name: The tensor's name in GGUF, such as ``blk.3.attn_v.weight``.
        shape: Its shape; the last is the row's length.
    """
    if len(shape) < 2:
        return Type.F32
    return _divided(_wanted(setting, name, shape[-1]), shape[-1])


def _wanted(setting: Setting, name: str, columns: int) -> Type:
    kind = setting.kind
    main = TYPES[kind][0]
    if name == ("token_embd.weight" if setting.tied else "output.weight"):
        if kind in OWN_OUTPUT:
            return main
        return Type.Q8_0 if columns % block(main)[0] else Type.Q6_K
    if not name.startswith("blk."):
        return main
    layer, part = int(name.split(".")[1]), name.split(".", 2)[2]
    first_eighth = layer < setting.layers // 8
    if kind in ("Q4_K_M", "Q5_K_M"):
        if part == "attn_qkv.weight":
            return Type.Q5_K if kind == "Q4_K_M" else Type.Q6_K
        if part in ("attn_v.weight", "ffn_down.weight") and _keeps_finer(layer, setting.layers):
            return Type.Q6_K
    elif kind == "IQ4_NL":
        if part == "attn_v.weight" and setting.shared >= 4:
            return Type.Q5_K
        if part == "ffn_down.weight" and first_eighth and not setting.importance:
            return Type.Q5_K
    elif kind == "Q4_0" and part == "ffn_down.weight" and first_eighth and setting.importance:
        return Type.Q4_1
    return main


def _keeps_finer(layer: int, layers: int) -> bool:
    """Whether a layer of a ``_M`` file keeps its sensitive matrices finer."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _divided(wanted: Type, columns: int) -> Type:
    """The type, or what stands in for it where its blocks do not divide a row."""
    if columns % block(wanted)[0] == 0:
        return wanted
    wanted = UNDIVIDED.get(wanted, wanted)
    return wanted if columns % block(wanted)[0] == 0 else Type.F16
