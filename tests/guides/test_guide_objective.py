"""docs/contributing/objective.md, followed: two files, and a run trains with the new objective."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from guide import Guide
from tiny_models import tiny_model

from stillroom.models.forward import Head
from stillroom.recipe.training import OBJECTIVES
from stillroom.signals.signal import DenseSignal
from stillroom.training.losses.fused import FusedLoss

NAME = "hellinger"
FILE = "src/stillroom/training/losses/hellinger.py"
ROW = "src/stillroom/recipe/training.py"


@pytest.fixture
def guide(tmp_path: Path) -> Guide:
    assert NAME not in OBJECTIVES, "the guide's objective has been added: take another one for the page"
    return Guide("objective", tmp_path)


def train_two_steps(guide: Guide, small_recipe: Any, where: str) -> None:
    teacher = tiny_model("llama", guide.folder / "teacher", layers=2)
    recipe = small_recipe(teacher, student={"kind": "shrink", "layers": 1}, baseline=False)
    recipe["corpus"] |= {"train_tokens": 512}
    recipe["capture"] = {"codec": {"kind": "dense"}}
    recipe["distill"] |= {"objective": NAME}
    (guide.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    guide.python("-m", "stillroom", "distill", "recipe.yaml", where=where)
    lines = (guide.folder / "runs" / "small" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [event for event in map(json.loads, lines) if event["stage"] == "distill" and "step" in event]
    trained = [event["loss"] for event in steps if "loss" in event]
    assert len(trained) >= 2
    assert all(0 < loss < 1 for loss in trained)
    validated = [event["kl"] for event in steps if event.get("event") == "validation"]
    assert validated[-1] < validated[0]


@pytest.mark.longer
def test_two_files_in_the_source_tree(guide: Guide, small_recipe: Any) -> None:
    assert guide.follow() == [ROW, FILE]
    train_two_steps(guide, small_recipe, "src")


@pytest.mark.longer
def test_the_tests_of_objectives_take_it_up(guide: Guide) -> None:
    guide.follow()
    shown = guide.pytest()
    for test in (
        "test_the_gradient_is_that_of_the_losses[hellinger-0]",
        "test_self_distillation_has_no_loss_and_no_gradient[hellinger]",
        "test_objectives_that_are_not_linear_refuse_a_sparse_signal[hellinger]",
    ):
        assert f"{test} PASSED" in shown


def test_the_reference_has_its_name(guide: Guide) -> None:
    guide.follow()
    script = "from tools.recipe_reference import reference; print(reference())"
    assert "`log_acceptance` or `hellinger` or a name that another package adds" in guide.python(
        "-c", f"import sys; sys.path.append({str(Path(__file__).parents[2])!r}); {script}"
    )


def test_a_package_of_its_own(guide: Guide, small_recipe: Any) -> None:
    assert guide.install(FILE) == ["stillroom_hellinger.py"]
    train_two_steps(guide, small_recipe, "site")


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_its_gradient_equals_autograds(guide: Guide, seed: int, temperature: float) -> None:
    module = types.ModuleType("hellinger")
    exec(guide.text(FILE), module.__dict__)
    torch.manual_seed(seed)
    hidden, matrix = torch.randn(9, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    teacher = torch.log_softmax(2 * torch.randn(9, 40), 1)
    teacher[0, 3] = -torch.inf
    loss = FusedLoss(module.Hellinger(), temperature=temperature, chunk=4)
    result = loss(hidden, Head(matrix), None, DenseSignal(teacher))
    result.value.backward()
    assert hidden.grad is not None
    assert matrix.grad is not None
    ours = hidden.grad.clone(), matrix.grad.clone()
    hidden.grad = matrix.grad = None
    student = torch.softmax(hidden @ matrix.T / temperature, 1)
    expected = 0.5 * (student.sqrt() - teacher.exp().sqrt()).square().sum(1)
    # With a teacher that rules an id out, ½ Σ (√q − √p)² and 1 − Σ √(p q) differ by the missing half of p's sum.
    expected = expected + 0.5 * (1 - teacher.exp().sum(1))
    (temperature**2 * expected.mean()).backward()
    assert torch.allclose(result.distances, expected.detach(), atol=1e-6)
    assert torch.allclose(ours[0], hidden.grad, atol=1e-6)
    assert torch.allclose(ours[1], matrix.grad, atol=1e-6)
