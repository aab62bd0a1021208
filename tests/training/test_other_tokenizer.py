"""The whole path of a student with another tokenizer than its teacher."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from stillroom.core.errors import RecipeError, VocabularyMismatch
from stillroom.corpus.sequences import Sequences
from stillroom.pipeline import run
from stillroom.planning.plan import make_plan
from stillroom.recipe.recipe import Recipe
from stillroom.signals.alignment import Alignment, load_vocabulary
from stillroom.signals.batches import BatchSource
from stillroom.signals.cache.reader import TeacherCache


def settings_of(make: Any, teacher: Path, student: Path, **sections: Any) -> dict[str, Any]:
    found: dict[str, Any] = make(
        teacher,
        student={"kind": "existing", "name": str(student), "tokenizer": "own"},
        capture={"codec": {"kind": "hidden"}},
        export={"gguf": []},
        baseline=False,
        evaluate={"speed_tokens": 0, "bootstrap_samples": 200, "measures": ["fidelity", "cost"]},
    )
    found["corpus"] |= {"train_tokens": 512}
    return found | sections


def test_from_one_recipe(small_recipe: Any, tmp_path: Path) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher", layers=2, vocabulary_size=700)
    student = tiny_model("llama", tmp_path / "student", layers=1, vocabulary_size=400, seed=5, padding_rows=3)
    recipe = Recipe.model_validate(settings_of(small_recipe, teacher, student))
    plan = make_plan(recipe, tmp_path / "runs")
    assert 0.2 < plan["alignment"]["distribution"] < 1
    assert plan["alignment"]["chunks"] > 0
    assert "another tokenizer" in plan["student_note"]
    made = run(recipe, tmp_path / "runs", quiet=True)
    facts = json.loads((made.path / "shrink" / "shrink.json").read_text())
    assert facts["alignment"] == plan["alignment"]
    vocabulary = load_vocabulary(made.path / "shrink" / "vocabulary.safetensors")
    assert isinstance(vocabulary, Alignment)
    # What it learns from is what the alignment says.
    text = Sequences.load(made.path / "corpus" / "train.safetensors")
    batch = BatchSource(text, vocabulary, TeacherCache.open(made.path / "capture" / "cache")).batch([0, 1])
    assert batch.chunks is not None
    assert bool((batch.chunks.logprobs < 0).all())
    assert len(batch.chunks.number) == len(batch.targets)
    compared = torch.isfinite(batch.signal.logprobs).any(1)  # type: ignore[union-attr]
    assert not bool((compared & (batch.chunks.number >= 0)).any())
    # It has come closer, by its own loss and by bits per byte.
    history = json.loads((made.path / "distill" / "history.json").read_text())
    assert "whole chunks" in history["kl_is"]
    kls = [entry["kl"] for entry in history["validations"]]
    assert min(kls[1:]) < kls[0]
    evaluation = json.loads((made.path / "evaluate" / "evaluation.json").read_text())
    bits = {name: entry["bits_per_byte"] for name, entry in evaluation["models"].items()}
    assert bits["student"] < bits["shrunk"]
    assert evaluation["models"]["student"]["kl_is"] == "at least"
    assert any("bits per byte" in line for line in evaluation["measures"]["fidelity"]["warnings"])
    assert "at least" in (made.path / "report.md").read_text(encoding="utf-8")


def test_with_the_teachers_own_tokenizer_it_is_the_plain_run(small_recipe: Any, tmp_path: Path) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher", layers=2)
    student = tiny_model("llama", tmp_path / "student", layers=1, seed=5)
    kls = {}
    for kind in ("teacher", "own"):
        given = settings_of(small_recipe, teacher, student, name=kind)
        given["student"] = given["student"] | {"tokenizer": kind}
        made = run(Recipe.model_validate(given), tmp_path / "runs", quiet=True, until="distill")
        history = json.loads((made.path / "distill" / "history.json").read_text())
        kls[kind] = [entry["kl"] for entry in history["validations"]]
    assert len(kls["own"]) == len(kls["teacher"]) > 2
    for mine, plain in zip(kls["own"], kls["teacher"], strict=True):
        assert math.isclose(mine, plain, rel_tol=1e-4)


def test_what_it_cannot_learn_from_is_refused_first(small_recipe: Any, tmp_path: Path) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher", layers=2, vocabulary_size=700)
    student = tiny_model("llama", tmp_path / "student", layers=1, vocabulary_size=400)
    for sections, words in (
        ({"capture": {"codec": {"kind": "threshold"}}}, "exact probabilities"),
        (
            {"capture": {"codec": {"kind": "hidden"}, "temperature": 2.0}, "distill": {"temperature": 2.0}},
            "temperature",
        ),
    ):
        recipe = Recipe.model_validate(settings_of(small_recipe, teacher, student, **sections))
        with pytest.raises(RecipeError, match=words):
            run(recipe, tmp_path / "runs", quiet=True)
        assert not (tmp_path / "runs" / "small" / "corpus" / "stage.json").exists()
    plain = settings_of(small_recipe, teacher, student, name="plain")
    plain["student"] = {"kind": "existing", "name": str(student)}
    with pytest.raises(VocabularyMismatch, match="different vocabularies") as raised:
        run(Recipe.model_validate(plain), tmp_path / "runs", quiet=True, until="shrink")
    assert not (tmp_path / "runs" / "plain").exists(), "refused before the text is read"
    assert "student.tokenizer: own" in raised.value.todo


def test_chats_that_it_has_no_turns_for_are_refused_before_they_are_written(small_recipe: Any, tmp_path: Path) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher", layers=1)
    student = tiny_model("llama", tmp_path / "student", layers=1, vocabulary_size=400)
    for path in (*student.glob("*.json"), *student.glob("*.jinja")):
        words = path.read_text(encoding="utf-8").replace("<|im_start|>", "<turn>").replace("<|im_end|>", "</turn>")
        path.write_text(words, encoding="utf-8")
    settings = settings_of(small_recipe, teacher, student, write={"forms": ["question_answer"], "max_tokens": 8})
    for act in (make_plan, run):
        with pytest.raises(VocabularyMismatch, match=r"special token `<\|im_"):
            act(Recipe.model_validate(settings), tmp_path / "runs")
    assert not (tmp_path / "runs" / settings["name"] / "write").exists()
