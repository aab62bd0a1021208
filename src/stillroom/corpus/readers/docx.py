"""Word's DOCX: paragraphs and tables of the body in order. Headers, footers, notes, comments and pictures are counted."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillroom.core.extras import require
from stillroom.corpus.readers.archive import require_small
from stillroom.corpus.readers.reader import PassedOver, Reader

ASIDE = {
    "word/footnotes.xml": "footnote parts of DOCX files",
    "word/endnotes.xml": "endnote parts of DOCX files",
    "word/comments.xml": "comment parts of DOCX files",
}
HEADS = ("word/header", "word/footer", "word/media/")


def _read(path: Path, encoding: str) -> Iterator[str | PassedOver]:  # noqa: ARG001
    require("documents", "DOCX files need {}.", "docx")
    import docx

    with zipfile.ZipFile(path) as archive:
        require_small(archive, path)
        names = archive.namelist()
    for name, what in ASIDE.items():
        if name in names:
            yield PassedOver(what, 1)
    for head in HEADS:
        count = sum(name.startswith(head) for name in names)
        if count:
            yield PassedOver(
                f"{'pictures' if 'media' in head else head.removeprefix('word/') + 's'} of DOCX files", count
            )
    yield "\n\n".join(text for text in _blocks(docx.Document(str(path))) if text.strip()) + "\n"


def _blocks(holder: Any) -> Iterator[str]:
    for block in holder.iter_inner_content():
        if hasattr(block, "rows"):
            yield "\n".join(" | ".join(_cells(row)) for row in block.rows)
        else:
            yield block.text


def _cells(row: Any) -> Iterator[str]:
    """The texts of a row's cells, each cell once: cells that are joined come several times."""
    seen: list[Any] = []
    for cell in row.cells:
        if not any(cell._tc is other for other in seen):
            seen.append(cell._tc)
            yield " ".join(text.strip() for text in _blocks(cell) if text.strip())


READERS = (Reader((".docx",), _read),)
