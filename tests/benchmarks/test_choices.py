"""Results of another run, or in another dtype, are not gone on with."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import choices


def run_of(student: str, signals: str, precision: str) -> Any:
    digests = {"shrink": student, "capture": signals}
    return SimpleNamespace(
        stage=lambda name: SimpleNamespace(output_digest=digests[name]),
        recipe=SimpleNamespace(distill=SimpleNamespace(precision=precision)),
    )


def test_results_are_of_a_student_its_signals_and_a_dtype() -> None:
    found = [
        choices.origin_of(run_of(*words))
        for words in (("a", "b", "float32"), ("c", "b", "float32"), ("a", "c", "float32"), ("a", "b", "bfloat16"))
    ]
    assert len({tuple(origin.values()) for origin in found}) == 4
    assert found[0] == {"student": "a", "signals": "b", "dtype": "torch.float32"}


def test_a_torch_without_muon_is_told_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    monkeypatch.setattr(sys, "argv", ["choices", "--tiny"])
    with pytest.raises(SystemExit):
        choices.main()
    assert "Muon is in torch from 2.9 on" in capsys.readouterr().err
