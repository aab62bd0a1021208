"""Plain text, light markup and source code, as they are written: one document a file. So are files of no known format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stillroom.corpus.readers.reader import Reader, read_text

CODE = (
    ".py", ".js", ".ts", ".tsx", ".jsx", ".java", ".kt", ".scala", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".rs", ".go",
    ".rb", ".php", ".swift", ".m", ".r", ".jl", ".lua", ".pl", ".sh", ".sql", ".css", ".tex", ".org", ".adoc", ".mdx", ".log",
)  # fmt: skip
"""Source code and other markup."""


def _read(path: Path, encoding: str) -> Iterator[str]:
    yield read_text(path, encoding)


PLAIN = Reader((".txt", ".md", ".markdown", ".rst", *CODE), _read)
READERS = (PLAIN,)
