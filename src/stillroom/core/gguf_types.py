"""The types of GGUF files: one row per type, and nothing else to change for a new one.

A file's type names the type of most of its matrices; a row says which matrices get a finer one, as llama.cpp's own
quantization chooses, so that files are what people expect of a name. The recipe, the solver of student shapes, the plan and
the exporter all read this table. It is plain data, so that reading a recipe loads no library; the types and numbers that it
names are those of the `gguf` package, and :mod:`stillroom.models.quantization` applies the rows to tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Layers = Literal["all", "first eighth", "ends and every third"]
"""Layers that a rule holds for: all; the first eighth; the first and the last eighth and every third between."""


@dataclass(frozen=True)
class Finer:
    """Matrices that get another type than most of the file's.

    Attributes:
        part: llama.cpp's name of the tensor without its layer, such as ``ffn_down.weight``.
        type: The GGML type that it gets.
        layers: In which layers.
        shared: Only where at least so many query heads share a key/value head.
        importance: Only with an importance matrix (True), only without one (False), or either way (None).
    """

    part: str
    type: str
    layers: Layers = "all"
    shared: int = 1
    importance: bool | None = None


@dataclass(frozen=True)
class FileType:
    """One type of file.

    Attributes:
        name: What recipes, file names and tables call it.
        type: The GGML type of most of its matrices.
        file_type: The name in gguf's ``LlamaFileType`` of the number that is in the file's metadata.
        max_kl: Mean KL(PyTorch student ‖ file) in nats per token that is accepted unless the recipe says otherwise:
            enough for a healthy file, too little for a broken one.
        importance: Whether an importance matrix changes its bytes.
        own_output: Whether the output matrix has the type of the other matrices; otherwise it gets Q6_K.
        finer: Matrices of layers with another type; the first rule that holds counts.
        candidate: Whether ``export.choose`` tries it where the recipe names no types.
        since: The release that first had it. A written-out recipe of an earlier release does not name the type, so that
            a finished run stays finished when a type is added.
    """

    name: str
    type: str
    file_type: str
    max_kl: float
    since: str
    importance: bool = True
    own_output: bool = False
    finer: tuple[Finer, ...] = ()
    candidate: bool = False


def _m_mix(fused: str) -> tuple[Finer, ...]:
    """The rule of types whose name ends in ``_M``; ``fused`` is the type of fused query/key/value matrices."""
    return (
        Finer("attn_qkv.weight", fused),
        Finer("attn_v.weight", "Q6_K", "ends and every third"),
        Finer("ffn_down.weight", "Q6_K", "ends and every third"),
    )


_FIRST_DOWN_PLAIN = Finer("ffn_down.weight", "Q5_K", "first eighth", importance=False)
_FIRST_DOWN_WEIGHTED = Finer("ffn_down.weight", "Q4_1", "first eighth", importance=True)
_SHARED_VALUES = Finer("attn_v.weight", "Q5_K", shared=4)

# Finest first.
_ROWS = (
    FileType("F32", "F32", "ALL_F32", 1e-3, "0.1.0", importance=False, own_output=True),
    FileType("F16", "F16", "MOSTLY_F16", 1e-3, "0.1.0", importance=False, own_output=True, candidate=True),
    FileType("BF16", "BF16", "MOSTLY_BF16", 1e-2, "0.1.0", importance=False, own_output=True),
    FileType("Q8_0", "Q8_0", "MOSTLY_Q8_0", 2e-2, "0.1.0", importance=False, own_output=True, candidate=True),
    FileType("Q6_K", "Q6_K", "MOSTLY_Q6_K", 5e-2, "0.1.0", candidate=True),
    FileType("Q5_K_M", "Q5_K", "MOSTLY_Q5_K_M", 1e-1, "0.1.0", finer=_m_mix("Q6_K"), candidate=True),
    FileType("Q4_K_M", "Q4_K", "MOSTLY_Q4_K_M", 2e-1, "0.1.0", finer=_m_mix("Q5_K"), candidate=True),
    FileType(
        "IQ4_NL", "IQ4_NL", "MOSTLY_IQ4_NL", 3e-1, "0.1.0", finer=(_SHARED_VALUES, _FIRST_DOWN_PLAIN), candidate=True
    ),
    FileType("Q4_0", "Q4_0", "MOSTLY_Q4_0", 5e-1, "0.1.0", finer=(_FIRST_DOWN_WEIGHTED,), candidate=True),
)

GGUF_TYPES: dict[str, FileType] = {row.name: row for row in _ROWS}
"""Every type by its name, finest first."""

STAND_INS = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""The GGML type that stands in for one of 256 weights per block in a row that 256 does not divide. Where 32 does not divide the
row either, it gets F16."""
