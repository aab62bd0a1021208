"""Which checkpoint the processes of a group go on from, where a file system shows it to some of them later."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from stillroom.core.errors import EnvironmentProblem
from stillroom.training import sharded_checkpoint
from stillroom.training.checkpoint import STATE, newest
from stillroom.training.group import Group


@dataclass(frozen=True)
class Second(Group):
    """Rank 1 of two, whose rank 0 says a number."""

    said: float = 0.0
    rank: int = 1
    world: int = 2

    def sum(self, values: Sequence[float]) -> list[float]:
        """What both say: here the first of them."""
        assert list(values) == [0.0]
        return [self.said]


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"step-{step:07}"
    path.mkdir()
    (path / STATE).write_text(json.dumps({"step": step}))
    return path


def chosen(folder: Path, said: float) -> Path | None:
    return sharded_checkpoint._of_all(folder, newest(folder), Second(said=said))


def test_a_process_goes_on_from_the_checkpoint_of_the_first(tmp_path: Path) -> None:
    assert chosen(tmp_path, 0.0) is None
    older, newer = checkpoint(tmp_path, 3), checkpoint(tmp_path, 4)
    assert chosen(tmp_path, 5.0) == newer
    assert chosen(tmp_path, 4.0) == older
    # The first one begins at the start.
    assert chosen(tmp_path, 0.0) is None


def test_a_process_waits_until_it_sees_it(tmp_path: Path) -> None:
    def appear() -> None:
        time.sleep(0.3)
        checkpoint(tmp_path, 0)

    thread = threading.Thread(target=appear)
    thread.start()
    found = chosen(tmp_path, 1.0)
    thread.join()
    assert found == tmp_path / "step-0000000"


def test_one_that_does_not_appear_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_checkpoint, "APPEAR_SECONDS", 0.1)
    checkpoint(tmp_path, 3)
    with pytest.raises(EnvironmentProblem, match="step-0000007: the first process goes on from this checkpoint"):
        chosen(tmp_path, 8.0)
