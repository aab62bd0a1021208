"""How shapes of text are judged: to the letter, and by whether a refusal names the file."""

import json
from pathlib import Path

import pytest

from benchmarks import data
from benchmarks.data import Row
from stillroom.core.errors import CorpusError


def judged(row: Row, text: str) -> str:
    return data._judged("a shape", lambda: ([(text, text)], ""), row, "a.txt").result


@pytest.mark.parametrize(
    ("holds", "text"),
    [("one\ntwo", "onetwo"), ("one\ntwo", "one\r\ntwo"), ("if x:\n    y", "if x:\ny"), ("A valve", "\ufeffA valve")],
)
def test_line_ends_indentation_and_marks_count(holds: str, text: str) -> None:
    assert judged(Row({}, (holds,), ()), text) == "silently_changed"
    assert judged(Row({}, (holds,), (holds,)), holds) == "read"


def test_a_value_that_a_template_writes_as_json_may_have_escapes() -> None:
    text = f"call {json.dumps({'part': 'Öl'})}"
    calling = Row({"messages": [{"role": "assistant", "tool_calls": []}]}, ("Öl",), ("Öl",))
    assert judged(calling, text) == "read"
    assert judged(Row({"text": text}, ("Öl",), ()), text) == "silently_changed"


@pytest.mark.parametrize(("where", "result"), [("/x/a.txt", "refused_by_name"), ("/x", "refused_without_help")])
def test_a_refusal_names_the_file(where: str, result: str) -> None:
    def read() -> tuple[list[tuple[str, str]], str]:
        raise CorpusError(f"{where}: has bytes that are not UTF-8.", "Name its encoding.")

    assert data._judged("a shape", read, Row({}, ("a refusal",), ()), "a.txt").result == result


def test_a_table_that_arrow_does_not_have_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr(data, "ROWS", {"an image": data.ROWS["an image"]})
    found = list(data.tables(tmp_path))
    assert [entry.result for entry in found] == ["left_out"]
    assert "cannot mix" in found[0].words
