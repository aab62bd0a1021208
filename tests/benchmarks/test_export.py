"""Files that are given are looked at first, and what another program cannot do is left out by name."""

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import export
from stillroom.core.errors import RunError
from tests.tiny_models import tiny_model


@pytest.mark.parametrize(
    ("words", "error"), [(["--constrained", "none.json"], FileNotFoundError), (["--run", "none"], RunError)]
)
def test_a_wrong_file_is_told_before_anything_is_measured(
    words: list[str], error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: Any) -> dict[str, Any]:
        raise AssertionError("measured")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "families", measured)
    monkeypatch.setattr(sys, "argv", ["export", *words])
    with pytest.raises(error):
        export.main()


def test_a_library_that_cannot_write_a_type_is_left_out_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model("llama", tmp_path / "model", layers=1, hidden=16)
    monkeypatch.setattr(export, "GGUF_TYPES", {name: export.GGUF_TYPES[name] for name in ("F16", "Q8_0")})
    monkeypatch.setattr(export, "write_gguf", lambda *_, **__: None)
    left_out: dict[str, str] = {}
    assert export.same_bytes(folder, tmp_path, tmp_path / "no-library.so", left_out) == {}
    assert "no-library.so" in left_out["same_bytes, Q8_0"]
