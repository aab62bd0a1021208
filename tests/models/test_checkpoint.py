"""Damaged and odd checkpoints are refused by name; whole ones open."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model

from benchmarks.models import FILE_FAULTS, TENSOR_FAULTS, damages
from stillroom.core.errors import StillroomError, TeacherError
from stillroom.models.load import load_student, load_teacher
from stillroom.recipe.teacher import HuggingFaceTeacher

Weights = dict[str, torch.Tensor]
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "whole", layers=2, tied=False)


def changed(whole: Path, target: Path, change: Callable[[Weights], Weights]) -> Path:
    shutil.copytree(whole, target)
    save_file(change(load_file(whole / "model.safetensors")), target / "model.safetensors", metadata={"format": "pt"})
    return target


def opened(folder: Path) -> None:
    load_teacher(HuggingFaceTeacher(name=str(folder)), "cpu", torch.float32)


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: value for key, value in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without(UP), rf"the tensor {UP} is missing; random numbers"),
        (without("model.norm.weight"), r"model\.norm\.weight is missing"),
        (without("lm_head.weight"), r"lm_head\.weight is missing"),
        (lambda weights: {"module." + key: value for key, value in weights.items()}, r"begins with `module\.`"),
        (lambda weights: {"_orig_mod." + key: value for key, value in weights.items()}, r"begins with `_orig_mod\.`"),
        (lambda weights: {"base_model.model." + key: value for key, value in weights.items()}, r"`base_model\.model\.`"),
        (
            lambda weights: weights
            | {k.replace("layers.1.", "layers.2."): v.clone() for k, v in weights.items() if "layers.1." in k},
            r"9 tensors \(model\.layers\.2\.",
        ),
        (lambda weights: weights | {UP: weights[UP] * float("nan")}, rf"{UP} holds 8,192 of 8,192 numbers that are not"),
        (lambda weights: weights | {UP: weights[UP][:-1].clone()}, rf"{UP} is 127 x 64, and the config makes it 128 x 64"),
        (lambda weights: weights | {UP: weights[UP].to(torch.int8)}, rf"{UP} is stored as I8"),
        (lambda weights: weights | {"norm.weight": weights["model.norm.weight"] * 2}, r"held twice"),
        (lambda _: {}, r"tensors \(lm_head\.weight"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_refused_by_name(
    whole: Path, tmp_path: Path, change: Callable[[Weights], Weights], says: str
) -> None:
    folder = changed(whole, tmp_path / "damaged", change)
    for load in (lambda: opened(folder), lambda: load_student(folder, torch.float32)):
        with pytest.raises(TeacherError, match=says):
            load()


def test_an_output_matrix_that_is_not_the_embedding_is_not_tied_away(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "tied")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(TeacherError, match=r"tie_word_embeddings: true.*differs from the embedding"):
        opened(folder)


def test_what_is_not_damaged_opens(whole: Path, tmp_path: Path) -> None:
    """Names without the body's prefix, another float type, a tied matrix that is stored twice."""
    bare = changed(
        whole, tmp_path / "bare", lambda weights: {key.removeprefix("model."): v for key, v in weights.items()}
    )
    half = changed(whole, tmp_path / "half", lambda weights: {key: v.half() for key, v in weights.items()})
    tied = tiny_model("llama", tmp_path / "tied", layers=2, tied=True)
    twice = changed(
        tied,
        tmp_path / "twice",
        lambda weights: weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()},
    )
    for folder in (bare, half, tied, twice):
        opened(folder)


def test_more_ids_than_rows_are_refused_by_name(whole: Path, tmp_path: Path) -> None:
    from stillroom.models.tokenizer import open_tokenizer

    folder = shutil.copytree(whole, tmp_path / "pad")
    tokenizer = open_tokenizer(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(TeacherError, match=r"513 ids and its embedding 512 rows: '\[PAD\]' \(512\) has none"):
        opened(folder)


def test_of_several_named_templates_the_default_is_taken(whole: Path, tmp_path: Path) -> None:
    from stillroom.models.tokenizer import open_tokenizer

    folder = shutil.copytree(whole, tmp_path / "named")
    tokenizer = open_tokenizer(folder)
    tokenizer.chat_template = {"default": "{{ messages[0]['content'] }}", "tool_use": "tools"}
    tokenizer.save_pretrained(folder)
    assert open_tokenizer(folder).chat_template == "{{ messages[0]['content'] }}"
    tokenizer.chat_template = {"rag": "a", "tool_use": "tools"}
    other = shutil.copytree(whole, tmp_path / "other")
    for file in ("chat_template.jinja", "tokenizer_config.json"):
        (other / file).unlink(missing_ok=True)
    tokenizer.save_pretrained(other)
    with pytest.raises(TeacherError, match=r"several chat templates \(rag, tool_use\)"):
        open_tokenizer(other)


def test_code_that_a_config_names_is_not_run_where_the_family_is_known(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "mapped")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}))
    teacher = load_teacher(HuggingFaceTeacher(name=str(folder)), "cpu", torch.float32)
    assert "`auto_map`" in teacher.notes[0]
    assert type(teacher.model).__name__ == "LlamaForCausalLM"


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    return damages("qwen3_moe", tmp_path_factory.mktemp("faults"))


def test_every_fault_in_every_part_of_a_mixture_is_refused(faults: Iterator[tuple[str, Path]]) -> None:
    """One of each kind of fault: of tensors, and of files."""
    seen: set[str] = set()
    kinds = {*TENSOR_FAULTS, *FILE_FAULTS}
    for fault, folder in faults:
        kind = fault.rsplit(" ", 1)[0]
        if fault == "none":
            opened(folder)
        elif kind not in seen:
            seen.add(kind)
            with pytest.raises(StillroomError):
                opened(folder)
        if seen == kinds:
            break
    assert seen == kinds


def test_files_of_two_versions_are_refused(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "both")
    shutil.copyfile(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    with pytest.raises(TeacherError, match="parts of another version"):
        opened(folder)
    index = {
        "metadata": {},
        "weight_map": dict.fromkeys(load_file(folder / "model.safetensors"), "model-00001-of-00001.safetensors"),
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(TeacherError, match="two versions of its weights"):
        opened(folder)
    (folder / "model.safetensors").unlink()
    opened(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(TeacherError, match=r"index\.json is missing"):
        opened(folder)
