"""A comparison with another program that fails takes nothing else away."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import evaluation


def test_a_harness_that_fails_is_left_out_with_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> dict[str, float]:
        raise subprocess.CalledProcessError(1, "python", stderr="No module named 'lm_eval.api'")

    monkeypatch.setattr(evaluation, "lm_eval_difference", fails)
    found, left_out = evaluation.harness_difference(tmp_path, tmp_path)
    assert found is None
    assert left_out == {"lm_eval_difference": "No module named 'lm_eval.api'"}
    assert "no environment" in evaluation.harness_difference(None, tmp_path)[1]["lm_eval_difference"]
