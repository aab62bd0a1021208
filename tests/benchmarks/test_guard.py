"""What was measured of a model is not taken for another one's, and one part that fails takes nothing from the others."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import guard, guard_models, report
from benchmarks.guard_models import NotMeasured, Setting
from stillroom.core.errors import Terminated, UsageError


def setting(folder: Path, **given: Path) -> Setting:
    options: dict[str, Any] = {"model": None, "student": None, "teacher": None} | given
    return Setting(folder, quick=True, mark_tokens=None, kept=report.Kept(None, {}), **options)


def test_keys_are_of_the_weights_and_not_of_the_path(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"one")
    one = setting(tmp_path, model=model)
    assert one.key("null") == "null"
    before = one.key("mark")
    guard_models.weights_of.cache_clear()
    assert one.key("mark") == before
    (model / "model.safetensors").write_bytes(b"two")
    guard_models.weights_of.cache_clear()
    assert one.key("mark") != before
    assert dataclasses.replace(one, mark_tokens=5).key("mark").endswith("mark_tokens=5")


def test_the_speed_is_of_the_model_that_is_really_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "none.gguf"
    monkeypatch.setattr(guard_models, "default_model", lambda: missing)
    one = setting(tmp_path)
    assert one.served == missing
    assert one.key("speed") == "speed served=none"


def test_a_part_that_cannot_be_measured_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_speed(_: Setting) -> Any:
        raise NotMeasured("every answer ends at once")

    def no_model(_: Setting) -> Any:
        raise UsageError("no such model", "Give another.")

    monkeypatch.setattr(
        guard, "PARTS", {"null": no_speed, "ask": no_model, "order": lambda _: ({"order_segments": 3}, {})}
    )
    monkeypatch.setattr(
        sys, "argv", ["guard", "--quick", "--work", str(tmp_path), "--json", str(tmp_path / "found.json")]
    )
    guard.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["figures"]["order_segments"] == 3
    assert found["details"]["left_out"]["null"] == "every answer ends at once"
    assert "no such model" in found["details"]["left_out"]["ask"]


def test_a_plot_that_fails_loses_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise ImportError("matplotlib")

    monkeypatch.setattr(guard, "PARTS", {"order": lambda _: ({"order_segments": 3}, {})})
    monkeypatch.setattr(guard, "plot", fails)
    words = ["--quick", "--work", str(tmp_path), "--plot", str(tmp_path), "--json", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["guard", *words])
    with pytest.raises(ImportError):
        guard.main()
    assert json.loads((tmp_path / "found.json").read_text())["figures"]["order_segments"] == 3


def test_a_model_that_is_not_there_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["guard", "--work", str(tmp_path), "--model", str(tmp_path / "none")])
    with pytest.raises(SystemExit):
        guard.main()
    assert "no such file or folder" in capsys.readouterr().err


def test_a_benchmark_that_is_told_to_end_goes_on_with_no_other_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(_: Setting) -> Any:
        raise Terminated("ended by the system", "")

    monkeypatch.setattr(guard, "PARTS", {"null": ended, "order": lambda _: pytest.fail("gone on")})
    monkeypatch.setattr(sys, "argv", ["guard", "--quick", "--work", str(tmp_path)])
    with pytest.raises(Terminated):
        guard.main()


def test_the_process_of_the_campaigns_is_told_to_end_so_that_it_ends_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    class Child:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def wait(self) -> int:
            done.append("wait")
            if len(done) == 1:
                raise SystemExit(143)
            return -15

        def terminate(self) -> None:
            done.append("terminate")

    monkeypatch.setattr(guard.subprocess, "Popen", Child)
    with pytest.raises(SystemExit):
        guard.campaigns(setting(tmp_path))
    assert done == ["wait", "terminate", "wait"]
