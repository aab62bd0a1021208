"""Files of every kind: packed or not, by path, folder and pattern; what is passed over is counted."""

from __future__ import annotations

import gzip
import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import data
from stillroom.core.errors import CorpusError, MissingDependency
from stillroom.corpus import inputs, sources
from stillroom.corpus.documents import has_old_line_ends
from stillroom.corpus.readers.html import text_of_html
from stillroom.corpus.sources import read_source
from stillroom.corpus.tally import Tally, sentences
from stillroom.recipe.corpus import JsonlSource, TextSource


@pytest.mark.parametrize("shape", [shape for shape in data.FILES if not shape.endswith("too long")])
def test_every_kind_of_file_is_read_whole_or_refused_by_name(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "FILES", {shape: data.FILES[shape]})
    wanted = "refused_by_name" if data.FILES[shape][3] == ("a refusal",) else "read"
    assert [(entry.result, entry.words) for entry in data.files_(tmp_path) if entry.result != wanted] == []


def test_documents_that_are_too_long_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (inputs, sources):
        monkeypatch.setattr(module, "LONGEST", 100)
    text, rows, array = tmp_path / "a.txt", tmp_path / "a.jsonl", tmp_path / "a.json"
    text.write_text("x" * 101)
    rows.write_text('{"text": "x"}\n' + json.dumps({"text": "x" * 101}) + "\n")
    array.write_text(json.dumps([{"text": "x" * (1 << 21)}]))
    for source, where in (
        (TextSource(path=text), f"{text}: longer"),
        (JsonlSource(path=rows), f"{rows}, line 2: longer"),
        (JsonlSource(path=array), f"{array}, row 1: longer"),
        (TextSource(path=text, separator="\n"), None),
    ):
        if where is None:
            continue
        with pytest.raises(CorpusError) as caught:
            list(read_source(source))
        assert str(caught.value).startswith(where)
    packed = tmp_path / "a.txt.gz"
    packed.write_bytes(gzip.compress(b"x" * 1000))
    with pytest.raises(CorpusError, match="longer than"):
        list(read_source(TextSource(path=packed)))


def test_a_separator_where_no_file_is_plain_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<p>one</p>")
    source = TextSource(path=tmp_path, pattern=("*.html", "*.md"), separator="\n\n")
    with pytest.raises(CorpusError, match="`separator` is what is between the documents of a file of plain text"):
        list(read_source(source))
    (tmp_path / "note.md").write_text("two\n\nthree")
    assert [document.text.strip() for document in read_source(source)] == ["two", "three", "one"]


def test_what_a_folder_has_besides_is_counted_by_ending(tmp_path: Path) -> None:
    for name in ("a.md", "B.MD", "c.html", "d.html", "e", "f.jsonl.gz"):
        (tmp_path / name).write_bytes(b"words")
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "gone.md").symlink_to("nowhere")
    (tmp_path / "itself.md").symlink_to("itself.md")
    tally = Tally()
    assert len(list(read_source(TextSource(path=tmp_path), tally))) == 2
    assert sentences(tally.as_dict()) == [
        "took 2 of 9 files; passed over 2 .html, 2 broken links, 1 without an ending, 1 .jsonl.gz, 1 links to folders and "
        "special files"
    ]


def test_what_a_pattern_names_and_is_no_file_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "b.txt").symlink_to("nowhere")
    (tmp_path / "other.md").symlink_to("nowhere")
    tally = Tally()
    assert len(list(read_source(TextSource(path=tmp_path / "*.txt"), tally))) == 1
    assert sentences(tally.as_dict()) == ["took 1 of 2 files; passed over 1 broken links"]


