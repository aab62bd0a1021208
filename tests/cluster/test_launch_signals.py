"""What training in several processes leaves of a driver's signals, on a torch elastic that only takes them."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stillroom.cluster import agent, launch
from stillroom.core.errors import Terminated, TrainingDiverged
from stillroom.core.progress import Progress
from stillroom.switch import Places


@pytest.mark.parametrize("answer", [None, ("TrainingDiverged", "It diverged.", "Try another."), "stopped"])
def test_signals_mean_afterwards_what_they_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    configs: list[Any] = []

    def elastic(config: Any, _work: Any, arguments: tuple[Any, ...], check: Any, *_: Any) -> None:
        from torch.distributed.elastic.multiprocessing import SignalException

        configs.append(config)
        for number in launch.SIGNALS:
            signal.signal(number, lambda *_: None)
        (tmp_path / launch.NOTES).write_text("{}")
        if answer == "stopped":
            raise SignalException("stopped", signal.SIGTERM)
        if answer is not None:
            arguments[4].put(answer)
        check()

    monkeypatch.setattr(agent, "launch", elastic)
    places = Places.under(tmp_path)
    monkeypatch.setattr(Places, "of_user", lambda: places)
    run: Any = SimpleNamespace(path=tmp_path)
    stage: Any = SimpleNamespace(name="distill", scratch=tmp_path, notes={})
    before = [signal.getsignal(number) for number in launch.SIGNALS]

    def train() -> None:
        launch.train_together(run, stage, 2, Progress(quiet=True), "replicate")

    if answer is None:
        train()
    else:
        with pytest.raises(Terminated if answer == "stopped" else TrainingDiverged):
            train()
    assert [signal.getsignal(number) for number in launch.SIGNALS] == before
    # A step and its checkpoint may take longer than the half minute that torch elastic gives by itself.
    assert configs[0].shutdown_timeout == launch.SAVE_SECONDS
