"""The exact test on the order of units: valid under the null, powerful on copies, silent on shuffled ones."""

from __future__ import annotations

import itertools
import math
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model

from stillroom.core.errors import UsageError
from stillroom.guard import lineage, lineage_weights
from stillroom.guard.lineage import (
    fixed_points_bound,
    increasing_run_bound,
    longest_increasing,
    unit_order,
)
from stillroom.guard.lineage_weights import open_units


@given(
    st.integers(1, 6).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n - 1), min_size=1, max_size=n)))
)
def test_the_bounds_hold_exactly_over_all_orders_of_the_owner(case: tuple[int, list[int]]) -> None:
    """Every permutation of the owner's units is gone through: no k is more probable than its bound says."""
    n, nearest_units = case
    m = len(nearest_units)
    orders = list(itertools.permutations(range(n)))
    fixed = [sum(order[unit] == place for place, unit in enumerate(nearest_units)) for order in orders]
    runs = [longest_increasing(np.array([order[unit] for unit in nearest_units])) for order in orders]
    for k in range(1, m + 1):
        share = sum(value >= k for value in fixed) / len(orders)
        assert share <= 10 ** fixed_points_bound(k, m, n) + 1e-9
        share = sum(value >= k for value in runs) / len(orders)
        assert share <= 10 ** increasing_run_bound(k, m) + 1e-9


def test_all_units_in_place_is_one_over_the_factorial() -> None:
    assert fixed_points_bound(20, 20, 20) == pytest.approx(-math.log10(math.factorial(20)))


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("owner"), layers=3, seed=1)


def changed(folder: Path, *, noise: float = 0.0, units: torch.Tensor | None = None) -> Path:
    """The owner's model with noise on every weight and, of each layer, only these units."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += noise * parameter.data.std() * torch.randn_like(parameter)
    if units is not None:
        for layer in model.model.layers:
            for name in ("gate_proj", "up_proj"):
                matrix = getattr(layer.mlp, name)
                matrix.weight.data = matrix.weight.data[units].clone()
                matrix.out_features = len(units)
            layer.mlp.down_proj.weight.data = layer.mlp.down_proj.weight.data[:, units].clone()
        model.config.intermediate_size = len(units)
    target = folder.parent / f"changed-{noise}-{0 if units is None else hash(tuple(units.tolist()))}"
    model.save_pretrained(target)
    return target


def test_a_changed_copy_is_found(owner: Path) -> None:
    result = unit_order(changed(owner, noise=0.3), owner)
    assert result.log10_p is not None
    assert result.log10_p < -100
    assert [other for _, other, _ in result.layers] == [0, 1, 2]


def test_a_narrower_copy_is_found_by_its_increasing_run(owner: Path) -> None:
    kept = torch.randperm(128, generator=torch.Generator().manual_seed(3))[:48].sort().values
    result = unit_order(changed(owner, noise=0.2, units=kept), owner)
    assert result.statistic == "increasing run"
    assert result.log10_p is not None
    assert result.log10_p < -20


def test_shuffled_units_are_not_told(owner: Path) -> None:
    shuffled = torch.randperm(128, generator=torch.Generator().manual_seed(4))
    result = unit_order(changed(owner, units=shuffled), owner)
    assert result.log10_p is not None
    assert result.log10_p > math.log10(0.05)


def test_independent_models_stay_above_the_level(owner: Path, tmp_path: Path) -> None:
    for seed in (2, 3, 4):
        other = tiny_model("llama", tmp_path / str(seed), layers=2, seed=seed)
        result = unit_order(other, owner)
        assert result.log10_p is not None
        assert result.log10_p > -2


def test_a_sample_of_units_is_compared_where_there_are_many(owner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillroom.guard.lineage.MOST_UNITS", 50)
    result = unit_order(changed(owner, noise=0.1), owner)
    assert (result.compared, result.units) == (43, 128)
    assert result.log10_p is not None
    assert result.log10_p < -60


def test_streams_of_other_widths_are_not_compared(owner: Path, tmp_path: Path) -> None:
    result = unit_order(tiny_model("llama", tmp_path, layers=2, hidden=32), owner)
    assert result.log10_p is None
    assert "different widths" in result.reason


def test_fused_projections_are_split(tmp_path: Path) -> None:
    """Phi-3 stores gate and up as one matrix."""
    blocks = open_units(tiny_model("phi3", tmp_path, layers=1)).blocks
    assert blocks[0].shared == ("gate", "up", "down")
    assert blocks[0].rows("gate").shape == (128, 64)
    assert not np.array_equal(blocks[0].rows("gate"), blocks[0].rows("up"))
    assert np.array_equal(blocks[0].rows("down", 5), blocks[0].rows("down")[::5])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(owner: Path, tmp_path: Path, value: float) -> None:
    damaged = shutil.copytree(owner, tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = value
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    for suspect, of in ((damaged, owner), (owner, damaged)):
        with pytest.raises(UsageError, match=r"damaged: weights of model\.layers\.1\.mlp are not finite"):
            unit_order(suspect, of)


def test_two_models_are_compared_in_the_memory_of_two_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five layers each: one of each model, and a small rest, is in memory at once."""
    units, width, layers = 2048, 128, 5
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for layer in range(layers):
        for part in ("gate_proj", "up_proj", "down_proj"):
            shape = (width, units) if part == "down_proj" else (units, width)
            weights[f"model.layers.{layer}.mlp.{part}.weight"] = torch.randn(shape, generator=generator).bfloat16()
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    del weights
    monkeypatch.setattr(lineage, "CHUNK", 32)
    monkeypatch.setattr(lineage_weights, "PIECE", 32)
    monkeypatch.setattr(lineage, "SCAN_UNITS", 16)
    stored = open_units(tmp_path)
    layer_bytes = 3 * units * width * 4  # as float32
    stored.blocks[0].rows("gate", units)  # what is imported for the first read is no weight
    tracemalloc.start()
    found = unit_order(stored, stored, candidates=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.k == units
    assert peak < 2.5 * layer_bytes


def test_what_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no safetensors"):
        open_units(tmp_path)
    with pytest.raises(UsageError, match="no such model"):
        open_units(tmp_path / "nothing.gguf")