@pytest.mark.parametrize("separator", ["\r\n\r\n", "\n\n"])
def test_a_separator_has_its_line_ends_as_the_text_has(separator: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\n\r\ntwo\r\n\r\nthree")
    found = [document.text for document in read_source(TextSource(path=tmp_path / "a.txt", separator=separator))]
    assert found == ["one", "two", "three"]


def test_patterns_in_a_path(tmp_path: Path) -> None:
    for name in ("one/a.md", "two/b.md", "two/c.txt", "three/d.rst"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)

    def found(pattern: str) -> list[str]:
        return [document.text for document in read_source(TextSource(path=tmp_path / pattern))]

    assert found("*/*.md") == ["one/a.md", "two/b.md"]
    assert found("t*") == ["three/d.rst", "two/b.md", "two/c.txt"]
    assert found("**/*.txt") == ["two/c.txt"]
    with pytest.raises(CorpusError, match="holds no file that fits"):
        found("*/*.pdf")


def test_files_come_in_the_order_of_sorted_paths(tmp_path: Path) -> None:
    draw = random.Random(0)
    for _ in range(60):
        path = tmp_path.joinpath(
            *(draw.choice(["a", "a.b", "b", "a-c"]) for _ in range(draw.randint(0, 2))), f"{draw.random()}.txt"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    found = list(inputs.find_files(tmp_path, ("**/*.txt",)))
    assert found == sorted(tmp_path.glob("**/*.txt"))


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=1, max_size=6),
    block=st.integers(1, 30),
    indent=st.sampled_from([None, 1]),
)
def test_an_array_is_read_the_same_in_blocks_of_any_size(texts: list[str], block: int, indent: int | None) -> None:
    rows = [{"text": text} for text in texts]
    stream = io.BytesIO(json.dumps(rows, ensure_ascii=False, indent=indent).encode())
    before = sources.BLOCK
    sources.BLOCK = block
    try:
        assert [row for row, _ in sources._json(stream, Path("a"), "utf-8")] == rows
    finally:
        sources.BLOCK = before


@settings(max_examples=60, deadline=None)
@given(
    text=st.sampled_from(["ab\n\r", "ab\r"]).flatmap(lambda signs: st.text(signs, max_size=60)), block=st.integers(1, 9)
)
def test_a_separated_text_is_the_same_in_blocks_of_any_size(text: str, block: int, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("s") / "a.txt"
    path.write_bytes(text.encode())
    before = sources.BLOCK
    sources.BLOCK = block
    try:
        found = [document.text for document in read_source(TextSource(path=path, separator="\n\n"))]
    finally:
        sources.BLOCK = before
    ends = "\r" if has_old_line_ends(text) else "\r\n"
    assert found == text.replace(ends, "\n").split("\n\n")
    (whole,) = read_source(TextSource(path=path))
    assert found == whole.text.split("\n\n")


LONG = "x" * 5000
"""More than the first bytes of a file that are looked at for what it is."""


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    "text",
    [
        f"progress 1%\rdone{LONG}\r\nline two\r\n\r\nline three",
        f"{LONG}\rline two\r\rline three",
        f"progress 1%\rdone{LONG}\nline two",
        f"{LONG}\r",
    ],
)
def test_the_whole_file_decides_how_its_lines_end(text: str, encoding: str, name: str, tmp_path: Path) -> None:
    data_ = text.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data_) if name.endswith(".gz") else data_)

    def found(separator: str | None) -> list[str]:
        source = TextSource(path=tmp_path / name, encoding=encoding, separator=separator)
        return [document.text for document in read_source(source)]

    (whole,) = found(None)
    assert found("\n\n") == whole.split("\n\n")


@settings(max_examples=30)
@given(parts=st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=4), short=st.integers(1, 8))
def test_zstandard_frames_and_cut_off_files(parts: list[bytes], short: int, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("z") / "a.txt.zst"
    path.write_bytes(b"".join(map(data._zst, parts)))
    with inputs.opened(path) as stream:
        assert stream.read() == b"".join(parts)
    path.write_bytes(path.read_bytes()[:-short])
    with pytest.raises(CorpusError, match=r"not a whole \.zst file"), inputs.opened(path) as stream:
        stream.read()


def test_html_is_what_a_reader_sees() -> None:
    assert text_of_html(data.HTML) == ("Valves\n\nHome\n\nA valve lets fluid pass.\n\nM6 | 412 |\n\nif x:\n    y\n")
    assert text_of_html("<p>a&amp;b<br>c</p><!-- no --><ul><li>one<li>two</ul>") == "a&b\nc\n\none\ntwo\n"


@pytest.mark.parametrize(("module", "name"), [("bs4", "a.html"), ("pypdf", "a.pdf"), ("docx", "a.docx")])
def test_a_missing_package_is_named(module: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / name
    if module == "docx":
        import zipfile

        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("word/document.xml", "<x/>")
    else:
        path.write_bytes(b"x")
    with pytest.raises(MissingDependency) as caught:
        list(read_source(TextSource(path=path)))
    assert "pip install 'stillroom[documents]'" in str(caught.value)
