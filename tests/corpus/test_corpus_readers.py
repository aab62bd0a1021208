"""Readers: which one reads a file, several documents in a file, and what goes wrong in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stillroom.core.errors import CorpusError, EnvironmentProblem, NotWritable, StillroomError
from stillroom.corpus.documents import Document
from stillroom.corpus.readers import registry
from stillroom.corpus.readers.plain import PLAIN
from stillroom.corpus.readers.reader import Reader, read_text
from stillroom.corpus.sources import read_source
from stillroom.recipe.corpus import TextSource

Install = Callable[[str], None]


def _lines(path: Path, encoding: str) -> Iterator[str]:
    for line in read_text(path, encoding).splitlines():
        if line == "damaged":
            raise ValueError("no such line.\nmore about it")
        if line == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        yield "\ud800" if line == "half" else line


LINES = Reader((".lines",), _lines)
CLAIMS_MARKDOWN = Reader((".md",), _lines)
NOT_A_READER = _lines


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Install]:
    """Installs a package whose entry point names a value of this module."""

    def make(value: str) -> None:
        info = tmp_path / "site" / "stillroom_lines-2.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stillroom-lines\nVersion: 2.0\n")
        (info / "entry_points.txt").write_text(f"[stillroom.readers]\nlines = {__name__}:{value}\n")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        registry.readers.cache_clear()

    yield make
    registry.readers.cache_clear()


def read(path: Path, *pattern: str) -> list[Document]:
    return list(read_source(TextSource(path=path, **({"pattern": pattern} if pattern else {}))))


def message(path: Path, kind: type[StillroomError]) -> str:
    with pytest.raises(kind) as caught:
        read(path)
    return str(caught.value)


def test_built_in_readers_by_suffix_in_either_case_and_plain_text_for_the_rest() -> None:
    own = {".txt", ".md", ".markdown", ".rst", ".py", ".html", ".htm", ".pdf", ".docx", ".epub", ".ipynb"}
    assert own <= set(registry.readers())
    for name in ("a.txt", "a.MD", "a.rst", "a.cfg", "README"):
        assert registry.reader_of(Path(name)) is PLAIN


def test_the_default_pattern_is_what_built_in_readers_read() -> None:
    assert {Path(pattern).suffix for pattern in TextSource(path=Path()).pattern} <= set(registry.readers())


def test_another_packages_reader_reads_its_suffix_where_the_pattern_names_it(install: Install, tmp_path: Path) -> None:
    install("LINES")
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.LINES").write_text("one\ntwo\n", encoding="utf-8")
    (folder / "b.txt").write_text("one\ntwo\n", encoding="utf-8")
    documents = read(folder, "*.LINES", "*.txt")
    assert [document.text for document in documents] == ["one", "two", "one\ntwo\n"]
    places = [str(folder / "a.LINES"), f"{folder / 'a.LINES'}, document 2", str(folder / "b.txt")]
    assert [document.where for document in documents] == places
    # A package that is installed adds nothing to a corpus by itself.
    assert [document.text for document in read(folder)] == ["one\ntwo\n"]


def test_a_damaged_file_is_named(install: Install, tmp_path: Path) -> None:
    install("LINES")
    path = tmp_path / "a.lines"
    path.write_text("one\ndamaged\n", encoding="utf-8")
    assert message(path, CorpusError) == (
        f"{path}: not a whole .lines file: no such line.\nCopy or write it again, or leave it out by `pattern`."
    )
    path.write_text("one\nlocked\n", encoding="utf-8")
    assert message(path, NotWritable) == f"{path}: may not be read.\nCheck its permissions."
    path.write_text("one\nhalf\n", encoding="utf-8")
    assert message(path, CorpusError).startswith(f"{path}, document 2: character 0 of the text is half a character")
    path.write_bytes(b"\xff")
    assert message(path, CorpusError).startswith(f"{path}: the bytes at offset 0 are not utf-8.")


def test_two_readers_of_one_suffix_are_refused(install: Install, tmp_path: Path) -> None:
    install("CLAIMS_MARKDOWN")
    (tmp_path / "a.txt").write_text("x")
    assert message(tmp_path / "a.txt", EnvironmentProblem) == (
        f"The entry point `lines = {__name__}:CLAIMS_MARKDOWN` in the group `stillroom.readers` of the package "
        "stillroom-lines 2.0 reads `.md`, and so does the module `stillroom.corpus.readers.plain`.\n"
        "Uninstall one of the two."
    )


def test_something_else_than_a_reader_is_refused(install: Install, tmp_path: Path) -> None:
    install("NOT_A_READER")
    (tmp_path / "a.txt").write_text("x")
    assert "It has to name a stillroom.corpus.readers.reader.Reader or a tuple of them; or uninstall its package." in (
        message(tmp_path / "a.txt", EnvironmentProblem)
    )


@pytest.mark.parametrize("suffix", ["txt", ".TXT", ".tar.gz"])
def test_a_suffix_that_no_file_could_have_is_refused(suffix: str) -> None:
    with pytest.raises(ValueError, match="is not the ending of a name in lower case"):
        Reader((suffix,), _lines)
