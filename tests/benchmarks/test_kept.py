"""An interrupted benchmark goes on from what it kept, and takes nothing that is of other sizes."""

import json
import math
from pathlib import Path

import pytest

from benchmarks import report
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


def test_a_folder_belongs_to_its_sizes_before_anything_is_finished(tmp_path: Path) -> None:
    Kept(tmp_path / "cells.json", {"steps": 2})
    with pytest.raises(SystemExit, match="remove this one whole"):
        Kept(tmp_path / "cells.json", {"steps": 48})


def test_parts_of_other_code_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Kept(tmp_path / "cells.json", {}).add("old", {"value": 1})
    monkeypatch.setattr(report, "OPENED", [])
    monkeypatch.setattr(report, "code_digest", lambda: "another")
    kept = Kept(tmp_path / "cells.json", {})
    kept.add("new", {"value": 2})
    assert [found["parts"] for found in kept.earlier()] == [["old"]]
    report.write({}, {}, tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text())["machine"]["earlier"][0]["parts"] == ["old"]
    assert "1 parts were kept" in capsys.readouterr().err


def test_a_result_that_is_no_number_ends_nothing(tmp_path: Path) -> None:
    Kept(tmp_path / "cells.json", {}).add("a", {"kl": math.nan})
    kept = Kept(tmp_path / "cells.json", {})
    assert math.isnan(kept.cells["a"]["kl"])
    report.write({"kl": kept.cells["a"]["kl"], "most": math.inf}, {}, tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text())["figures"] == {"kl": "nan", "most": "inf"}


def test_what_is_no_work_file_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "list.json").write_text("[]")
    for name, words in (("folder", "is a folder"), ("list.json", "no work file")):
        with pytest.raises(SystemExit, match=words):
            Kept(tmp_path / name, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "list.json"]
    with pytest.raises(SystemExit, match="is a folder"):
        report.write({"kl": 1.0}, {}, tmp_path / "folder")
    assert (tmp_path / "folder").is_dir()
