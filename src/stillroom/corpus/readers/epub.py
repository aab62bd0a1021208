"""EPUB: the chapters of a book in the order of its spine, one document a book."""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from stillroom.core.errors import CorpusError
from stillroom.corpus.readers.archive import require_small
from stillroom.corpus.readers.html import markup_of, text_of_html
from stillroom.corpus.readers.reader import PassedOver, Reader

CONTAINER = "{urn:oasis:names:tc:opendocument:xmlns:container}rootfile"
OPF = "{http://www.idpf.org/2007/opf}"
AGAIN = "Get the book again, or leave it out by `pattern`."
PAGES = (".xhtml", ".html", ".htm", ".xml")


def _read(path: Path, encoding: str) -> Iterator[str | PassedOver]:  # noqa: ARG001
    with zipfile.ZipFile(path) as archive:
        require_small(archive, path, (*PAGES, ".opf", ".ncx"))
        if "META-INF/encryption.xml" in archive.namelist() and "META-INF/rights.xml" in archive.namelist():
            raise CorpusError(f"{path}: is encrypted (DRM).", "Leave it out by `pattern`.")
        root = ElementTree.fromstring(archive.read("META-INF/container.xml")).find(f".//{CONTAINER}")  # noqa: S314
        if root is None:
            raise CorpusError(f"{path}: its container names no book.", AGAIN)
        package = root.attrib["full-path"]
        book = ElementTree.fromstring(archive.read(package))  # noqa: S314
        items = {item.attrib["id"]: item.attrib for item in book.iter(f"{OPF}item")}
        chapters, pictures = [], 0
        for item in items.values():
            pictures += item.get("media-type", "").startswith("image/")
        for reference in book.iter(f"{OPF}itemref"):
            named = items.get(reference.attrib["idref"])
            name = _inside(package, named["href"]) if named is not None else ""
            if name not in archive.namelist():
                raise CorpusError(
                    f"{path}: lacks the chapter {name or reference.attrib['idref']!r}, which its spine names.", AGAIN
                )
            try:
                chapters.append(text_of_html(markup_of(archive.read(name), path / name)).strip("\n"))
            except CorpusError as error:
                raise CorpusError(error.what, AGAIN) from None
    if pictures:
        yield PassedOver("pictures of EPUB files", pictures)
    yield "\n\n".join(chapter for chapter in chapters if chapter.strip()) + "\n"


def _inside(package: str, href: str) -> str:
    """The name in the archive of what a package's file names, beside itself; a place inside it is left out."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(package), unquote(href.partition("#")[0])))


READERS = (Reader((".epub",), _read),)
