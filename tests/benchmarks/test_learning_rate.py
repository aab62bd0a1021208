"""The arithmetic of the comparison of `learning_rate: auto` with a full sweep."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import learning_rate as benchmark
from stillroom.core.errors import TrainingDiverged


def swept(best: int, rates: int = 7) -> dict[int, dict[int, float | None]]:
    """What trainings find whose KL is lowest at 2**best, by the benchmark's own walk from 2**0."""
    runs: dict[int, dict[int, float | None]] = {}
    while wanted := benchmark.next_rates(0, runs, rates):
        assert not set(wanted) & set(runs), "a rate is trained twice"
        runs |= {power: dict.fromkeys(range(3), 1.0 + (power - best) ** 2) for power in wanted}
    return runs


@pytest.mark.parametrize(("best", "lowest", "highest"), [(0, -3, 3), (2, -3, 3), (3, -3, 4), (5, -3, 6), (-4, -5, 3)])
def test_the_sweep_goes_on_until_its_best_rate_has_worse_ones_on_both_sides(
    best: int, lowest: int, highest: int
) -> None:
    runs = swept(best)
    assert sorted(runs) == list(range(lowest, highest + 1))
    found = benchmark.compared(dict.fromkeys(range(3), 1.0), runs)
    assert found["best_rate"] == benchmark.UNIT * 2**best
    assert found["best_at_an_end"] is False


def test_a_sweep_that_never_turns_stops_and_says_so() -> None:
    runs = swept(100)
    assert len(runs) == benchmark.RATES + benchmark.MORE_RATES
    assert benchmark.compared(dict.fromkeys(range(3), 1.0), runs)["best_at_an_end"] is True


def test_ratios_are_paired_by_seed_with_the_rate_that_is_best_on_average() -> None:
    # The rate 2 is best for the first seed and bad for the others: choosing by seed would flatter the sweep.
    runs: dict[int, dict[int, float | None]] = {1: {0: 1.0, 1: 2.0, 2: 4.0}, 2: {0: 0.5, 1: 4.0, 2: 8.0}}
    found = benchmark.compared({0: 1.1, 1: 2.0, 2: 3.6}, runs)
    assert found["best_rate"] == 2 * benchmark.UNIT
    assert found["over_best_by_seed"] == pytest.approx([1.1, 1.0, 0.9])
    assert found["over_best"] == pytest.approx(1.0)
    low, high = found["over_best_interval"]
    assert (low + high) / 2 == pytest.approx(1.0)
    assert high - low == pytest.approx(2 * 4.303 * 0.1 / 3**0.5, rel=1e-3)


def test_a_rate_that_diverged_for_one_seed_is_not_the_best() -> None:
    runs: dict[int, dict[int, float | None]] = {1: {0: 1.0, 1: 1.0}, 2: {0: 0.1, 1: None}}
    assert benchmark.compared({0: 1.0, 1: 1.0}, runs)["best_rate"] == 2 * benchmark.UNIT


def setting(over_best: float | None, low: float, origin: str, share: float) -> dict[str, Any]:
    """What a setting came to."""
    interval = None if over_best is None else [low, 2 * over_best - low]
    return {
        "over_best": over_best,
        "over_best_interval": interval,
        "from": origin,
        "cost_share": share,
        "cost_share_cpu": 2 * share,
    }


def test_figures_are_those_of_the_worst_setting() -> None:
    settings = {
        "a": setting(1.1, 0.9, "sweep", 0.04),
        "b": setting(1.05, 1.01, "sweep", 0.03),
        "c": setting(1.0, 0.99, "table", 0.0),
    }
    found = benchmark.figures_of(settings)
    assert (found["worst_setting"], found["worst_over_best"]) == ("a", 1.1)
    assert found["worst_over_best_interval"] == pytest.approx([0.9, 1.3])
    assert found["largest_lower_end"] == 1.01
    assert (found["cost_share"], found["cost_share_cpu"]) == (0.04, 0.08)
    assert (found["swept"], found["settings"]) == (2, 3)


def test_an_auto_that_diverged_is_the_worst() -> None:
    runs: dict[int, dict[int, float | None]] = {1: {0: 1.0, 1: 2.0}}
    assert benchmark.compared({0: 1.0, 1: None}, runs)["over_best"] is None
    settings = {"a": setting(9.0, 8.0, "sweep", 0.04), "b": setting(None, 0.0, "sweep", 0.04)}
    found = benchmark.figures_of(settings)
    assert (found["worst_setting"], found["worst_over_best"]) == ("b", None)


