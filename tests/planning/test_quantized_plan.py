"""What is said of a quantized teacher before a run: how it is stored, and what it takes on disk and as floats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from planning.test_stage_costs import PROFILE
from tiny_models import with_quantization
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.core.errors import UnsupportedModel
from stillroom.core.sizes import in_words
from stillroom.models.load import config_parameters
from stillroom.models.stored_size import stored_size
from stillroom.planning import plan as planning
from stillroom.recipe.reading import load_recipe, recipe_of
from stillroom.recipe.teacher import GgufTeacher, HuggingFaceTeacher

WORDS = "fp8, 8 bits, blocks of 32 x 32"


def test_scales_are_no_parameters(original: Path, fp8: Path) -> None:
    size = stored_size(HuggingFaceTeacher(name=str(fp8)))
    assert size is not None
    first = config_parameters(HuggingFaceTeacher(name=str(original)))
    assert (size.quantization, size.parameters) == (WORDS, first)
    assert size.stored_bytes == (fp8 / "model.safetensors").stat().st_size
    assert size.dequantized_bytes == {"float32": 4 * first, "bfloat16": 2 * first}
    assert size.words == (
        f"quantized: {WORDS}; {in_words(size.stored_bytes)} on disk, {in_words(4 * first)} once dequantized to float32 "
        f"({in_words(2 * first)} in bfloat16)"
    )
    assert stored_size(HuggingFaceTeacher(name=str(original))) is None
    assert stored_size(GgufTeacher(path="model.gguf")) is None
    with_quantization(fp8, {"quant_method": "gptq", "bits": 4, "group_size": 128})
    with pytest.raises(UnsupportedModel, match="gptq"):
        stored_size(HuggingFaceTeacher(name=str(fp8)))


def test_a_plan_counts_it_as_floats_and_says_so(
    original: Path, fp8: Path, small_recipe: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(planning, "_profile", lambda *_: PROFILE)
    plans = [
        planning.make_plan(recipe_of(small_recipe(folder, student={"kind": "shrink", "layers": 1})), tmp_path)
        for folder in (original, fp8)
    ]
    first, mine = plans
    assert first["quantized"] == {}
    assert mine["teacher_parameters"] == first["teacher_parameters"]
    assert {name: stage["memory_bytes"] for name, stage in mine["stages"].items()} == {
        name: stage["memory_bytes"] for name, stage in first["stages"].items()
    }
    assert mine["quantized"]["teacher"]["dequantized_bytes"]["float32"] == 4 * mine["teacher_parameters"]
    json.dumps(mine)
    capsys.readouterr()
    planning.show_plan(mine)
    assert f"            quantized: {WORDS}; " in capsys.readouterr().err
    planning.show_plan(first)
    assert "quantized" not in capsys.readouterr().err


def test_a_plan_names_another_quantized_teacher(
    original: Path, fp8: Path, small_recipe: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(planning, "_profile", lambda *_: PROFILE)
    settings = small_recipe(
        original, student={"kind": "shrink", "layers": 1}, teachers={"code": {"kind": "huggingface", "name": str(fp8)}}
    )
    settings["corpus"]["sources"][0]["teacher"] = {"teacher": 1, "code": 1}
    plan = planning.make_plan(recipe_of(settings), tmp_path)
    assert list(plan["quantized"]) == ["code"]
    capsys.readouterr()
    planning.show_plan(plan)
    shown = capsys.readouterr().err
    assert shown.count("quantized: ") == 1
    assert shown.index("`code`: ") < shown.index("quantized: ")


def test_inspect_and_init_say_and_heed_it(original: Path, fp8: Path, tmp_path: Path) -> None:
    def said(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    assert f"quantized: {WORDS}; " in said("inspect", fp8)
    found = json.loads(said("inspect", fp8, "--json"))["quantized"]
    assert found["parameters"] == config_parameters(HuggingFaceTeacher(name=str(fp8)))
    assert json.loads(said("inspect", original, "--json"))["quantized"] is None
    (tmp_path / "text.txt").write_text("Some text.")
    targets = []
    for folder in (original, fp8):
        recipe = tmp_path / f"{folder.name}.yaml"
        said(
            "init",
            recipe,
            "--text",
            tmp_path / "text.txt",
            "--teacher",
            folder,
            "--licence",
            "PSF-2.0",
            "--size",
            "50%",
            "--own",
            "A. Tester",
        )
        targets.append(load_recipe(recipe).student.target.parameters)
    assert targets[0] == targets[1]
    with_quantization(fp8, {"quant_method": "gptq", "bits": 4, "group_size": 128})
    assert "as a teacher it is refused" in said("inspect", fp8)
    refused = json.loads(said("inspect", fp8, "--json"))["quantized"]
    assert refused["quantization"] == "gptq, 4 bits, groups of 128"
    assert "gptq" in refused["refused"]
