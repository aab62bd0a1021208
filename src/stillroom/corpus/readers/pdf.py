"""PDF: the text of its pages in order. Pages that are pictures have none; they are counted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from stillroom.core.errors import CorpusError
from stillroom.core.extras import require
from stillroom.corpus.readers.reader import PassedOver, Reader


def _read(path: Path, encoding: str) -> Iterator[str | PassedOver]:  # noqa: ARG001
    require("documents", "PDF files need {}.", "pypdf")
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.ERROR)
    with open(path, "rb") as stream:
        file = pypdf.PdfReader(stream)
        if file.is_encrypted and not file.decrypt(""):
            raise CorpusError(f"{path}: is encrypted.", "Save it without a password, or leave it out by `pattern`.")
        pages = [page.extract_text().strip() for page in file.pages]
    texts = [page for page in pages if page]
    if pages and not texts:
        raise CorpusError(
            f"{path}: none of its {len(pages)} pages has text; they are pictures.",
            "Run character recognition over it (OCR), or leave it out by `pattern`.",
        )
    if len(texts) < len(pages):
        yield PassedOver("pages of PDF files without text", len(pages) - len(texts))
    yield "\n\n".join(texts) + "\n"


READERS = (Reader((".pdf",), _read),)
