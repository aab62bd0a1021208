"""The stage `shrink`: every kind of student, in every family, from a recipe to a folder that opens again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import tiny_sequences
from tiny_models import FAMILIES, tiny_model

from stillroom.core.errors import RecipeError, UnsupportedModel, VocabularyMismatch
from stillroom.corpus.sequences import Sequences
from stillroom.models.families.registry import families, family_of
from stillroom.models.load import load_student, load_tokenizer
from stillroom.pipeline import run
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.student import VocabularyConfig
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.students.importance import Sample
from stillroom.students.measured import Measured
from stillroom.students.shape import Anatomy
from stillroom.students.shrink import shrink
from stillroom.students.stage import choose_vocabulary

LAYERS = 4


def recipe(text: Path, teacher: Path, student: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "r",
            "corpus": {"sources": [{"kind": "text", "path": str(text)}], "sequence_length": 64, "train_tokens": 2048},
            "teacher": {"kind": "huggingface", "name": str(teacher)},
            "student": student,
            "compute": {"device": "cpu"},
            "export": {"gguf": []},  # llama.cpp does not take every shape of every family
            "terms": {
                "decisions": [
                    {"subject": role, "kind": "own", "decided_by": "tests", "decided_at": "2026-11-24T00:00:00Z"}
                    for role in ("teacher", "student")
                ]
            },
        }
    )


def made(root: Path, text: Path, teacher: Path, student: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    folder = run(recipe(text, teacher, student), root, until="shrink", quiet=True).path
    return folder, json.loads((folder / "shrink" / "shrink.json").read_text())


def opened(folder: Path) -> tuple[Any, Any, VocabularyMap]:
    model, tokenizer = load_student(folder / "shrink" / "model", torch.float32)
    return model.eval(), tokenizer, VocabularyMap.load(folder / "shrink" / "vocabulary.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_of_every_family(family: str, text: Path, tmp_path: Path) -> None:
    teacher = tiny_model(family, tmp_path / "teacher", layers=LAYERS, padding_rows=3)
    student = {
        "kind": "shrink",
        "layers": 3,
        "intermediate_size": 96,
        "kv_heads": 1,
        "hidden_size": 48,
        "importance": {"tokens": 512},
        "vocabulary": {"size": 400, "languages": ["de", "ja"]},
    }
    folder, facts = made(tmp_path / "runs", text, teacher, student)
    model, tokenizer, vocabulary = opened(folder)
    config = model.config
    assert (config.num_hidden_layers, config.intermediate_size) == (3, 96)
    assert (config.num_key_value_heads, config.num_attention_heads, config.hidden_size) == (1, 2, 48)
    assert model.get_output_embeddings().weight.shape == (config.vocab_size, 48)
    assert config.vocab_size == vocabulary.student_size <= 400
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert len(facts["layers"]["kept"]) == 3
    assert set(facts["languages"]) == {"de", "ja"}
    assert all(cost["after"] >= cost["before"] > 0 for cost in facts["languages"].values())
    assert (folder / "importance.safetensors").is_file()
    assert len(facts["layers"]["leave_one_out_kl"]) == len(facts["layers"]["block_influence"]) == LAYERS
    assert bool(facts["layers"]["note"]) == families()[family].norm_after
    assert (folder / "shrink" / "cut" / "model.safetensors").is_file() == facts["layers"]["healed"]
    # The tokenizer that the folder opens with gives the ids that the map gives.
    original = load_tokenizer(recipe(text, teacher, student).teacher)
    assert config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.chat_template == original.chat_template
    assert len(tokenizer) == vocabulary.student_used
    held = Sequences.load(folder / "corpus" / "validation.safetensors")
    ids = held.ids[0][held.segments[0] == 0]
    pieces, _ = vocabulary.expand(ids)
    words = original.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode(pieces, skip_special_tokens=True) == words
    assert tokenizer.decode(tokenizer(words, add_special_tokens=False).input_ids, skip_special_tokens=True) == words
    kept_text = original.decode(ids[vocabulary.lengths[ids] == 1][:1], skip_special_tokens=True)
    old = torch.tensor(original(kept_text, add_special_tokens=False).input_ids)
    if len(old) and bool((vocabulary.lengths[old] == 1).all()):
        assert tokenizer(kept_text, add_special_tokens=False).input_ids == vocabulary.first[old].tolist()
    with torch.no_grad():
        logits = model(pieces[None]).logits
    assert torch.isfinite(logits).all()


def test_layers_that_a_recipe_names_are_removed_without_a_search(text: Path, tmp_path: Path) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher", layers=LAYERS)
    student = {
        "kind": "shrink",
        "layers": LAYERS - 2,
        "intermediate_size": 64,
        "importance": {"tokens": 512},
        "vocabulary": {"keep": "all"},
    }
    found, facts = made(tmp_path / "found", text, teacher, student)
    removed = facts["layers"]["removed"]
    assert len(removed) == 2
    assert facts["layers"]["leave_one_out_kl"]
    named, again = made(tmp_path / "named", text, teacher, student | {"remove_layers": removed})
    # The same student to the bit, and nothing was compared on the way.
    weights = [(folder / "shrink" / "model" / "model.safetensors").read_bytes() for folder in (found, named)]
    assert weights[0] == weights[1]
    assert again["layers"]["removed"] == removed
    assert again["layers"]["candidates"] == again["layers"]["leave_one_out_kl"] == []
    assert again["layers"]["healed_kl"] == facts["layers"]["healed_kl"]
    with pytest.raises(RecipeError, match=r"names layer 9, and the teacher has"):
        made(tmp_path / "other", text, teacher, student | {"remove_layers": [9]})
    with pytest.raises(RecipeError, match=rf"`student\.layers` is {LAYERS - 2}, and {LAYERS - 1} of"):
        made(tmp_path / "other", text, teacher, student | {"remove_layers": [1]})
    for wrong, words in (({"layers": None}, "needs `layers`"), ({"remove_layers": [1, 1]}, "names a layer twice")):
        with pytest.raises(ValueError, match=words):
            recipe(text, teacher, student | {"remove_layers": removed} | wrong)


def test_a_target_decides_the_shape(text: Path, tmp_path: Path) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher", layers=LAYERS)
    student = {
        "kind": "shrink",
        "target": {"parameters": 120_000},
        "importance": {"tokens": 512},
        "vocabulary": {"keep": "all"},
    }
    folder, facts = made(tmp_path / "runs", text, teacher, student)
    assert facts["parameters"] <= 120_000 < facts["teacher_parameters"]
    assert facts["planned"]["turned_down"]
    assert opened(folder)[0].config.num_hidden_layers == facts["shape"]["layers"]
    with pytest.raises(RecipeError, match=r"`student\.target\.parameters` is 10"):
        made(tmp_path / "other", text, teacher, student | {"target": {"parameters": 10}})


def test_all_layers_and_ids_give_the_teacher_back(tmp_path: Path) -> None:
    whole, tokenizer = load_student(
        tiny_model("qwen3", tmp_path / "teacher", layers=LAYERS, padding_rows=5), torch.float32
    )
    rows = whole.get_output_embeddings().weight.shape[0]
    text = tiny_sequences(8, 64, ids=len(tokenizer))
    _, vocabulary, kept = choose_vocabulary(VocabularyConfig(keep="all"), tokenizer, rows, text)
    family = family_of(whole)
    measured = Measured.of(whole.eval(), family, Sample.of(text, 256))
    model = shrink(whole, family, Anatomy.of(whole, family).teacher, measured, repair=True).model
    for (name, mine), (_, theirs) in zip(model.state_dict().items(), whole.state_dict().items(), strict=True):
        assert torch.equal(mine, theirs), name
    # The teacher's padding rows are no ids.
    assert kept is None
    assert vocabulary.student_size - vocabulary.student_used == 5
    assert vocabulary.first[-5:].tolist() == [-1] * 5


def test_a_student_that_would_be_the_teacher_is_refused(text: Path, tmp_path: Path) -> None:
    teacher = tiny_model("qwen3", tmp_path / "teacher", layers=LAYERS, padding_rows=5)
    for name, sizes in (("none", {}), ("all", {"layers": LAYERS}), ("phone", {"target": {"device": "phone-4gb"}})):
        student = {"kind": "shrink", "vocabulary": {"keep": "all"}, "importance": {"tokens": 256}} | sizes
        with pytest.raises(RecipeError, match=r"Nothing to prune: .* The student would be the teacher itself"):
            made(tmp_path / name, text, teacher, student)
    # With fewer ids it is another model.
    student = {"kind": "shrink", "vocabulary": {"size": 400}, "importance": {"tokens": 256}}
    _, facts = made(tmp_path / "fewer", text, teacher, student)
    assert facts["layers"]["removed"] == []
    assert facts["parameters"] < facts["teacher_parameters"]


def test_more_than_the_teacher_has_is_refused(text: Path, tmp_path: Path) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher", layers=LAYERS)
    for key, value in (("layers", 5), ("intermediate_size", 999), ("kv_heads", 9), ("hidden_size", 999)):
        with pytest.raises(UnsupportedModel, match=rf"`student\.{key}` is {value}"):
            made(tmp_path / key, text, teacher, {"kind": "shrink", key: value, "importance": {"tokens": 128}})
    with pytest.raises(RecipeError, match=r"`student\.hidden_size` is 62; with 4 query heads.*multiples of 4 only"):
        made(tmp_path / "62", text, teacher, {"kind": "shrink", "hidden_size": 62, "importance": {"tokens": 128}})
    with pytest.raises(RecipeError, match="no sample of 'xx'"):
        made(tmp_path / "xx", text, teacher, {"kind": "shrink", "vocabulary": {"languages": ["xx"]}})


def test_a_fresh_student(text: Path, tmp_path: Path) -> None:
    teacher = tiny_model("smollm3", tmp_path / "teacher", layers=LAYERS)
    folder, facts = made(tmp_path / "runs", text, teacher, {"kind": "fresh", "config": {"num_hidden_layers": 2}})
    assert opened(folder)[0].config.num_hidden_layers == 2
    assert facts["parameters"] < facts["teacher_parameters"]
    with pytest.raises(UnsupportedModel, match=r"student\.config\.n_layers"):
        made(tmp_path / "other", text, teacher, {"kind": "fresh", "config": {"n_layers": 2}})


def test_an_existing_student_with_other_padding(text: Path, tmp_path: Path) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher", layers=LAYERS, padding_rows=8)
    smaller = tiny_model("llama", tmp_path / "smaller", layers=2, seed=1)
    folder, _ = made(tmp_path / "runs", text, teacher, {"kind": "existing", "name": str(smaller)})
    model, _, vocabulary = opened(folder)
    assert model.config.num_hidden_layers == 2
    assert vocabulary.teacher_size == vocabulary.student_size + 8
    assert vocabulary.first[-8:].tolist() == [-1] * 8


def test_an_existing_student_with_another_vocabulary_is_refused(text: Path, tmp_path: Path) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher", layers=LAYERS)
    other = tiny_model("llama", tmp_path / "other", layers=2, vocabulary_size=400)
    with pytest.raises(VocabularyMismatch, match=r"different vocabularies: the token .* none in `student`") as caught:
        made(tmp_path / "runs", text, teacher, {"kind": "existing", "name": str(other)})
    assert "student: {kind: shrink}" in caught.value.todo


def test_other_families_are_refused_by_name(text: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, PhimoeConfig

    teacher = tiny_model("llama", tmp_path / "teacher", layers=2)
    config = PhimoeConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(teacher)
    with pytest.raises(UnsupportedModel, match=r"`phimoe` cannot be shrunk. It is a mixture of experts") as caught:
        made(tmp_path / "runs", text, teacher, {"kind": "shrink", "layers": 1})
    assert "smollm3" in caught.value.todo


@pytest.mark.parametrize("family", ["qwen2", "phi3", "olmo2"])
def test_a_shape_that_llama_cpp_does_not_take_is_refused_before_anything_is_pruned(
    family: str, text: Path, tmp_path: Path
) -> None:
    teacher = tiny_model(family, tmp_path / "teacher", layers=2)
    settings = recipe(text, teacher, {"kind": "shrink", "hidden_size": 48}).model_dump(mode="json")
    settings["export"]["gguf"] = ["F16"]
    with pytest.raises(RecipeError, match=r"hidden_size` is 48; llama.cpp takes only 64 with 4 query heads"):
        run(Recipe.model_validate(settings), tmp_path / "runs", until="shrink", quiet=True)
