"""Ctrl-C at every stage: one sentence and exit code 130; the same command goes on, and what it makes is the same."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillroom.cli import app
from stillroom.core import files
from stillroom.runs.stages import STAGES, StageSpec

MADE = (
    "corpus/train.safetensors",
    "shrink/model/model.safetensors",
    "distill/model/model.safetensors",
    "baseline/model/model.safetensors",
    "export/small-F16.gguf",
)


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The command's exit code."""
    monkeypatch.setattr("sys.argv", ["stillroom", *words])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0)


def test_stopped_at_every_stage(
    every_stage: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(every_stage))
    load = StageSpec.load
    pressed: list[str] = []

    def with_a_key(spec: StageSpec) -> Callable[..., None]:
        def run(*given: Any) -> None:
            work = load(spec)
            first = spec.name not in pressed
            if first and spec.name in ("distill", "baseline"):
                pressed.append(spec.name)
                # In the middle of its steps.
                monkeypatch.setattr("stillroom.runs.run.Run._track", at_the_third_step)
            work(*given)
            if first and spec.name not in pressed:
                # Its work is done, and its record is not written.
                pressed.append(spec.name)
                signal.raise_signal(signal.SIGINT)

        return run

    def at_the_third_step(_run: Any, _stage: str, values: dict[str, Any]) -> None:
        if values.get("step", 0) >= 3:
            monkeypatch.setattr("stillroom.runs.run.Run._track", lambda *_: None)
            signal.raise_signal(signal.SIGINT)

    words = ("run", str(recipe), "--runs")
    assert command(monkeypatch, *words, str(tmp_path / "never")) == 0
    monkeypatch.setattr(StageSpec, "load", with_a_key)
    capsys.readouterr()
    said = []
    for _ in STAGES:
        code = command(monkeypatch, *words, str(tmp_path / "stopped"))
        said.append(capsys.readouterr().err)
        if code == 0:
            break
        assert code == 130
        where = f"the stage `{pressed[-1]}`"
        assert (
            f"stillroom: Stopped at {'step 3 of ' if pressed[-1] in ('distill', 'baseline') else ''}{where}."
            in said[-1]
        )
        assert said[-1].rstrip().endswith("The same command goes on.")
        assert "Traceback" not in said[-1]
    assert pressed == ["corpus", "capture", "shrink", "distill", "baseline", "export", "evaluate"]
    for name in MADE:
        never, stopped = (files.digest_file(tmp_path / root / "small" / name) for root in ("never", "stopped"))
        assert never == stopped, name
