"""The choice of a type by a target."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stillroom.core.errors import RecipeError
from stillroom.formats.choose import byte_limit, cache_bytes, candidates
from stillroom.planning.counting import check_student
from stillroom.recipe.export import MAX_KL, ChooseConfig, ExportConfig
from stillroom.recipe.reading import recipe_of
from stillroom.students.limits import load_profiles

CONFIG = SimpleNamespace(
    hidden_size=64, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3, head_dim=None
)
SIZES = {"F16": 160, "Q8_0": 85, "Q6_K": 66, "Q5_K_M": 57, "Q4_K_M": 48, "IQ4_NL": 46, "Q4_0": 45}


def test_limits_are_the_tighter_of_recipe_device_and_memory(tmp_path: Path) -> None:
    assert byte_limit(ChooseConfig(file_bytes=10), CONFIG) == 10
    assert byte_limit(ChooseConfig(max_kl=0.1), CONFIG) is None
    board = load_profiles()["board-512mb"]
    assert byte_limit(ChooseConfig(device="board-512mb"), CONFIG) == board.file_bytes
    assert byte_limit(ChooseConfig(device="board-512mb", file_bytes=5), CONFIG) == 5
    own = tmp_path / "own.yaml"
    own.write_text(
        "tiny: {description: d, memory_bytes: 1000000, file_bytes: 900000, bandwidth: 1, context: 1024, quantisation: Q8_0}"
    )
    # Keys and values: 2 · 3 layers · 2 heads · 16 numbers · 1,024 tokens · 2 bytes.
    assert cache_bytes(CONFIG, 1024) == 393_216
    assert byte_limit(ChooseConfig(device="tiny", profiles=own), CONFIG) == 1_000_000 - 393_216
    with pytest.raises(RecipeError, match="no-such"):
        byte_limit(ChooseConfig(device="no-such"), CONFIG)


@given(limit=st.none() | st.integers(1, 200), near=st.booleans())
def test_the_largest_that_fits_or_the_smallest_first(limit: int | None, near: bool) -> None:
    choice = ChooseConfig(max_kl=0.1) if near else ChooseConfig(file_bytes=limit or 1)
    order = candidates(choice, SIZES, limit)  # type: ignore[arg-type]
    assert set(order) == {kind for kind, size in SIZES.items() if limit is None or size <= limit}
    sizes = [SIZES[kind] for kind in order]
    assert sizes == sorted(sizes, reverse=not near)


def test_a_choice_needs_a_limit_and_limits_keep_their_defaults() -> None:
    with pytest.raises(ValidationError, match="needs a limit"):
        ChooseConfig()
    with pytest.raises(ValidationError, match="at least one type"):
        ChooseConfig(file_bytes=1, among=())
    assert ExportConfig(max_kl={"F16": 0.5}).max_kl == MAX_KL | {"F16": 0.5}


def test_a_device_that_is_not_known_is_refused_before_the_text_is_read(small_recipe: Any) -> None:
    choose = {"device": "no-such"}
    recipe = recipe_of(small_recipe("nowhere", student={"kind": "shrink"}, export={"gguf": [], "choose": choose}))
    with pytest.raises(RecipeError, match=r"`export\.choose\.device`: 'no-such' is not a known device"):
        check_student(recipe)
    assert recipe.export.writes_gguf
    assert not ExportConfig(gguf=()).writes_gguf
