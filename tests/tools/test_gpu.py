"""The day with a GPU, rehearsed: both parts run whole on the processor, a failure loses only itself, halves join or say why."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tools.gpu import part1, part2, report
from tools.gpu.harness import Check, Setting, run_checks
from tools.gpu.pack import PackError, arrive, digest, pack

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("part", "module"), [("part1", part1), ("part2", part2)])
def test_dry_run(part: str, module: object, tmp_path: Path) -> None:
    environment = os.environ | {
        "STILLROOM_GPU_DEVICE": "cpu",
        "STILLROOM_GPU_SIZE": "tiny",
        "STILLROOM_GPU_KEEP": str(tmp_path / "keep"),
        "OMP_NUM_THREADS": "1",
        "OUT": str(tmp_path / "out"),
        "PYTHON": sys.executable,
    }
    command = ["bash", str(ROOT / "tools" / "gpu" / f"{part}.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / f"{part}.json").read_text(encoding="utf-8"))
    assert list(found["checks"]) == ["machine", *(check.name for check in module.CHECKS)]  # type: ignore[attr-defined]
    assert all(row["ok"] and row["ended"] == "whole" and row["findings"] for row in found["checks"].values())
    with pytest.raises(ValueError, match="dry run"):
        report.page({part: found})


@pytest.mark.parametrize("module", [part1, part2])
def test_limits_fit_ten_minutes(module: object) -> None:
    assert sum(check.limit for check in module.CHECKS) + 60 <= 585  # type: ignore[attr-defined]


def test_a_failure_loses_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLROOM_GPU_DEVICE", "cpu")

    def wrong(at: Setting) -> None:
        at.note("before", 1)
        raise RuntimeError("out of luck")

    def slow(at: Setting) -> None:
        at.note("before", 2)
        time.sleep(60)

    def killed(at: Setting) -> None:
        at.note("before", 3)
        os.kill(os.getpid(), 9)

    def below(at: Setting) -> None:
        at.note("not a number", float("nan"), most=1.0)

    def good(at: Setting) -> None:
        at.note("one", 1.0, least=1.0)

    checks = [Check(run.__name__, run, 0.5 if run is slow else 30) for run in (wrong, slow, killed, below, good)]
    assert run_checks("part1", checks, tmp_path) == 4
    rows = json.loads((tmp_path / "part1.json").read_text(encoding="utf-8"))["checks"]
    assert "out of luck" in rows["wrong"]["error"]
    assert rows["slow"]["ended"].startswith("not done after")
    assert rows["killed"]["ended"] == "killed by signal 9"
    assert [rows[name]["findings"][0]["value"] for name in ("wrong", "slow", "killed")] == [1, 2, 3]
    assert [name for name, row in rows.items() if row["ok"]] == ["machine", "good"]


def test_a_check_ends_with_what_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLROOM_GPU_DEVICE", "cpu")

    def long(at: Setting) -> None:
        beside = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        at.note("pid", beside.pid)
        os.kill(os.getppid(), signal.SIGTERM)  # as `timeout` does when the time of the part is up
        beside.wait()

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        run_checks("part1", [Check("long", long, 30)], tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before
    (noted,) = (json.loads(line) for line in (tmp_path / "part1.long.jsonl").read_text(encoding="utf-8").splitlines())
    until = time.monotonic() + 10
    while _lives(noted["value"]) and time.monotonic() < until:
        time.sleep(0.01)
    assert not _lives(noted["value"])


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_wrong_gradient_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = part1.reference
    monkeypatch.setattr(part1, "reference", lambda *arguments: right(*arguments) * 1.01)
    part1.gradients(Setting(torch.device("cpu"), True, tmp_path / "notes", tmp_path))
    notes = [json.loads(line) for line in (tmp_path / "notes").read_text(encoding="utf-8").splitlines()]
    judged = [one for one in notes if "float32: gradient" in one["name"]]
    assert judged
    assert not any(one["ok"] for one in judged)


def packed(tmp_path: Path, name: str = "trips") -> tuple[Path, Path]:
    teacher = tmp_path / "teacher.gguf"
    teacher.write_bytes(random.Random(name).randbytes(5001))
    pack(teacher, tmp_path / name, [], 100)
    return teacher, tmp_path / name


def test_halves_join_to_the_teacher(tmp_path: Path) -> None:
    teacher, trips = packed(tmp_path)
    keep = tmp_path / "keep"
    assert "lacks teacher.2" in arrive(trips / "trip1", keep)
    assert not (keep / teacher.name).exists()
    arrive(trips / "trip2", keep)
    assert digest(keep / teacher.name) == digest(teacher)


def test_damage_and_mixed_packs_are_named(tmp_path: Path) -> None:
    teacher, trips = packed(tmp_path)
    _, others = packed(tmp_path, "others")
    keep = tmp_path / "keep"
    arrive(others / "trip1", keep)
    with pytest.raises(PackError, match="different packs"):
        arrive(trips / "trip2", keep)
    assert not (keep / teacher.name).exists()
    half = trips / "trip1" / "teacher.1"
    half.write_bytes(half.read_bytes()[:-1] + b"?" if half.read_bytes()[-1:] != b"?" else half.read_bytes()[:-1])
    with pytest.raises(PackError, match=r"teacher\.1 is damaged"):
        arrive(trips / "trip1", keep)
    half.unlink()
    with pytest.raises(PackError, match="missing"):
        arrive(trips / "trip1", keep)


def test_a_trip_has_a_limit(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher.gguf"
    teacher.write_bytes(bytes(4000))
    with pytest.raises(PackError, match="trip 1 has"):
        pack(teacher, tmp_path / "trips", [], 100, limit=2000)


def test_the_page_is_that_of_the_results() -> None:
    assert report.PAGE.read_text(encoding="utf-8") == report.page(report.kept())


def test_a_failed_bar_is_shown() -> None:
    finding = {"name": "step over stock", "value": 1.1, "least": 1.3, "most": None, "ok": False}
    row = {"ended": "whole", "seconds": 3.0, "findings": [finding], "ok": False}
    result = {"part": "part1", "tiny": False, "device": "cuda", "machine": {"card": "A card"}, "checks": {"steps": row}}
    text = report.page({"part1": result})
    assert "part1: A card" in text
    assert "| step over stock | 1.1 | ≥ 1.3 | **failed** |" in text
