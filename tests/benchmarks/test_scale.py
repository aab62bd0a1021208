"""The step beside an older commit, where that commit cannot be had; and what a plan's benchmark starts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plan, quickstart, scale


def test_without_the_history_the_step_is_null_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(_: quickstart.Before) -> None:
        raise quickstart.NotThere("a shallow clone")

    monkeypatch.setattr(quickstart.Before, "fetch", fetch)
    found = scale.step_pairs(2, 2)
    assert (found["step_over_before"], found["why"]) == (None, "a shallow clone")


def test_a_step_of_other_code_than_asked_for_is_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(tree: Path) -> Any:
        said = json.dumps([str(tree / "src" / "stillroom" / "__init__.py"), 0.25])
        return lambda *_, **__: subprocess.CompletedProcess([], 0, said + "\n", "")

    monkeypatch.setattr(subprocess, "run", of(tmp_path))
    assert scale._steps(tmp_path, 2) == 0.25
    monkeypatch.setattr(subprocess, "run", of(tmp_path.parent))
    with pytest.raises(RuntimeError, match="was imported from"):
        scale._steps(tmp_path, 2)


def test_a_plan_that_is_interrupted_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[int] = []

    def interrupted(self: subprocess.Popen[str]) -> None:
        began.append(self.pid)
        raise SystemExit(143)

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(SystemExit):
        plan._said([sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises(ProcessLookupError):
        os.killpg(began[0], 0)
