"""Web pages are decoded as browsers decode them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from stillroom.core.errors import CorpusError
from stillroom.corpus.readers.epub import READERS as EPUB
from stillroom.corpus.readers.html import READERS
from stillroom.corpus.web_encoding import as_browsers_read, single_byte


def page(tmp_path: Path, label: str, body: bytes, encoding: str = "utf-8") -> str:
    path = tmp_path / "a.html"
    path.write_bytes(f'<html><head><meta charset="{label}"></head><body><p>'.encode() + body + b"</p></body></html>")
    return "".join(str(part) for part in READERS[0].read(path, encoding)).strip()


@pytest.mark.parametrize("label", ["iso-8859-1", "ISO_8859-1", "latin1", "us-ascii", "windows-1252", "x-cp1252"])
def test_latin_1_is_windows_1252(tmp_path: Path, label: str) -> None:
    assert page(tmp_path, label, b"\x93caf\xe9\x94 \x96 it\x92s") == "\u201ccaf\u00e9\u201d \u2013 it\u2019s"


@pytest.mark.parametrize(
    ("label", "text", "written_in"),
    [
        ("gb2312", "\u9555", "gbk"),
        ("shift_jis", "\u2460", "cp932"),
        ("x-sjis", "\u3042", "cp932"),
        ("euc-kr", "\ub620", "cp949"),
        ("iso-8859-9", "\u201c\u011f", "cp1254"),
        ("windows-874", "\u2026\u0e01", "cp874"),
        ("tis-620", "\u2026\u0e01", "cp874"),
        ("koi8-r", "\u0436", "koi8-r"),
        ("utf-8", "\u20ac", "utf-8"),
    ],
)
def test_labels_have_the_wider_encoding(tmp_path: Path, label: str, text: str, written_in: str) -> None:
    assert page(tmp_path, label, text.encode(written_in)) == text


def test_the_recipe_and_a_mark_come_before_what_a_page_declares(tmp_path: Path) -> None:
    assert page(tmp_path, "utf-8", b"\x93a\x94", "latin-1") == "\u201ca\u201d"
    path = tmp_path / "b.html"
    path.write_bytes(b'\xef\xbb\xbf<meta charset="iso-8859-1"><p>\xe2\x82\xac</p>')
    assert "".join(map(str, READERS[0].read(path, "utf-8"))).strip() == "\u20ac"


def test_bytes_without_a_meaning() -> None:
    assert single_byte(b"\x81\x80", "cp1252") == "\x81\u20ac"
    with pytest.raises(UnicodeDecodeError):
        single_byte(b"\xdb", "cp874")
    assert as_browsers_read("utf-9") == "utf-9"


def test_an_unknown_label_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="`utf-9` is not an encoding"):
        page(tmp_path, "utf-9", b"a")
    with pytest.raises(CorpusError, match="offset"):
        page(tmp_path, "windows-874", b"\xdb")


def book(path: Path, chapter: bytes, href: str = "a.xhtml", idref: str = "a") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="in/book.opf"/></rootfiles></container>',
        )
        archive.writestr(
            "in/book.opf",
            f'<package xmlns="http://www.idpf.org/2007/opf"><manifest><item id="a" href="{href}"/></manifest>'
            f'<spine><itemref idref="{idref}"/></spine></package>',
        )
        archive.writestr("in/a.xhtml", chapter)
    return path


@pytest.mark.parametrize("written", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "gb18030"])
@pytest.mark.parametrize("declares", [True, False])
@pytest.mark.parametrize("text", ["plain", "gr\u00fcn"])
def test_a_chapter_is_read_in_its_encoding_or_refused(tmp_path: Path, written: str, declares: bool, text: str) -> None:
    label = {"utf-8-sig": "utf-8"}.get(written, written)
    chapter = f'<?xml version="1.0" encoding="{label}"?>' * declares + f"<html><body><p>{text}</p></body></html>"
    path = book(tmp_path / "a.epub", chapter.encode(written))
    if declares or text == "plain" or written.startswith("utf"):
        assert [str(part).strip() for part in EPUB[0].read(path, "utf-8")] == [text]
    else:
        with pytest.raises(CorpusError, match=r"a\.epub/in/a\.xhtml: the bytes at offset \d+ are not utf-8"):
            list(EPUB[0].read(path, "utf-8"))


def test_a_page_that_calls_itself_utf_16_where_that_can_be_read_is_not(tmp_path: Path) -> None:
    assert page(tmp_path, "utf-16", "gr\u00fcn".encode()) == "gr\u00fcn"


def test_chapters_by_the_names_that_a_spine_gives(tmp_path: Path) -> None:
    chapter = b"<p>One.</p>"
    assert list(EPUB[0].read(book(tmp_path / "a.epub", chapter, "a.xhtml#top"), "utf-8")) == ["One.\n"]
    for keys, name in (({"idref": "b"}, "b"), ({"href": "c.xhtml"}, "in/c.xhtml")):
        with pytest.raises(CorpusError, match=f"lacks the chapter '{name}'"):
            list(EPUB[0].read(book(tmp_path / "b.epub", chapter, **keys), "utf-8"))