def test_results_go_on_and_those_of_another_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    small = benchmark.asked_of("quick", benchmark.SIZES["quick"])
    results = benchmark.Results(path, small)
    one = benchmark.SETTINGS[0]
    for seed in (0, 1):
        results.add(results.key(one, -2, seed), {"kl": float(seed)})
    results.add(results.key(one, 3, 0), {"kl": 0.5})
    results.add(results.key(one, None, 0), {"kl": 0.25})
    again = benchmark.Results(path, small)
    assert again.finished(one, (0, 1)) == {-2: {0: 0.0, 1: 1.0}}, "3 lacks a seed"
    assert again.autos(one, (0, 1)) == {0: {"kl": 0.25}}
    assert again.finished(benchmark.SETTINGS[1], (0, 1)) == {}
    with pytest.raises(SystemExit, match="other sizes"):
        benchmark.Results(path, benchmark.asked_of("full", benchmark.SIZES["full"]))


def test_eight_settings_and_the_long_ones_are_long_enough_for_a_sweep() -> None:
    from stillroom.training.sweep import Budget

    assert len({setting.name for setting in benchmark.SETTINGS}) == 8
    for size in benchmark.SIZES.values():
        for one in benchmark.SETTINGS:
            steps = one.steps(size)
            length = benchmark.SMOLLM2_LENGTH if one.teacher == benchmark.SMOLLM2 else benchmark.TINY_LENGTH
            rows = [benchmark.BATCH] * steps
            found = Budget.of(rows, sum(rows), size.validation_tokens // length)
            assert (found is not None) == (one.length == "long"), one.name


def auto(kl: float | None, share: float) -> dict[str, Any]:
    """What a run of ``auto`` found."""
    chosen = {
        "learning_rate_from": "sweep",
        "learning_rate": 1e-3,
        "sweep": [],
        "sweep_steps": 6,
        "sweep_cost_share": share,
    }
    return {"kl": kl, "start_kl": 3.0, "hidden_size": 64, "auto": chosen, "cost_share_cpu": 2 * share}


def filled(path: Path, autos: list[dict[str, Any]]) -> tuple[Any, Any, Any]:
    """Results in which every rate was trained; and their setting and sizes."""
    size, one = benchmark.SIZES["quick"], benchmark.SETTINGS[0]
    results = benchmark.Results(path, benchmark.asked_of("quick", size))
    centre = benchmark.centre_of(autos[0])
    for seed, found in zip(size.seeds, autos, strict=True):
        results.add(results.key(one, None, seed), found)
        for offset in range(-2, 3):
            results.add(results.key(one, centre + offset, seed), {"kl": 1.0 + offset**2})
    return results, one, size


def test_costs_are_those_of_the_seed_that_paid_most(tmp_path: Path) -> None:
    found = benchmark.summary(*filled(tmp_path / "results.json", [auto(1.0, 0.02), auto(1.0, 0.04)]))
    assert found is not None
    assert (found["cost_share"], found["cost_share_cpu"]) == (0.04, 0.08)


def test_a_student_that_is_broken_as_it_begins_is_an_auto_that_diverged(tmp_path: Path) -> None:
    broken = {"kl": None, "start_kl": None, "hidden_size": 64, "auto": {}, "cost_share_cpu": 0.0}
    found = benchmark.summary(*filled(tmp_path / "results.json", [broken, auto(1.0, 0.04)]))
    assert found is not None
    assert (found["over_best"], found["from"], found["cost_share"]) == (None, "table", 0.04)


def test_a_run_that_diverges_before_its_rate_is_chosen_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        chosen = None

        def __init__(self, model: Any, event: Callable[..., None], **_: Any) -> None:
            self.model = model

        def run(self) -> Any:
            raise TrainingDiverged("the KL is not finite before the first step", "")

    class Text:
        length = 64

        def __len__(self) -> int:
            return 8

        def take(self, rows: int) -> "Text":
            return self

    monkeypatch.setattr(benchmark, "Training", Broken)
    monkeypatch.setattr(benchmark, "BatchSource", lambda *_: None)
    world: Any = SimpleNamespace(
        train=Text(),
        validation=None,
        cache=None,
        vocabulary=SimpleNamespace(student_used=5),
        student=lambda *_: SimpleNamespace(config=SimpleNamespace(hidden_size=64)),
    )
    found = benchmark.trained(world, benchmark.TINY_SETTINGS[0], benchmark.SIZES["tiny"], None, 0)
    assert (found["kl"], found["start_kl"], found["auto"], found["cost_share_cpu"]) == (None, None, {}, 0.0)
    assert benchmark.centre_of(found) == 0
