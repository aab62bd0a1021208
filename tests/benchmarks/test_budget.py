"""Budgets in CPU seconds: the arithmetic, and that a process tree is counted whole."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import budget

ROOT = str(Path(budget.__file__).parent.parent)


def test_ten_minutes_are_those_of_all_threads() -> None:
    assert budget.cpu_seconds(10) == 10 * 60 * budget.THREADS


def test_cost_shares_out_a_run_by_its_stages() -> None:
    cost = budget.Cost.of(100.0, {"corpus": 2, "capture": 3, "shrink": 2, "distill": 3}, ("capture", "distill"), 6000)
    assert cost.fixed == pytest.approx(40)
    assert cost.per_token == pytest.approx(60 / 6000)
    assert cost.fixed + cost.per_token * cost.tokens(160.0, 1000) == pytest.approx(160)


def test_cost_through_two_runs_gives_both_back() -> None:
    cost = budget.Cost.through((1000, 50.0), (3000, 90.0))
    assert cost.fixed + 1000 * cost.per_token == pytest.approx(50)
    assert cost.fixed + 3000 * cost.per_token == pytest.approx(90)


@pytest.mark.parametrize(("seconds", "tokens"), [(39.9, 512), (30.0, 512), (50.0, 512), (60.3, 1024), (100.0, 3072)])
def test_tokens_are_a_multiple_that_fits_and_never_none(seconds: float, tokens: int) -> None:
    assert budget.Cost(40.0, 10.0 / 512).tokens(seconds, 512) == tokens


def test_the_learning_rate_rises_then_falls_to_zero_as_the_budget_ends() -> None:
    values = [budget.rate_factor(index / 1000) for index in range(1001)]
    peak = max(range(1001), key=values.__getitem__)
    assert peak == 50
    assert values[peak] == pytest.approx(1.0)
    assert values[:peak] == sorted(values[:peak])
    assert values[peak:] == sorted(values[peak:], reverse=True)
    assert values[-1] == 0.0
    assert all(value > 0 for value in values[:-1])


def test_a_budget_ends_before_the_step_that_would_pass_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 3.0, 6.0, 9.0, 10.0])
    now = [next(clock)]
    monkeypatch.setattr(budget, "tree_seconds", lambda pid=None: now[0])
    spending = budget.Budget(13.0, spent_before=3.0, begun=0.0)
    steps = 0
    for now[0] in clock:
        steps += 1
        if not spending.another():
            break
    # Three are spent already; steps of three end at 6 and 9 of 13, and after the one that ends at 12 no other fits.
    assert steps == 3
    assert spending.spent == 12.0


BUSY = "import time\nbegun = time.process_time()\nwhile time.process_time() - begun < {}: pass\n"


def test_a_command_is_measured_with_its_children() -> None:
    child = BUSY.format(0.3)
    parent = (
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}], check=True)\n{BUSY.format(0.3)}"
    )
    spent = budget.run([sys.executable, "-c", parent])
    assert spent.returncode == 0
    assert spent.cpu_seconds >= 0.6
    assert spent.wall_seconds >= 0.6
    assert spent.peak_bytes > 0


def test_a_command_that_fails_says_so() -> None:
    assert budget.run([sys.executable, "-c", "raise SystemExit(3)"]).returncode == 3


def test_this_process_has_spent_what_it_says() -> None:
    begun = budget.tree_seconds()
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    assert budget.tree_seconds() - begun >= 0.15


def test_a_mistake_is_told_in_its_own_words_and_not_as_a_traceback(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.yaml")
    command = [sys.executable, "-m", "benchmarks.quickstart", "--recipe", missing]
    found = subprocess.run(command, cwd=Path(budget.__file__).parents[1], capture_output=True, text=True, check=False)
    assert found.returncode != 0
    assert f"{missing}: no such recipe." in found.stderr
    assert "Traceback" not in found.stderr


def test_a_damaged_work_file_is_told_and_not_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "cells.json").write_text('{"asked": ')
    words = ["-m", "benchmarks.draws", "--tiny", "--work", str(tmp_path / "cells.json")]
    found = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT, check=False)
    assert found.returncode != 0
    assert "cells.json is damaged" in found.stderr
    assert "Traceback" not in found.stderr


def test_the_peak_of_a_process_is_its_own_and_not_that_of_the_one_that_started_it() -> None:
    held = bytearray(200_000_000)
    held[::4096] = b"x" * len(held[::4096])
    asked = "from benchmarks import budget; print(budget.own_peak_bytes())"
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert 1_000_000 < int(found.stdout) < 150_000_000 < budget.own_peak_bytes()


def test_what_a_command_started_ends_with_an_interrupted_benchmark(tmp_path: Path) -> None:
    mark = tmp_path / "alive"
    inner = f"import time, pathlib\nwhile True:\n    pathlib.Path({str(mark)!r}).touch(); time.sleep(0.05)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    # As Python has it while it looks for the program after `-m`.
    program = "import sys; sys.argv[0] = '-m'; from benchmarks import budget; "
    process = subprocess.Popen(
        [sys.executable, "-c", program + f"budget.run([sys.executable, '-c', {outer!r}])"],
        env=os.environ | {"PYTHONPATH": ROOT},
    )
    while not mark.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=60) == 143
    mark.unlink()
    time.sleep(0.5)
    assert not mark.exists()
