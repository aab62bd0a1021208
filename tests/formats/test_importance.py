"""The importance matrix is the mean squared input, over the text's own tokens and no padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tiny_models import make_model

from stillroom.core.progress import Task
from stillroom.corpus.sequences import Sequences
from stillroom.formats.importance import load_importance, measure_importance, save_importance
from stillroom.signals.vocabulary_map import VocabularyMap


def text(sequences: int = 3, length: int = 16, padding: int = 4) -> Sequences:
    ids = torch.randint(3, 60, (sequences, length), generator=torch.Generator().manual_seed(0))
    segments = torch.zeros(sequences, length, dtype=torch.int32)
    segments[:, length - padding :] = -1
    ids[segments < 0] = 0
    ones = torch.ones(sequences, length, dtype=torch.int32)
    return Sequences(ids, segments, ones.bool(), segments, ones, torch.zeros(1, dtype=torch.int32))


def test_it_is_the_mean_square_of_what_each_layer_takes(tmp_path: Path) -> None:
    model = make_model("llama", rows=64, layers=2)
    sequences = text()
    found = measure_importance(model, sequences, VocabularyMap.identity(64), 1000, Task("", 1, ""))
    assert {key for key in found if ".0." in key} == {
        f"model.layers.0.{name}.weight"
        for name in (
            *(f"self_attn.{part}_proj" for part in "qkvo"),
            *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
        )
    }
    rows = []
    layer = model.model.layers[0]
    handle = layer.self_attn.q_proj.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0][0, :12]))
    with torch.inference_mode():
        for index in range(3):
            model(input_ids=sequences.ids[index : index + 1, :12])
    handle.remove()
    expected = torch.cat(rows).square().mean(0).numpy()
    np.testing.assert_allclose(found["model.layers.0.self_attn.q_proj.weight"], expected, rtol=1e-5)
    assert "lm_head.weight" not in found
    save_importance(found, tmp_path / "importance.safetensors")
    loaded = load_importance(tmp_path / "importance.safetensors")
    assert loaded is not None
    assert all(np.array_equal(loaded[key], found[key]) for key in found)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_fewer_tokens_take_fewer_sequences() -> None:
    model = make_model("llama", rows=64, layers=2)
    task = Task("", 1, "")
    measure_importance(model, text(), VocabularyMap.identity(64), 20, task)
    assert task.done == 32


def test_a_missing_or_damaged_file_is_none(tmp_path: Path) -> None:
    assert load_importance(tmp_path / "none.safetensors") is None
    (tmp_path / "bad.safetensors").write_bytes(b"\x00" * 40)
    assert load_importance(tmp_path / "bad.safetensors") is None
