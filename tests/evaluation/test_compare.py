"""Runs side by side: only what means the same in both is paired."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_model
from typer.testing import CliRunner

from stillroom import distill
from stillroom.cli.app import app
from stillroom.core.errors import RunError
from stillroom.evaluation import compare
from stillroom.evaluation.compare import compare_runs
from stillroom.evaluation.tally import COLUMNS
from stillroom.pipeline import run
from stillroom.recipe.recipe import Recipe


def finished_run(folder: Path, teacher: str, **more: Any) -> Path:
    """The files of a finished run that a comparison reads."""
    (folder / "measures").mkdir(parents=True)
    described = {"name": "teacher", "digest": teacher, "parameters": 7}
    summary = {"name": folder.name, "student": {"parameters": 3}, "teacher": described} | more
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    sums = {column: [float(number + 1) for number in range(12)] for column in COLUMNS}
    measured = {"result": {"sums": {"student": sums}}}
    (folder / "measures" / "fidelity.json").write_text(json.dumps(measured), encoding="utf-8")
    return folder


def test_closeness_to_two_teachers_is_not_compared(tmp_path: Path) -> None:
    first, same, other = (finished_run(tmp_path / name, name[0]) for name in ("a1", "a2", "b"))
    alike, unlike = compare_runs([first, same, other])["compared"]
    on_the_text = {"cross_entropy", "bits_per_byte"}
    assert set(alike["fidelity"]) == {"kl_to_teacher", "top1_agreement", "top5_agreement", *on_the_text}
    assert set(unlike["fidelity"]) == on_the_text


def test_documents_of_one_size_may_be_in_any_order(tmp_path: Path) -> None:
    folders = [finished_run(tmp_path / name, "t") for name in "ab"]
    for folder in folders:
        path = folder / "measures" / "fidelity.json"
        measured = json.loads(path.read_text(encoding="utf-8"))
        measured["result"]["sums"]["student"]["text_bytes"] = [300] * 12
        path.write_text(json.dumps(measured), encoding="utf-8")
    (found,) = compare_runs(folders)["compared"]
    assert "another order" in found["not_paired"]
    assert found["fidelity"] == {}


@pytest.mark.parametrize(
    ("sizes", "told"),
    [([5], True), ([5, 5], False), ([5, 6, 7], True), ([*range(300, 315), 300], True), ([5, 6, 6], False)],
)
def test_sizes_that_tell_documents_apart(sizes: list[int], told: bool) -> None:
    assert compare._tell_apart(sizes) == told


def test_nor_is_closeness_to_other_teachers_of_some_sources(tmp_path: Path) -> None:
    def routed(name: str, digest: str, sources: list[int], weight: float = 1.0) -> Path:
        others = [{"called": "far", "digest": digest, "sources": sources, "learned_from": [{"far": weight}]}]
        return finished_run(tmp_path / name, "t", teachers=others)

    runs = [routed("a", "x", [1]), routed("same", "x", [1]), routed("b", "y", [1]), routed("c", "x", [0, 1])]
    runs += [routed("d", "x", [1], 0.5), finished_run(tmp_path / "alone", "t")]
    same, *unlike = compare_runs(runs)["compared"]
    assert "kl_not_paired" not in same
    for entry in unlike:
        assert set(entry["fidelity"]) == {"cross_entropy", "bits_per_byte"}
        assert "different teachers" in entry["kl_not_paired"]


@pytest.fixture(scope="module")
def seeds(small_recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Runs of two seeds, whose held-out texts are capped: some documents are in both, in another order."""
    folder = tmp_path_factory.mktemp("seeds")
    teacher = tiny_model("llama", folder / "teacher", layers=2)
    settings = small_recipe(teacher, baseline=False, export={"gguf": []}, student={"kind": "shrink", "layers": 1})
    settings["corpus"] |= {"heldout_share": 0.49, "heldout_tokens": 3500}
    settings["evaluate"] = {"measures": ["fidelity", "cost"], "speed_tokens": 0, "bootstrap_samples": 100}
    one, two = (Recipe.model_validate(settings | {"name": f"seed-{seed}", "seed": seed}) for seed in (1, 2))
    return run(one, folder, quiet=True).path, run(two, folder, quiet=True).path


def test_two_seeds_are_paired_on_the_documents_that_both_held_out(seeds: tuple[Path, Path]) -> None:
    first, other = (compare._read(folder) for folder in seeds)
    places = compare._places(other, first)
    assert not isinstance(places, str)
    mine, theirs = places
    names, others = compare._documents(first), compare._documents(other)
    both = len(set(names) & set(others))
    assert 0 < both == len(mine) < min(len(names), len(others))
    # What the same teacher says of a document does not depend on the run: these are the same documents.
    of, against = (read["_fidelity"]["sums"]["teacher"] for read in (other, first))
    for column in ("nats", "text_bytes", "tokens"):
        assert [of[column][place] for place in mine] == pytest.approx([against[column][place] for place in theirs])
    (found,) = compare_runs([*seeds])["compared"]
    assert found["documents"] == {"both": both, "run": len(others), "minus": len(names)}
    assert found["fidelity"]["kl_to_teacher"]["n"] == both
    students = [read["_fidelity"]["sums"]["student"] for read in (other, first)]
    sums = [
        sum(sums["kl"][place] for place in there) / sum(sums["compared"][place] for place in there)
        for sums, there in zip(students, places, strict=True)
    ]
    assert found["fidelity"]["kl_to_teacher"]["difference"] == pytest.approx(sums[0] - sums[1])
    said = CliRunner().invoke(app, ["compare", *map(str, seeds)], catch_exceptions=False).output
    assert f"Paired on the {both} documents that both held out" in " ".join(said.split())


def test_a_text_that_was_made_again_names_no_document(seeds: tuple[Path, Path]) -> None:
    read = compare._read(seeds[0])
    assert compare._documents(read) != []
    assert compare._documents(read | {"_fidelity": read["_fidelity"] | {"text": "of another corpus"}}) == []


def test_numbers_of_an_earlier_student_are_not_compared(seeds: tuple[Path, Path], tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(seeds[1], changed)
    distill(changed, overrides={"distill.learning_rate": 5e-4}, quiet=True)
    with pytest.raises(RunError, match="changed"):
        compare_runs([seeds[0], changed])
