"""Months and baselines of other sizes, or of other code, are made anew."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import guard_campaigns as benchmark
from benchmarks import report


def test_what_is_kept_is_of_these_sizes_and_this_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Made:
        def record(self) -> dict[str, Any]:
            return {}

    def baseline(folder: Path, rows: int, months: int) -> Made:
        folder.mkdir(parents=True)
        made.append((rows, months))
        return Made()

    def month(folder: Path, rows: int, seed: int, *_: Any) -> None:
        folder.mkdir(parents=True)
        made.append((rows, seed))

    monkeypatch.setattr(benchmark, "make_baseline", baseline)
    monkeypatch.setattr(benchmark, "month_store", month)
    for name in ("read_baseline", "open_store", "read_truth"):
        monkeypatch.setattr(benchmark, name, lambda path: path)
    small = benchmark.Sizes(months=1, rows=100, benign=2, large=1, seed=7, held_out=(), merge_rows=1)
    large = benchmark.Sizes(months=1, rows=900, benign=2, large=1, seed=7, held_out=(), merge_rows=1)
    for sizes in (small, small, large):
        benchmark.frozen_baseline(tmp_path, sizes)
        benchmark.kept_month(tmp_path, sizes, 0)
    assert made == [(100, 2), (100, 7), (900, 2), (900, 7)]
    monkeypatch.setattr(report, "code_digest", lambda: "another")
    benchmark.kept_month(tmp_path, large, 0)
    assert made[4:] == [(900, 7)]
