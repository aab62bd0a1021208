"""Plain text and light markup, as it is written: one document a file. Files of no known format are read so too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stillroom.corpus.readers.reader import Reader, read_text


def _read(path: Path, encoding: str) -> Iterator[str]:
    yield read_text(path, encoding)


PLAIN = Reader((".txt", ".md", ".markdown", ".rst"), _read)
READERS = (PLAIN,)
