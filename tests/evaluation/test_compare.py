"""Runs side by side: only what means the same in both is paired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stillroom.evaluation.compare import compare_runs
from stillroom.evaluation.tally import COLUMNS


def finished_run(folder: Path, teacher: str, **more: Any) -> Path:
    """The files of a finished run that a comparison reads."""
    (folder / "measures").mkdir(parents=True)
    described = {"name": "teacher", "digest": teacher, "parameters": 7}
    summary = {"name": folder.name, "student": {"parameters": 3}, "teacher": described} | more
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    sums = {column: [float(number + 1) for number in range(12)] for column in COLUMNS}
    measured = {"result": {"sums": {"student": sums}}}
    (folder / "measures" / "fidelity.json").write_text(json.dumps(measured), encoding="utf-8")
    return folder


def test_closeness_to_two_teachers_is_not_compared(tmp_path: Path) -> None:
    first, same, other = (finished_run(tmp_path / name, name[0]) for name in ("a1", "a2", "b"))
    alike, unlike = compare_runs([first, same, other])["compared"]
    on_the_text = {"cross_entropy", "bits_per_byte"}
    assert set(alike["fidelity"]) == {"kl_to_teacher", "top1_agreement", "top5_agreement", *on_the_text}
    assert set(unlike["fidelity"]) == on_the_text


def test_nor_is_closeness_to_other_teachers_of_some_sources(tmp_path: Path) -> None:
    def routed(name: str, digest: str, sources: list[int], weight: float = 1.0) -> Path:
        others = [{"called": "far", "digest": digest, "sources": sources, "learned_from": [{"far": weight}]}]
        return finished_run(tmp_path / name, "t", teachers=others)

    runs = [routed("a", "x", [1]), routed("same", "x", [1]), routed("b", "y", [1]), routed("c", "x", [0, 1])]
    runs += [routed("d", "x", [1], 0.5), finished_run(tmp_path / "alone", "t")]
    same, *unlike = compare_runs(runs)["compared"]
    assert "kl_not_paired" not in same
    for entry in unlike:
        assert set(entry["fidelity"]) == {"cross_entropy", "bits_per_byte"}
        assert "different teachers" in entry["kl_not_paired"]
