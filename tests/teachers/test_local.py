"""A local teacher's scores are its model's own, and who needs weights refuses teachers without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from signals.cache_material import sequences_of
from teachers.teacher_material import TableTeacher, local_teacher
from tiny_models import make_model, tiny_model

from stillroom import pipeline
from stillroom.core.errors import TeacherError
from stillroom.models.load import load_teacher
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.teacher import HuggingFaceTeacher
from stillroom.teachers import registry
from stillroom.teachers.registry import open_teacher
from stillroom.teachers.teacher import weights_of

CPU = torch.device("cpu")
TEXT = sequences_of(5, 24)


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_scores_are_the_models_own_log_probs(family: str, temperature: float) -> None:
    model = make_model(family, rows=100, layers=2)
    with torch.no_grad():
        logits = model(input_ids=TEXT.ids, position_ids=TEXT.positions, use_cache=False).logits.float()
    found = dict.fromkeys(range(len(TEXT)), 0)
    for index, chunks in local_teacher(model).score(TEXT, [3, 0, 4], temperature):
        scores = torch.cat(list(chunks))
        expected = torch.log_softmax(logits[index][TEXT.targets[index] >= 0] / temperature, dim=1)
        assert scores.dtype == torch.float32
        assert torch.allclose(torch.log_softmax(scores, dim=1), expected, atol=1e-5)
        found[index] += 1
    assert found == {0: 1, 1: 0, 2: 0, 3: 1, 4: 1}


def test_a_local_teacher_says_who_it_is(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "teacher", padding_rows=3)
    config = HuggingFaceTeacher(name=str(folder), licence="MIT")
    loaded = load_teacher(config, "cpu", torch.bfloat16)
    teacher = open_teacher(config, CPU, torch.bfloat16)
    digests = {"teacher": loaded.digest, "config": loaded.config_digest, "tokenizer": loaded.tokenizer_digest}
    assert teacher.identity == digests
    # What a teacher computes is in its config, too: not its name, nor in which dtype, nor what wrote it.
    stored = json.loads((folder / "config.json").read_text())
    for changed, same in (
        ({"transformers_version": "9", "_name_or_path": "elsewhere", "dtype": "float16"}, True),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, False),
    ):
        (folder / "config.json").write_text(json.dumps(stored | changed))
        again = open_teacher(config, CPU, torch.bfloat16).identity
        assert (again == digests) is same
    assert teacher.vocabulary.size == len(loaded.tokenizer) + 3
    assert teacher.vocabulary.tokenizer.get_vocab() == loaded.tokenizer.get_vocab()
    assert (teacher.licence, teacher.dtype) == ("MIT", "bfloat16")
    assert teacher.record() == {
        "name": "teacher",
        "family": "llama",
        "digest": loaded.digest,
        "tokenizer_digest": loaded.tokenizer_digest,
        "licence": "MIT",
        "parameters": loaded.parameters,
        "bytes": loaded.stored_bytes,
        "dtype": "bfloat16",
    }
    assert weights_of(teacher, "A test").parameters == loaded.parameters


@pytest.mark.parametrize("stage", ["shrink", "evaluate"])
def test_a_stage_that_needs_weights_refuses_a_teacher_without(
    stage: str, small_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.model_validate(small_recipe(tiny_model("llama", tmp_path / "teacher", layers=3), baseline=False))
    if stage == "evaluate":
        pipeline.run(recipe, tmp_path, quiet=True, until="distill")

    def opened(*_: Any) -> TableTeacher:
        return TableTeacher(torch.zeros(512, 512), name="table.example")

    monkeypatch.setitem(registry.OPENERS, "huggingface", opened)
    with pytest.raises(TeacherError) as refused:
        pipeline.run(recipe, tmp_path, quiet=True, until=stage)
    assert f"The stage `{stage}` needs the teacher's weights" in str(refused.value)
    assert "table.example gives: whole distribution over the vocabulary" in str(refused.value)
    assert "kind: huggingface" in refused.value.todo
    assert not (tmp_path / "small" / stage / "stage.json").exists()
