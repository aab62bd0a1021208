"""Documents on disk while a corpus is built, so that memory does not grow with them."""

from __future__ import annotations

import array
import json
import tempfile
from pathlib import Path
from types import TracebackType

from stillroom.corpus.documents import Document


class DocumentStore:
    """Keeps documents in a file without a name: it is gone when it is closed, even by a kill.

    Args:
        folder: Where the file is stored; None takes the system's folder for temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._offsets = array.array("Q", [0])
        self._reading = False

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __enter__(self) -> DocumentStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, document: Document) -> int:
        """Keep a document behind all others; returns its number."""
        row = json.dumps(
            [document.text, document.messages, document.where, document.tools, document.given], ensure_ascii=False
        ).encode()
        if self._reading:
            self._file.seek(self._offsets[-1])
            self._reading = False
        self._file.write(row)
        self._offsets.append(self._offsets[-1] + len(row))
        return len(self) - 1

    def get(self, number: int) -> Document:
        """The document of a number."""
        begin, end = self._offsets[number : number + 2]
        self._reading = True
        self._file.seek(begin)
        text, messages, where, tools, given = json.loads(self._file.read(end - begin))
        return Document(text, tuple(messages), where, tuple(tools), given)

    def size(self, number: int) -> int:
        """About how many bytes per document has."""
        return self._offsets[number + 1] - self._offsets[number]
