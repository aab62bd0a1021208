"""Which run of the earlier commit the quickstart is compared with, and which run of ours is measured."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import budget, quickstart
from stillroom.core.files import read_json, write_json

WHOLE = 81_920


def before(folder: Path, *runs: tuple[int, float]) -> quickstart.Before:
    """An earlier commit with kept runs: tokens and CPU seconds of each."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"corpus": {"train_tokens": WHOLE}}), encoding="utf-8")
    kept = [{"folder": str(folder / str(tokens)), "tokens": tokens, "cpu_seconds": seconds} for tokens, seconds in runs]
    made = quickstart.Before(folder, recipe)
    write_json(folder / "before.json", {"of": made.identity(), "runs": kept})
    return made


def test_a_kept_run_of_equal_seconds_is_taken(tmp_path: Path) -> None:
    found = before(tmp_path, (8192, 300.0), (65_536, 980.0)).student(1000.0, make=False)
    assert found[1]["tokens"] == 65_536


def test_a_run_of_all_tokens_is_taken_where_its_recipe_has_no_more(tmp_path: Path) -> None:
    found = before(tmp_path, (8192, 300.0), (WHOLE, 800.0)).student(1000.0, make=False)
    assert found[1]["cpu_seconds"] == 800.0


def test_quick_trains_none(tmp_path: Path) -> None:
    with pytest.raises(quickstart.NotThere, match="none is trained with --quick"):
        before(tmp_path, (8192, 300.0)).student(1000.0, make=False)


def test_a_run_with_fewer_seconds_than_its_recipe_could_use_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(self: quickstart.Before, name: str, tokens: int) -> tuple[Path, budget.Spent]:
        return self.folder / name, budget.Spent(500.0, 1.0, 1, 1.0, 0)

    monkeypatch.setattr(quickstart.Before, "_run", run)
    earlier = before(tmp_path, (8192, 300.0), (32_768, 500.0))
    with pytest.raises(quickstart.NotThere, match="close to our 600 CPU seconds"):
        earlier.student(600.0)
    assert len(read_json(tmp_path / "before.json")["runs"]) > 2


def test_the_last_training_is_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([500.0, 700.0, 500.0, 600.0])
    made: list[int] = []

    def run(self: quickstart.Before, name: str, tokens: int) -> tuple[Path, budget.Spent]:
        return self.folder / name, budget.Spent(next(seconds), 1.0, 1, 1.0, 0)

    def tokens(*_: object) -> int:
        made.append(1024 * (1 + len(made)))
        return made[-1]

    monkeypatch.setattr(quickstart.Before, "_run", run)
    monkeypatch.setattr(quickstart.Before, "_tokens", tokens)
    found = before(tmp_path).student(600.0)
    assert found[1]["cpu_seconds"] == 600.0
    assert len(made) == 1 + quickstart.TRIES


def test_a_run_of_another_machine_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = before(tmp_path, (65_536, 980.0))
    here = quickstart.report.made_by()
    monkeypatch.setattr(quickstart.report, "made_by", lambda: here | {"processor": "another"})
    with pytest.raises(quickstart.NotThere, match="none is trained with --quick"):
        earlier.student(1000.0, make=False)


def test_an_interrupted_benchmark_goes_on_behind_a_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def run_once(recipe: Path, folder: Path) -> tuple[Path, budget.Spent]:
        calls.append(recipe)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / "quickstart", budget.Spent(10.0, 5.0, 1, 1.0, 0)

    monkeypatch.setattr(quickstart, "run_once", run_once)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: a\n", encoding="utf-8")
    first: Any = quickstart.kept_run(recipe, tmp_path / "run0")
    assert quickstart.kept_run(recipe, tmp_path / "run0") == first
    recipe.write_text("name: b\ncorpus: {sources: [{path: text.jsonl}]}\n", encoding="utf-8")
    quickstart.kept_run(recipe, tmp_path / "run0")
    assert len(calls) == 2
    # Text that the recipe names, the machine and PyTorch make another run, too.
    (tmp_path / "text.jsonl").write_text("{}\n", encoding="utf-8")
    quickstart.kept_run(recipe, tmp_path / "run0")
    here = quickstart.report.made_by()
    monkeypatch.setattr(quickstart.report, "made_by", lambda: here | {"torch": "another"})
    quickstart.kept_run(recipe, tmp_path / "run0")
    assert len(calls) == 4
