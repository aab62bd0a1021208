"""What the benchmark of families makes of results that are no numbers, and of families of which there are none."""

import math
from typing import Any

import pytest

from benchmarks import models
from benchmarks.report import Kept


def test_nan_is_larger_than_every_difference() -> None:
    assert models.largest([0.1, math.nan]) == models.largest([math.nan, 0.1]) == math.inf
    assert models.largest([0.1, 0.3]) == 0.3
    assert models.largest([]) == 0.0


def test_a_family_of_which_nothing_is_compared_fails_and_loses_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, dict[str, Any]] = {
        "damage": {
            "a": {"result": "caught", "damaged": 5, "missed": [], "seconds": 2.0},
            "b": {"result": "failed", "why": "the whole checkpoint does not open"},
        },
        "export": {"a": {"result": "same", "kl": 1e-6, "kl_f32": 1e-7}, "b": {"result": "failed", "why": "no"}},
    }
    monkeypatch.setattr(models, "in_processes", lambda names, work, *_: found[work.__name__])
    damaged, details = models.damaged(("a", "b"), 1, Kept(None, {}))
    assert (damaged["damaged"], damaged["caught_share"], damaged["damaged_failed"]) == (5, 1.0, 1)
    assert details["b"]["why"]
    files, _ = models.files(["a", "b"], 1, Kept(None, {}))
    assert (files["files_compared"], files["files_failed"]) == (1, 1)
    assert models.failed(damaged)
    assert models.failed(files)
    assert not models.failed({"wrong": 0, "files_failed": 0, "damaged_failed": 0, "caught_share": 1.0})
