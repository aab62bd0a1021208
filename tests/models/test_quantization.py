"""Which tensor gets which type: the table, the rule, its fallbacks, and its laws."""

from __future__ import annotations

import pytest
from gguf import GGML_QUANT_SIZES, LlamaFileType
from gguf import GGMLQuantizationType as Type
from hypothesis import given
from hypothesis import strategies as st

from stillroom.core.gguf_types import GGUF_TYPES, STAND_INS
from stillroom.models.quantization import Setting, block, file_type, main_type, tensor_bytes, tensor_type

NAMES = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def setting(kind: str, layers: int = 16, tied: bool = True, shared: int = 3, importance: bool = False) -> Setting:
    return Setting(kind, layers, tied, shared, importance)


def types_of(kind: str, part: str, columns: int = 512, **options: object) -> str:
    """The types over sixteen layers, one letter each: M the main one, Q what Q6_K gives, 5 for Q5_K, 1 for Q4_1."""
    given = setting(kind, **options)  # type: ignore[arg-type]
    letters = {Type.Q6_K: "Q", Type.Q5_K: "5", Type.Q4_1: "1"} | {main_type(kind): "M"}
    found = [tensor_type(given, f"blk.{layer}.{part}.weight", (64, columns)) for layer in range(given.layers)]
    return "".join(letters[kind] for kind in found)


def test_every_row_names_what_gguf_has() -> None:
    numbers = [file_type(kind) for kind in GGUF_TYPES]
    assert len(set(numbers)) == len(numbers)
    for row in GGUF_TYPES.values():
        assert LlamaFileType[row.file_type].name.endswith(f"_{row.name}")
        for rule in row.finer:
            assert Type[rule.type]
            assert rule.part.endswith(".weight")
    for wanted, stand_in in STAND_INS.items():
        assert block(Type[wanted])[0] == 256
        assert block(Type[stand_in])[0] == 32


def test_types_are_ordered_from_the_finest() -> None:
    bits = [8 * block(main_type(kind))[1] / block(main_type(kind))[0] for kind in GGUF_TYPES]
    assert bits == sorted(bits, reverse=True)
    limits = [row.max_kl for row in GGUF_TYPES.values()]
    assert limits == sorted(limits)


@given(rows=st.integers(1, 100), blocks=st.integers(1, 20), kind=st.sampled_from(sorted(GGML_QUANT_SIZES)))
def test_bytes_of_a_tensor_are_those_of_its_blocks(rows: int, blocks: int, kind: Type) -> None:
    weights, size = GGML_QUANT_SIZES[kind]
    assert tensor_bytes((rows, blocks * weights), kind) == rows * blocks * size


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q5_K_M"])
@pytest.mark.parametrize("part", ["attn_v", "ffn_down"])
def test_the_ends_and_every_third_layer_stay_finer(kind: str, part: str) -> None:
    assert types_of(kind, part) == "QQMMQMMQMMQMMQQQ"


def test_other_matrices_have_the_type_of_the_name() -> None:
    for kind in GGUF_TYPES:
        for part in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"):
            assert set(types_of(kind, part)) == {"M"}
    assert set(types_of("Q4_K_M", "attn_qkv")) == {"5"}
    assert set(types_of("Q5_K_M", "attn_qkv")) == {"Q"}


def test_first_layers_of_four_bits() -> None:
    assert types_of("Q4_0", "ffn_down", importance=True) == "11MMMMMMMMMMMMMM"
    assert types_of("Q4_0", "ffn_down") == "M" * 16
    assert types_of("IQ4_NL", "ffn_down") == "55MMMMMMMMMMMMMM"
    assert types_of("IQ4_NL", "ffn_down", importance=True) == "M" * 16
    assert types_of("IQ4_NL", "attn_v", shared=4) == "5" * 16


def test_the_output_matrix_is_kept_finer_whichever_tensor_it_is() -> None:
    for kind in GGUF_TYPES:
        fine = main_type(kind) if GGUF_TYPES[kind].own_output else Type.Q6_K
        assert tensor_type(setting(kind), "token_embd.weight", (999, 512)) == fine
        assert tensor_type(setting(kind, tied=False), "output.weight", (999, 512)) == fine
        assert tensor_type(setting(kind, tied=False), "token_embd.weight", (999, 512)) == main_type(kind)


def test_odd_widths_fall_back() -> None:
    assert tensor_type(setting("Q4_K_M"), "blk.2.attn_q.weight", (64, 576)) == Type.Q5_0
    assert tensor_type(setting("Q5_K_M"), "blk.2.attn_q.weight", (64, 576)) == Type.Q5_1
    assert tensor_type(setting("Q6_K"), "blk.2.attn_q.weight", (64, 576)) == Type.Q8_0
    assert tensor_type(setting("Q4_K_M"), "token_embd.weight", (999, 576)) == Type.Q8_0
    for kind in tuple(GGUF_TYPES)[3:]:
        assert tensor_type(setting(kind), "blk.2.attn_q.weight", (64, 100)) == Type.F16


@given(
    kind=st.sampled_from(tuple(GGUF_TYPES)),
    layers=st.integers(1, 80),
    part=st.sampled_from(NAMES),
    columns=st.integers(1, 4096),
    data=st.data(),
)
def test_every_row_is_whole_blocks_and_vectors_stay_exact(
    kind: str, layers: int, part: str, columns: int, data: st.DataObject
) -> None:
    layer = data.draw(st.integers(0, layers - 1))
    options = setting(kind, layers, data.draw(st.booleans()), data.draw(st.integers(1, 8)), data.draw(st.booleans()))
    found = tensor_type(options, f"blk.{layer}.{part}.weight", (8, columns))
    assert columns % block(found)[0] == 0
    assert tensor_type(options, f"blk.{layer}.{part}.bias", (columns,)) == Type.F32
