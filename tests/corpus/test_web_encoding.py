"""Web pages are decoded as browsers decode them."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillroom.core.errors import CorpusError
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
