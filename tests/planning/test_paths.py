"""What a recipe names to be written, and sizes that do not fit, are refused by the plan and touched by nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import tiny_model
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.core.errors import RecipeError, UnsupportedModel, UsageError
from stillroom.pipeline import run_stage
from stillroom.planning.plan import make_plan
from stillroom.recipe.reading import recipe_of


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "teacher", layers=3)


@pytest.mark.parametrize("kind", ["text", "safetensors", "folder"])
def test_a_file_of_importance_replaces_nothing_else(
    kind: str, teacher: Path, small_recipe: Any, tmp_path: Path
) -> None:
    path = tmp_path / "precious"
    if kind == "folder":
        path.mkdir()
        (path / "a").write_text("mine")
    elif kind == "text":
        path.write_text("mine")
    else:
        save_file({"a": torch.ones(2)}, path)
    before = sorted((file.name, file.stat().st_ino) for file in tmp_path.rglob("*"))
    recipe = recipe_of(
        small_recipe(teacher, student={"kind": "shrink", "layers": 2, "importance": {"path": str(path)}})
    )
    for go in (lambda: make_plan(recipe, tmp_path), lambda: run_stage(recipe, "shrink", tmp_path, quiet=True)):
        with pytest.raises(RecipeError, match=r"student.importance.path.*not written over"):
            go()
    assert sorted((file.name, file.stat().st_ino) for file in tmp_path.rglob("*")) == before


def test_a_file_of_importance_that_is_ours_is_used(teacher: Path, small_recipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "importance"
    settings = small_recipe(teacher, student={"kind": "shrink", "layers": 2, "importance": {"path": str(path)}})
    run_stage(recipe_of(settings), "shrink", tmp_path, quiet=True)
    written = path.read_bytes()
    run_stage(recipe_of(settings | {"name": "again"}), "shrink", tmp_path, quiet=True)
    assert path.read_bytes() == written


def test_a_cache_that_is_a_file_is_refused_by_the_plan(teacher: Path, small_recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("mine")
    recipe = recipe_of(small_recipe(teacher, capture={"path": str(tmp_path / "cache")}))
    with pytest.raises(RecipeError, match=r"capture.path.*is a file"):
        make_plan(recipe, tmp_path)
    assert (tmp_path / "cache").read_text() == "mine"


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_positions_of_another_kind_are_planned(key: str, teacher: Path, small_recipe: Any, tmp_path: Path) -> None:
    """Dynamic RoPE looks into the numbers of its positions, which a model without weights has none of."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    student = {"kind": "fresh", "config": {key: rope}}
    recipe = recipe_of(small_recipe(teacher, student=student, export={"gguf": []}))
    assert make_plan(recipe, tmp_path)["steps"] > 0


def test_layers_have_a_limit_under_any_name(small_recipe: Any, tmp_path: Path) -> None:
    teacher = tiny_model("gpt2", tmp_path / "gpt2", layers=2)
    recipe = recipe_of(small_recipe(teacher, student={"kind": "fresh", "config": {"n_layer": 10**9}}))
    with pytest.raises(UnsupportedModel, match="at most 10,000"):
        make_plan(recipe, tmp_path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"vocab_size": 5}, "`vocab_size`, which does nothing"),
        ({"num_hidden_layers": 0}, "`student.config.num_hidden_layers` is 0"),
        ({"num_hidden_layers": "two"}, "`student.config.num_hidden_layers` is 'two'"),
        ({"hidden_size": 30}, "hidden size"),
        ({"num_attention_heads": 3}, "student.config"),
        ({"hidden_act": "nope"}, "nope"),
        ({"hidden_act": 0}, "`student.config.hidden_act` is 0, and the teacher's is 'silu'"),
        ({"model_type": "gpt2"}, "`model_type`, which is not of the network"),
        ({"architectures": []}, "`architectures`, which is not of the network"),
        ({"eos_token_id": -1}, "`eos_token_id`, which is not of the network"),
        ({"to_dict": 1}, "`student.config.to_dict` is not a key"),
        ({"_name_or_path": "x"}, "`_name_or_path`, which is not of the network"),
        ({"n_inner": 64}, "`student.config.n_inner` is not a key"),
        ({"hidden_size": -64}, "`student.config.hidden_size` is -64"),
        ({"num_hidden_layers": 10**9}, "at most 10,000"),
        ({"max_position_embeddings": 0}, "`student.config.max_position_embeddings` is 0"),
        ({"max_position_embeddings": "long"}, "`student.config.max_position_embeddings` is 'long'"),
        ({"attention_dropout": 3}, "`student.config.attention_dropout` is 3"),
        ({"attention_dropout": None}, "`student.config.attention_dropout` is None"),
        ({"pretraining_tp": -1}, "from 0 to 2,147,483,647"),
        ({"pretraining_tp": 2**40}, "from 0 to 2,147,483,647"),
        ({"rms_norm_eps": "small"}, "Write a number"),
        ({"attention_bias": "yes"}, "Write true or false"),
        ({"num_key_value_heads": 3}, "student.config"),
    ],
)
def test_a_fresh_student_that_cannot_be_is_refused_by_the_plan(
    config: dict[str, Any], words: str, teacher: Path, small_recipe: Any, tmp_path: Path
) -> None:
    recipe = recipe_of(small_recipe(teacher, student={"kind": "fresh", "config": config}))
    with pytest.raises(UnsupportedModel, match=words):
        make_plan(recipe, tmp_path)


@pytest.mark.parametrize(
    ("family", "key", "config"),
    [
        ("llama", "max_position_embeddings", {}),
        ("gpt2", "n_positions", dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)),
    ],
)
def test_a_fresh_student_with_fewer_positions_than_a_sequence_is_refused_by_the_plan(
    family: str, key: str, config: dict[str, Any], small_recipe: Any, tmp_path: Path
) -> None:
    folder = tiny_model(family, tmp_path / "teacher", layers=2)
    for length in (16, 63, 64):
        student = {"kind": "fresh", "config": config | {key: length}}
        recipe = recipe_of(small_recipe(folder, student=student))
        if length < 64:
            with pytest.raises(RecipeError, match=rf"sequence_length` is 64, and `student.config.{key}` is {length}:"):
                make_plan(recipe, tmp_path)
        else:
            assert make_plan(recipe, tmp_path)["verdict"] == "go"


def test_sequences_longer_than_a_table_of_positions_are_refused(tmp_path: Path, small_recipe: Any) -> None:
    folder = tiny_model("gpt2", tmp_path / "teacher", layers=2)
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    settings = small_recipe(folder, student={"kind": "fresh", "config": {"num_hidden_layers": 1} | dropout})
    for length in (4096, 64):
        settings["corpus"] |= {"sequence_length": length, "train_tokens": 8192}
        recipe = recipe_of(settings)
        if length > 2048:
            with pytest.raises(RecipeError, match=r"`corpus.sequence_length` is 4,096, and the teacher knows 2,048"):
                make_plan(recipe, tmp_path)
        else:
            assert make_plan(recipe, tmp_path)["verdict"] == "go"


def test_tasks_that_the_recipe_does_not_name_are_not_measured_in_silence(
    teacher: Path, small_recipe: Any, tmp_path: Path
) -> None:
    made = run_stage(recipe_of(small_recipe(teacher)), "corpus", tmp_path, quiet=True)
    done = CliRunner().invoke(app, ["evaluate", str(made.path), "--only", "tasks"])
    assert isinstance(done.exception, UsageError)
    assert "names no tasks" in str(done.exception)
