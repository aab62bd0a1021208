"""How many sequences a step has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stillroom.recipe.training import DistillConfig
from stillroom.training.batch_size import FEWEST, MOST, micro_rows, step_rows


def test_what_the_recipe_says_is_taken():
    assert step_rows(DistillConfig(batch_tokens=2048), 10**6, 512) == 4
    assert step_rows(DistillConfig(batch_tokens=100), 10**6, 512) == 1


@given(st.integers(1, 10**12), st.integers(1, 10), st.sampled_from([64, 512, 1024]))
def test_auto_grows_with_the_run_between_its_bounds(tokens, epochs, length):
    config = DistillConfig(epochs=epochs)
    rows = step_rows(config, tokens, length)
    assert 1 <= rows <= MOST // length
    assert rows * length >= FEWEST - length
    assert rows <= step_rows(config, 4 * tokens, length)
    assert step_rows(DistillConfig(), 81_920, 512) == 1
    assert step_rows(DistillConfig(), 10**8, 1024) == 24


def test_a_step_in_parts():
    assert micro_rows(DistillConfig(), 4, 512) == 4
    assert micro_rows(DistillConfig(micro_batch_tokens=1024), 4, 512) == 2
    assert micro_rows(DistillConfig(micro_batch_tokens=1 << 20), 4, 512) == 4
