"""An interrupted benchmark goes on from what it kept, and takes nothing that is of other sizes."""

from pathlib import Path

import pytest

from benchmarks.report import Kept


def test_what_is_finished_is_not_made_again(tmp_path: Path) -> None:
    made: list[int] = []

    def part() -> dict[str, int]:
        made.append(1)
        return {"value": 3}

    for _ in range(2):
        kept = Kept(tmp_path / "cells.json", {"documents": (45, 100), "steps": 2})
        assert kept.cell("a", part) == {"value": 3}
    assert len(made) == 1
    with pytest.raises(SystemExit, match="other sizes"):
        Kept(tmp_path / "cells.json", {"documents": (45, 101), "steps": 2})
