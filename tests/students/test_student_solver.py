"""Shapes are counted exactly, and the solver always meets its target or says what stands in the way."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny_families import CHANNELS, FAMILIES, GROUPS, IDS, LAYERS, WIDTH, bpe_tokenizer, tiny, tiny_sequences

from stillroom.core.errors import RecipeError
from stillroom.core.gguf_types import GGUF_TYPES
from stillroom.core.progress import Progress
from stillroom.models.families.registry import family_of
from stillroom.models.load import count_parameters
from stillroom.recipe.student import Target
from stillroom.students.importance import Sample
from stillroom.students.limits import Limits, limits_of, load_profiles, measure_bandwidth
from stillroom.students.measured import Measured
from stillroom.students.planning import plan_shape
from stillroom.students.shape import Anatomy, Shape, tokenizer_bytes
from stillroom.students.shrink import shrink
from stillroom.students.solver import LossModel, grid, monotone, solve

AXES = ("layers", "channels", "groups", "hidden")
LIMITS = ("parameters", "file_bytes", "memory_bytes", "decode_tokens_per_second")


@functools.cache
def anatomy(family: str = "llama") -> Anatomy:
    model = tiny(family)
    return Anatomy.of(model, family_of(model))


def no_limits(**given: object) -> Limits:
    values = dict.fromkeys(LIMITS) | {"quantisation": "Q8_0", "context": 64, "bandwidth": 1e9} | given
    return Limits(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_exactly(family: str, tied: bool) -> None:
    model = tiny(family, tied)
    adapter = family_of(model)
    counted = Anatomy.of(model, adapter)
    assert counted.parameters(counted.teacher) == count_parameters(model)
    measured = Measured.of(model, adapter, Sample.of(tiny_sequences(2), 48))
    shape = Shape(3, 32, 1, 24, IDS)
    assert counted.parameters(shape) == count_parameters(shrink(model, adapter, shape, measured, False).model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_width_that_transformers_would_not_load_is_refused_first(family: str) -> None:
    counted, config = anatomy(family), copy.deepcopy(tiny(family).config)
    shape = dataclasses.replace(counted.teacher, hidden=WIDTH - 1)
    config.hidden_size = shape.hidden
    try:
        config.validate()
    except StrictDataclassError:
        assert not counted.possible(shape)
        with pytest.raises(RecipeError, match=rf"hidden_size` is {WIDTH - 1}.*multiples of"):
            counted.require_possible(shape)
        with pytest.raises(RecipeError, match="multiples of"):
            solve(counted, no_limits(parameters=1), LossModel(counted.teacher, {}), [shape])
        assert family in ("llama", "gemma2", "gemma3_text", "arcee")
    else:
        assert counted.possible(shape)
    assert counted.possible(counted.teacher)


def test_tokenizer_bytes_are_those_of_its_lists() -> None:
    for tokenizer in (bpe_tokenizer(), bpe_tokenizer(byte_fallback=True)):
        vocabulary = tokenizer.get_vocab()
        least = sum(8 + len(token.encode()) for token in vocabulary) / len(vocabulary)
        assert least < tokenizer_bytes(tokenizer) < 60


@given(st.data())
@settings(max_examples=200)
def test_feasible_targets_are_met(data: st.DataObject) -> None:
    body = anatomy(data.draw(st.sampled_from(FAMILIES)))
    axes = data.draw(st.sets(st.sampled_from(AXES), min_size=1))
    shapes = [shape for shape in grid(body.teacher, {}, axes, IDS) if body.possible(shape)]
    wanted = data.draw(st.sampled_from(shapes))
    limits = no_limits(
        quantisation=data.draw(st.sampled_from(tuple(GGUF_TYPES))),
        context=data.draw(st.integers(16, 4096)),
        bandwidth=data.draw(st.floats(1e6, 1e12)),
    )
    takes = limits.measure(body, wanted)
    chosen = data.draw(st.sets(st.sampled_from(LIMITS), min_size=1))
    limits = dataclasses.replace(
        limits, **{name: takes[name] if name.startswith("decode") else int(takes[name]) for name in chosen}
    )
    curves = {
        axis: [(max(1, getattr(body.teacher, axis) // 2), data.draw(st.floats(0, 10)))]
        for axis in data.draw(st.sets(st.sampled_from(AXES)))
    }
    model = LossModel(body.teacher, curves)
    solution = solve(body, limits, model, shapes)
    assert not limits.broken(limits.measure(body, solution.chosen.shape))
    assert solution.chosen.loss <= model.predict(wanted) + 1e-9
    for other in solution.alternatives.values():
        assert not limits.broken(other.measured)
        assert other.loss >= solution.chosen.loss


@given(st.data())
@settings(max_examples=100)
def test_infeasible_targets_name_the_limit_and_the_nearest_that_is_feasible(data: st.DataObject) -> None:
    body = anatomy()
    axes = data.draw(st.sets(st.sampled_from(AXES), min_size=1))
    shapes = [shape for shape in grid(body.teacher, {}, axes, IDS) if body.possible(shape)]
    limits = no_limits()
    every = [limits.measure(body, shape) for shape in shapes]
    given_limits = {}
    for name in data.draw(st.sets(st.sampled_from(LIMITS), min_size=1)):
        values = [takes[name] for takes in every]
        if name.startswith("decode"):
            given_limits[name] = max(values) * data.draw(st.floats(0.8, 3))
        else:
            given_limits[name] = max(1, int(min(values) * data.draw(st.floats(0.2, 1.2))))
    limits = dataclasses.replace(limits, **given_limits)
    assume(all(limits.broken(takes) for takes in every))
    with pytest.raises(RecipeError) as caught:
        solve(body, limits, LossModel(body.teacher, {}), shapes)
    named = re.search(r"`student\.target\.(\w+)`", caught.value.what)
    assert named is not None
    assert named.group(1) in given_limits
    nearest = dict(re.findall(r"`(\w+): ([\d.]+)`", caught.value.todo))
    assert named.group(1) in nearest
    relaxed = {name: float(value) if name.startswith("decode") else int(value) for name, value in nearest.items()}
    solve(body, dataclasses.replace(limits, **relaxed), LossModel(body.teacher, {}), shapes)


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0, 10)), min_size=1, max_size=6), st.integers(1, 40))
def test_predicted_loss_never_rises_with_size(points: list[tuple[int, float]], size: int) -> None:
    whole = Shape(40, 10, 10, 10, 10)
    model = LossModel(whole, {"layers": [point for point in points if point[0] < 40]})
    at, above = model.of_axis("layers", size), model.of_axis("layers", min(40, size + 1))
    assert at >= above >= 0
    assert model.of_axis("layers", 40) == 0
    values = [value for _, value in monotone(points)]
    assert values == sorted(values, reverse=True)


def test_a_target_is_planned_cut_and_met() -> None:
    model = tiny("llama", dtype=torch.float32)
    adapter = family_of(model)
    body = Anatomy.of(model, adapter)
    measured = Measured.of(model, adapter, Sample.of(tiny_sequences(6), 144))
    target = Target(
        parameters=body.parameters(body.teacher) * 2 // 3, axes=("layers", "intermediate_size", "hidden_size")
    )
    plan = plan_shape(model, adapter, body, target, {}, IDS, measured, True, Progress(quiet=True))
    assert plan.limits.parameters is not None
    student = shrink(model, adapter, plan.shape, measured, True).model
    assert count_parameters(student) <= plan.limits.parameters
    record = plan.record()
    assert record["chosen"]["takes"]["parameters"] == count_parameters(student)
    assert record["turned_down"]
    assert record["chosen"]["kl"] == min(kl for _, kl in plan.judged)
    assert set(record["curves"]) == {"layers", "channels", "hidden"}
    fixed = plan_shape(model, adapter, body, target, {"layers": 5}, IDS, measured, True, Progress(quiet=True))
    assert fixed.shape.layers == 5


def test_device_profiles_hold_besides_own_limits(tmp_path: Path) -> None:
    for profile in load_profiles().values():
        assert profile.file_bytes <= profile.memory_bytes
    limits = limits_of(Target(device="board-512mb", file_bytes=1000, decode_tokens_per_second=5))
    profile = load_profiles()["board-512mb"]
    assert (limits.file_bytes, limits.memory_bytes) == (1000, profile.memory_bytes)
    assert (limits.bandwidth, limits.quantisation, limits.context) == (profile.bandwidth, "Q8_0", 512)
    own = tmp_path / "devices.yaml"
    own.write_text(
        "toaster: {description: x, memory_bytes: 9, file_bytes: 8, bandwidth: 7, context: 6, quantisation: F16}\n"
    )
    assert limits_of(Target(device="toaster", profiles=own)).memory_bytes == 9
    with pytest.raises(RecipeError, match="'toaster' is not a known device"):
        limits_of(Target(device="toaster"))
    own.write_text("toaster: {description: x}\n")
    with pytest.raises(RecipeError, match=r"toaster\.memory_bytes"):
        limits_of(Target(device="toaster", profiles=own))
    own.write_text("- toaster\n")
    with pytest.raises(RecipeError, match="mapping"):
        limits_of(Target(device="toaster", profiles=own))
    with pytest.raises(RecipeError, match="cannot be read"):
        limits_of(Target(device="toaster", profiles=tmp_path / "none.yaml"))


def test_a_target_without_a_limit_is_refused() -> None:
    with pytest.raises(ValidationError, match="a target needs a limit"):
        Target(context=512)


def test_bandwidth_is_measured() -> None:
    assert 1e8 < measure_bandwidth(0.05) < 1e13


def test_widths_that_quantise_well() -> None:
    shapes = grid(Shape(4, 1536, 3, 576, 100), {"layers": 4}, ("channels", "hidden"), 100)
    assert {shape.channels for shape in shapes} == {256, 512, 768, 1024, 1280, 1536}
    assert all(shape.hidden % 32 == 0 for shape in shapes)
    assert {shape.groups for shape in shapes} == {3}
    assert {(shape.layers, shape.vocabulary) for shape in shapes} == {(4, 100)}
    tiny_shapes = grid(Shape(LAYERS, CHANNELS, GROUPS, WIDTH, IDS), {}, AXES, IDS)
    assert Shape(1, 6, 1, 4, IDS) in tiny_shapes
