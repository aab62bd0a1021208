"""What is written is sampled as the caller says, whatever the model's own generation config holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from tiny_models import tiny_model

from stillroom.models.generation import continuations
from stillroom.models.load import load_student

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CausalModel:
    folder = tiny_model("llama", tmp_path_factory.mktemp("models") / "writes", layers=1, hidden=32)
    return load_student(folder, torch.float32)[0].eval()


def written(model: CausalModel, temperature: float) -> list[list[int]]:
    torch.manual_seed(0)
    return continuations(model, [[5, 6, 7], [9] * 9], 24, {2}, temperature=temperature)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(
    "own",
    [
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 1},
        {"min_p": 0.3},
        {"suppress_tokens": list(range(200, 400))},
        {"num_beams": 3},
        {"temperature": 0.1, "top_p": 0.1, "top_k": 2},
    ],
)
def test_a_model_s_own_generation_config_changes_nothing(
    model: CausalModel, monkeypatch: pytest.MonkeyPatch, temperature: float, own: dict[str, Any]
) -> None:
    expected = written(model, temperature)
    for key, value in own.items():
        monkeypatch.setattr(model.generation_config, key, value)
    kept = model.generation_config
    assert written(model, temperature) == expected
    assert model.generation_config is kept


def test_the_most_probable_token_is_the_models_own(model: CausalModel) -> None:
    (row,) = continuations(model, [[5, 6, 7]], 6, ())
    ids = [5, 6, 7]
    for token in row:
        with torch.inference_mode():
            assert token == int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)
    assert len(row) == 6


def test_a_text_ends_with_its_end_and_what_is_suppressed_is_not_written(model: CausalModel) -> None:
    (row,) = continuations(model, [[5, 6, 7]], 6, ())
    assert continuations(model, [[5, 6, 7]], 6, {row[2]}) == [row[: row.index(row[2]) + 1]]
    assert row[0] not in continuations(model, [[5, 6, 7]], 6, (), suppressed=[row[0]])[0]
