"""How the benchmark of answers under schemas checks them."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from benchmarks import schema_sources
from benchmarks.constrained import compiled, require_valid


@pytest.mark.parametrize(
    ("value", "step", "valid"),
    [(675.597, 0.0001, True), (0.3, 0.1, True), (1e-8, 1e-9, True), (4, 2, True), (0.35, 0.1, False), (5, 2, False)],
)
def test_multiples_are_of_decimal_numbers(value: Any, step: Any, valid: bool) -> None:
    schema = {"anyOf": [{"type": "object", "properties": {"a": {"multipleOf": step}}, "required": ["a"]}]}
    if valid:
        require_valid({"a": value}, schema)
    else:
        with pytest.raises(jsonschema.ValidationError):
            require_valid({"a": value}, schema)


def test_what_is_no_number_has_no_multiples() -> None:
    require_valid(["text", True], {"type": "array", "items": {"multipleOf": 2}})
    with pytest.raises(jsonschema.ValidationError):
        require_valid("text", {"type": "number", "multipleOf": 2})


def test_a_schema_is_compiled_each_time_that_it_is_timed() -> None:
    pytest.importorskip("llguidance")
    from stillroom.serving.grammars import checked

    schema = {"type": "integer", "minimum": 3, "maximum": 8}
    compiled({"pydantic": [("a", schema), ("b", schema)]})
    assert checked.cache_info().hits == 0


def test_a_package_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bfcl"
    monkeypatch.setattr(schema_sources, "BFCL", folder)
    tries: list[bool] = []

    def pip(words: list[str], **_: Any) -> None:
        target = Path(words[words.index("-d") + 1])
        target.mkdir()
        tries.append(True)
        with zipfile.ZipFile(target / "bfcl_eval-1-py3-none-any.whl", "w") as wheel:
            for name in ("BFCL_v4_simple_python", "BFCL_v4_memory", "possible_answer/BFCL_v4_simple_python"):
                wheel.writestr(f"bfcl_eval/data/{name}.json", '{"function": [{"name": "a"}]}\n')
        if len(tries) == 1:
            raise subprocess.CalledProcessError(1, words, stderr="the connection broke")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(subprocess.CalledProcessError):
        schema_sources.bfcl_functions()
    assert not folder.exists()
    assert schema_sources.bfcl_functions() == [{"name": "a"}]
    assert schema_sources.bfcl_functions() == [{"name": "a"}]
    assert len(tries) == 2


def test_sources_that_cannot_be_had_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> Any:
        raise subprocess.CalledProcessError(1, "pip", stderr="no network")

    for name in ("zod_schemas", "bfcl_schemas"):
        monkeypatch.setattr(schema_sources, name, fails)
    for name in ("pydantic_schemas", "suite_schemas"):
        monkeypatch.setattr(schema_sources, name, lambda: iter([("a", {})]))
    found, left_out = schema_sources.every()
    assert found == {"zod": [], "pydantic": [("a", {})], "bfcl": [], "suite": [("a", {})]}
    assert left_out == {"zod": "no network", "bfcl": "no network"}
