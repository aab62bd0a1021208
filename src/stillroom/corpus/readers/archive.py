"""What readers of formats that are ZIP files share."""

from __future__ import annotations

import zipfile
from pathlib import Path

from stillroom.core.errors import CorpusError
from stillroom.corpus.documents import LONGEST


def require_small(archive: zipfile.ZipFile, path: Path, endings: tuple[str, ...] = (".xml", ".rels")) -> None:
    """Refuse an archive whose text parts are more than one document may have.

    Raises:
        CorpusError: Together, unpacked, the parts of these endings are longer than :data:`LONGEST`.
    """
    size = sum(entry.file_size for entry in archive.infolist() if entry.filename.lower().endswith(endings))
    if size > LONGEST:
        raise CorpusError(
            f"{path}: has {size:,} bytes of text parts, and one document may have {LONGEST >> 20} MiB.",
            "Split it into several files, or leave it out by `pattern`.",
        )
