"""A GGUF teacher that llama.cpp reads otherwise is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model

from stillroom.core.errors import EngineFailed, UnsupportedModel
from stillroom.formats.gguf_file import write_gguf
from stillroom.models.load import load_teacher
from stillroom.recipe.teacher import GgufTeacher
from stillroom.teachers import second_opinion
from stillroom.teachers.second_opinion import compare_with_runtime


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_gguf(tiny_model("llama", folder / "tiny", layers=2), folder / "tiny.gguf", "F16", name="tiny", licence="MIT")
    return folder / "tiny.gguf"


def test_a_file_is_what_llama_cpp_makes_of_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_opinion, "_SEEN", set())
    teacher = load_teacher(GgufTeacher(path=str(file)), "cpu", torch.float32)
    assert compare_with_runtime(teacher, file) == ()
    monkeypatch.setattr(second_opinion, "_SEEN", set())
    teacher.model.model.layers[0].self_attn.q_proj.weight.mul_(-1)
    teacher.model.model.layers[1].mlp.up_proj.weight.mul_(-1)
    with pytest.raises(UnsupportedModel, match=r"llama\.cpp predicts otherwise"):
        compare_with_runtime(teacher, file)


def test_a_runtime_that_does_not_start_is_said(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_opinion, "_SEEN", set())

    def fails(*_: object) -> None:
        raise EngineFailed("no engine")

    monkeypatch.setattr(second_opinion, "Engine", fails)
    teacher = load_teacher(GgufTeacher(path=str(file)), "cpu", torch.float32)
    assert "no engine" in compare_with_runtime(teacher, file)[0]
